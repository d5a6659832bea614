"""A Qdrant folder that this process has open: its lock, its client, and what local mode raises as ours.

Local mode holds all rows in memory, allows one process, and is not safe for several threads: the stores of a process
share one client, and take turns.
"""

from __future__ import annotations

import atexit
import fcntl
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whimbrel.errors import AlreadyOwned, Conflict, StoreUnavailable, ViewDamaged, ViewError, WhimbrelError
from whimbrel.memory import LIBRARIES
from whimbrel.stores.base import REBUILD
from whimbrel.stores.folders import BESIDE, OpenFolder, gone, user_of
from whimbrel.stores.qdrant import files

ELSEWHERE = "Name another folder, server or collection."
_KIND = files.KIND


@dataclass
class Folder(OpenFolder):
    client: Any
    turn: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def _opened(cls, path: Path) -> Folder:
        """Raises `StoreRefused` where a row is not what Qdrant writes."""
        return cls(path, _open_client(path))

    def _close(self) -> None:
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


@atexit.register
def _close_all() -> None:
    """What a program has left open: qdrant-client's own end comes too late to import what it needs."""
    for folder in Folder.open_now():
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
    """Qdrant's lock names nobody: the process that has its file open is looked for."""
    return _KIND.held(
        path, user_of(path / files.LOCK), f"{BESIDE}, stop it, or move to a server: `qdrant+http://localhost:6333`."
    )


def import_qdrant() -> Any:
    try:
        with LIBRARIES:
            import qdrant_client
    except ImportError:
        raise _KIND.missing() from None
    return qdrant_client


def _open_client(path: Path) -> Any:
    qdrant_client = import_qdrant()
    with local_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not _checked(path):
            raise held(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Local mode is not recommended", UserWarning)
            return qdrant_client.QdrantClient(path=str(path), force_disable_check_same_thread=True)


def _checked(path: Path) -> bool:
    """False where a process has the folder open. Raises `StoreRefused` where a row is not what Qdrant writes."""
    with (path / files.LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        files.check(path)
        return True


@contextmanager
def local_errors(path: Path) -> Iterator[None]:
    """Raises what local mode raises inside as one of our errors."""
    try:
        yield
    except WhimbrelError:
        raise
    except OSError as error:
        raise _KIND.failed(path, error) from error
    except sqlite3.Error as error:
        raise _translated(path, str(error)) from error
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _said(path, str(error), type(error).__name__) from None  # its message may quote a text


def _translated(path: Path, said: str) -> WhimbrelError:
    lower = said.lower()
    if files.is_full(said, path):
        return _KIND.full(path)
    if "readonly" in lower or "unable to open" in lower:
        return _KIND.unwritable(path, said)
    if "locked" in lower:
        return StoreUnavailable(f"Another program has locked a file in {path}.", "Close it; nothing was lost.")
    return _KIND.damaged(path, said[:200])


def _said(path: Path, said: str, kind: str) -> WhimbrelError:
    if "already accessed" in said:
        return held(path)
    if "already exists" in said:
        return Conflict(f"There is a collection of that name in {path} already. Nothing was changed.", ELSEWHERE)
    if "not found" in said and "Collection" in said:
        return gone(path)
    if kind in ("ValidationError", "JSONDecodeError", "KeyError"):
        return ViewDamaged(f"The Qdrant folder {path} cannot be read ({kind}).", REBUILD)
    return ViewError(f"Qdrant refused a request ({kind}).", "This is a fault in Whimbrel; please report it.")
