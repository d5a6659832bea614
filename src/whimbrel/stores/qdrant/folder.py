"""A Qdrant folder that this process has open: its lock, its client, and what local mode raises as ours.

Local mode holds all rows in memory, allows one process, and is not safe for several threads: the stores of a process
share one client, and take turns.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import shutil
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whimbrel.errors import (
    AlreadyOwned,
    Conflict,
    DiskFull,
    HomeError,
    MissingExtra,
    StoreUnavailable,
    ViewDamaged,
    ViewError,
    WhimbrelError,
)
from whimbrel.stores.qdrant import files

REBUILD = "The catalog holds everything: run `whimbrel view rebuild`."
ELSEWHERE = "Name another folder, server or collection."
_ROOM = 1 << 20


@dataclass
class Folder:
    """A folder that this process has open, shared by its stores."""

    path: Path
    client: Any
    stores: int = 0
    turn: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def take(cls, path: Path) -> Folder:
        """Open it, or join the stores that have. Raises `AlreadyOwned` when another process has it open, `StoreRefused`
        where a row is not what Qdrant writes."""
        resolved = path.resolve()
        with _taking:
            folder = _folders.get(resolved)
            if folder is None:
                folder = _folders[resolved] = cls(resolved, _open_client(resolved))
            folder.stores += 1
            return folder

    def release(self) -> None:
        with _taking:
            self.stores -= 1
            if self.stores:
                return
            _folders.pop(self.path, None)
            with self.turn:
                self.client.close()

    @contextmanager
    def use(self) -> Iterator[Any]:
        with self.turn, local_errors(self.path):
            if self.client is None:
                self.client = _open_client(self.path)
            yield self.client

    def log(self, name: str) -> None:
        """Let SQLite write a collection's commits to a log (its `journal_mode` WAL, which the file keeps)."""
        with self.turn, local_errors(self.path), closing(sqlite3.connect(files.storage(self.path, name))) as database:
            database.execute("PRAGMA journal_mode = WAL")

    def vacuum(self) -> None:
        """Writes what was deleted out of the files."""
        with self.turn, local_errors(self.path):
            if self.client is not None:
                self.client.close()
                self.client = None
            for name in files.collections(self.path):
                place = files.storage(self.path, name)
                if place.is_file():
                    with closing(sqlite3.connect(place)) as database:
                        database.execute("VACUUM")
            self.client = _open_client(self.path)


_folders: dict[Path, Folder] = {}
_taking = threading.Lock()


@atexit.register
def _close_all() -> None:
    """What a program has left open: qdrant-client's own end comes too late to import what it needs."""
    for folder in _folders.values():
        if folder.client is not None:
            folder.client.close()


def holder(path: Path) -> bool:
    """Whether a process has the folder open."""
    try:
        with (path / files.LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def held(path: Path) -> AlreadyOwned:
    return AlreadyOwned(
        f"The Qdrant folder {path} is open in another process, and only one may have it open. Nothing was changed.",
        "Search through that process (`whimbrel search` does beside a running `whimbrel serve`), stop it, or move to a "
        "server: `qdrant+http://localhost:6333`.",
    )


def import_qdrant() -> Any:
    try:
        import qdrant_client
    except ImportError:
        raise MissingExtra("The package of Qdrant is not installed.", "pip install 'whimbrel[qdrant]'") from None
    return qdrant_client


def _open_client(path: Path) -> Any:
    qdrant_client = import_qdrant()
    with local_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        with (path / files.LOCK).open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise held(path) from None
            files.check(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Local mode is not recommended", UserWarning)
            return qdrant_client.QdrantClient(path=str(path), force_disable_check_same_thread=True)


@contextmanager
def local_errors(path: Path) -> Iterator[None]:
    """Raises what local mode raises inside as one of our errors."""
    try:
        yield
    except WhimbrelError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(path) from error
        raise _unwritable(path, error.strerror or type(error).__name__) from error
    except sqlite3.Error as error:
        raise _translated(path, str(error)) from error
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _said(path, str(error), type(error).__name__) from None  # its message may quote a text


def _translated(path: Path, said: str) -> WhimbrelError:
    lower = said.lower()
    if "disk is full" in lower or ("disk i/o error" in lower and shutil.disk_usage(path).free < _ROOM):
        return _full(path)
    if "readonly" in lower or "unable to open" in lower:
        return _unwritable(path, said)
    if "locked" in lower:
        return StoreUnavailable(f"Another program has locked a file in {path}.", "Close it; nothing was lost.")
    return ViewDamaged(f"The Qdrant folder {path} cannot be read: {said[:200]}", REBUILD)


def _said(path: Path, said: str, kind: str) -> WhimbrelError:
    if "already accessed" in said:
        return held(path)
    if "already exists" in said:
        return Conflict(f"There is a collection of that name in {path} already. Nothing was changed.", ELSEWHERE)
    if "not found" in said and "Collection" in said:
        return ViewDamaged(f"The collection is not in {path} any more.", REBUILD)
    if kind in ("ValidationError", "JSONDecodeError", "KeyError"):
        return ViewDamaged(f"The Qdrant folder {path} cannot be read ({kind}).", REBUILD)
    return ViewError(f"Qdrant refused a request ({kind}).", "This is a fault in Whimbrel; please report it.")


def _full(path: Path) -> DiskFull:
    return DiskFull(f"No space left for the Qdrant folder {path}. What was written before is safe.", "Free some.")


def _unwritable(path: Path, why: str) -> HomeError:
    return HomeError(
        f"The Qdrant folder {path} cannot be written: {why}. Nothing was changed.",
        "Give this user write permission there, or name another folder.",
    )
