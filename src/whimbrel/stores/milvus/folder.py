"""A file of Milvus Lite that this process has open, shared by its stores.

Milvus Lite locks its folder (it is one, though its name ends in `.db`), so that a second process is refused. It has no
lock of its own between a reader and a writer: while rows go from its memory to its files, a reader may meet neither. So
writers are alone here, and readers are together.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whimbrel.errors import (
    AlreadyOwned,
    DiskFull,
    HomeError,
    MissingExtra,
    StoreRefused,
    StoreUnavailable,
    ViewDamaged,
    ViewError,
    WhimbrelError,
)
from whimbrel.stores.milvus.backend import NAMES, REBUILD

PID = "whimbrel.pid"


@dataclass
class Folder:
    path: Path
    db: Any
    stores: int = 0
    readers: int = 0
    writing: bool = False
    waiting: int = 0
    """Writers; readers let them go first."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    @classmethod
    def take(cls, path: Path) -> Folder:
        """Open it, or join the stores that have. Raises `AlreadyOwned` when another process has it open."""
        resolved = path.resolve()
        with _taking:
            folder = _folders.get(resolved)
            if folder is None:
                folder = _folders[resolved] = cls(resolved, _opened(resolved))
            folder.stores += 1
            return folder

    def release(self) -> None:
        with _taking:
            self.stores -= 1
            if self.stores:
                return
            _folders.pop(self.path, None)
            with self.alone(), lite_errors(self.path):
                self.db.close()

    @contextmanager
    def together(self) -> Iterator[Any]:
        with self.changed:
            self.changed.wait_for(lambda: not self.writing and not self.waiting)
            self.readers += 1
        try:
            yield self.db
        finally:
            with self.changed:
                self.readers -= 1
                self.changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[Any]:
        with self.changed:
            self.waiting += 1
            try:
                self.changed.wait_for(lambda: not self.writing and not self.readers)
            finally:
                self.waiting -= 1
            self.writing = True
        try:
            yield self.db
        finally:
            with self.changed:
                self.writing = False
                self.changed.notify_all()


_folders: dict[Path, Folder] = {}
_taking = threading.Lock()


def is_file_of_lite(path: Path) -> bool:
    """Whether Milvus Lite of today has been here. Raises `StoreRefused` for a file of an older one."""
    if path.is_file():
        raise StoreRefused(
            f"{path} was written by Milvus Lite 2, whose files Milvus Lite 3 does not read. Nothing was changed.",
            "Read it once with that version, in an environment of its own: `pip install 'milvus-lite<3' 'pymilvus<3'`, "
            "then `milvus-lite dump`; or name another file, and `whimbrel view rebuild` fills it.",
        )
    return (path / "collections").is_dir()


def _opened(path: Path) -> Any:
    lite = import_lite()
    is_file_of_lite(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
        with lite_errors(path):
            db = lite.MilvusLite(str(path))
        (path / PID).write_text(str(os.getpid()))
        return db
    except OSError as error:
        if error.errno == 28:
            raise _full(path) from error
        raise HomeError(
            f"The Milvus Lite database {path} cannot be written: {error.strerror}. Nothing was changed.",
            "Give this user write permission there, or name another file.",
        ) from error


def import_lite() -> Any:
    try:
        import milvus_lite
    except ImportError:
        raise MissingExtra("The package of Milvus Lite is not installed.", "pip install 'whimbrel[milvus]'") from None
    return milvus_lite


@contextmanager
def lite_errors(path: Path) -> Iterator[None]:
    """Raises what Milvus Lite raises inside as one of our errors."""
    try:
        yield
    except WhimbrelError:
        raise
    except OSError as error:
        if error.errno == 28:
            raise _full(path) from error
        raise ViewDamaged(f"The Milvus Lite database {path} cannot be read: {error.strerror}.", REBUILD) from error
    except Exception as error:
        raise _translated(path, type(error).__name__, str(error)) from None  # its message may quote a text


def _translated(path: Path, kind: str, said: str) -> WhimbrelError:
    if kind == "DataDirLockedError":
        try:
            who = f"process {(path / PID).read_text()}"
        except OSError:
            who = ""
        return AlreadyOwned(
            f"The Milvus Lite database {path} is open in {who or 'another process'}, and only one may "
            "have it open. Nothing was changed.",
            "Search through that process (`whimbrel search` does beside a running `whimbrel serve`), or stop it.",
        )
    if kind == "CollectionNotFoundError":
        return ViewDamaged(f"The collection is not in {path} any more.", REBUILD)
    if kind == "ValueError" and "name" in said.lower():
        return StoreRefused("Milvus does not take this as the name of a collection.", NAMES)
    if kind in ("ManifestCorruptedError", "WALCorruptedError", "ArrowInvalid", "JSONDecodeError"):
        return ViewDamaged(f"The Milvus Lite database {path} cannot be read ({kind}).", REBUILD)
    if kind == "RuntimeError" and "closed" in said:
        return StoreUnavailable(f"The Milvus Lite database {path} was closed.", "Try again.")
    return ViewError(f"Milvus Lite refused a request ({kind}).", "This is a fault in Whimbrel; please report it.")


def _full(path: Path) -> DiskFull:
    return DiskFull(
        f"No space left for the Milvus Lite database {path}. What was written before is safe.", "Free some."
    )
