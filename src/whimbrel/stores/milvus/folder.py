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

from whimbrel.errors import StoreRefused, StoreUnavailable, ViewDamaged, ViewError, WhimbrelError
from whimbrel.stores.base import REBUILD
from whimbrel.stores.folders import BESIDE, Kind, OpenFolder, gone, is_full, user_of
from whimbrel.stores.milvus.backend import NAMES

PID = "whimbrel.pid"
LOCK = "LOCK"
"""Milvus Lite's own."""
_KIND = Kind("Milvus Lite database", "Milvus Lite", "milvus", other="file")


@dataclass
class Folder(OpenFolder):
    db: Any
    readers: int = 0
    writing: bool = False
    waiting: int = 0
    """Writers; readers let them go first."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    @classmethod
    def _opened(cls, path: Path) -> Folder:
        return cls(path, _database(path))

    def _close(self) -> None:
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


def is_file_of_lite(path: Path) -> bool:
    """Whether Milvus Lite of today has been here. Raises `StoreRefused` for a file of an older one."""
    if path.is_file():
        raise StoreRefused(
            f"{path} was written by Milvus Lite 2, whose files Milvus Lite 3 does not read. Nothing was changed.",
            "Name another file for the store. What is in this one can be taken over: `whimbrel adopt "
            f"milvus:{path}/COLLECTION -c NAME`, or `whimbrel copy 'milvus:{path}/*' 'milvus:NEW.db/*'`.",
        )
    return (path / "collections").is_dir()


def _database(path: Path) -> Any:
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
        raise _KIND.failed(path, error) from error


def import_lite() -> Any:
    try:
        import milvus_lite
    except ImportError:
        raise _KIND.missing() from None
    return milvus_lite


@contextmanager
def lite_errors(path: Path) -> Iterator[None]:
    """Raises what Milvus Lite raises inside as one of our errors."""
    try:
        yield
    except WhimbrelError:
        raise
    except OSError as error:
        raise (_KIND.full(path) if is_full(error) else _KIND.damaged(path, f"{error.strerror}.")) from error
    except Exception as error:
        raise _translated(path, type(error).__name__, str(error)) from None  # its message may quote a text


def _translated(path: Path, kind: str, said: str) -> WhimbrelError:
    if kind == "DataDirLockedError":
        return _KIND.held(path, _user(path), f"{BESIDE}, or stop it.")
    if kind == "CollectionNotFoundError":
        return gone(path)
    if kind == "ValueError" and "name" in said.lower():
        return StoreRefused("Milvus does not take this as the name of a collection.", NAMES)
    if kind in ("ManifestCorruptedError", "WALCorruptedError", "ArrowInvalid", "JSONDecodeError"):
        return ViewDamaged(f"The Milvus Lite database {path} cannot be read ({kind}).", REBUILD)
    if kind == "RuntimeError" and "closed" in said:
        return StoreUnavailable(f"The Milvus Lite database {path} was closed.", "Try again.")
    return ViewError(f"Milvus Lite refused a request ({kind}).", "This is a fault in Whimbrel; please report it.")


def _user(path: Path) -> str:
    """Milvus Lite's lock names nobody. What we have noted may be older than another program's opening it."""
    if found := user_of(path / LOCK):
        return found
    try:
        return (path / PID).read_text()
    except OSError:
        return ""
