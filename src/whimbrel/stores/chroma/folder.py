"""A Chroma folder that this process has open: its lock, its client, and chromadb's errors as ours."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from whimbrel.errors import (
    HomeError,
    StoreRefused,
    StoreUnavailable,
    StoreUnsupported,
    ViewDamaged,
    ViewError,
    WhimbrelError,
)
from whimbrel.memory import LIBRARIES
from whimbrel.stores.base import REBUILD
from whimbrel.stores.batches import Refused
from whimbrel.stores.chroma.backend import NAMES, Collection, UnknownId
from whimbrel.stores.folders import BESIDE, Kind, OpenFolder, gone

DATABASE = "chroma.sqlite3"
LOCK = "whimbrel.lock"
VACUUM_S = 600.0
ROOM = 4 << 20
"""Bytes that must be free on its disk for a write."""
_SCHEMA = {"embeddings_queue": 2, "metadb": 6, "sysdb": 10}
"""Of chromadb 1.5.9."""
_KIND = Kind("Chroma folder", "Chroma", "chroma")


@dataclass
class Folder(OpenFolder):
    lock: TextIO
    client: Any = None
    handles: dict[str, Any] = field(default_factory=dict)
    """chromadb's collections, by id: making one asks the database."""
    collections: dict[str, Collection] = field(default_factory=dict)
    """As they are, by id: this process alone changes them, within `describing`."""
    describing: threading.Lock = field(default_factory=threading.Lock)
    writing: threading.Lock = field(default_factory=threading.Lock)
    soiled: bool = False
    """A write has failed, within `writing`."""
    users: int = 0
    wanted: int = 0
    """Who waits to be alone: nobody else begins before."""
    closed: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    @classmethod
    def _opened(cls, path: Path) -> Folder:
        lock = _locked(path)
        try:
            return cls(path, lock, _open_client(path))
        except BaseException:
            lock.close()
            raise

    def _close(self) -> None:
        with self._alone():
            self.closed = True
            self._forget_client()
        self.lock.close()

    @contextmanager
    def use(self) -> Iterator[Any]:
        with self.changed:
            self.changed.wait_for(lambda: self.users >= 0 and not self.wanted)
            self._check_open()
            if self.client is None:
                self.client = _open_client(self.path)
            self.users += 1
        try:
            yield self.client
        finally:
            with self.changed:
                self.users -= 1
                self.changed.notify_all()

    @contextmanager
    def write(self, *, frees: bool = False) -> Iterator[Any]:
        """As `use`, one at a time. Raises `DiskFull` before chromadb comes to it; `frees`: it may make room itself.

        After a write that failed, chromadb may have a transaction open, for whose end its next write would wait in vain
        without giving up Python's lock: the whole process would stand still. So that one goes through another client;
        reads go on through the old one, since none can be opened where there is no room.
        """
        with self.writing:
            if (self.soiled or not frees) and _no_room(self.path):
                raise _KIND.full(self.path)
            if self.soiled:
                with self._alone():
                    self._forget_client()
                self.soiled = False
            try:
                with self.use() as client, chroma_errors(self.path):
                    yield client
            except WhimbrelError:
                self.soiled = True
                raise

    def _forget_client(self) -> None:
        """The next use opens another."""
        client, self.client = self.client, None
        self.handles.clear()
        self.collections.clear()
        if client is not None:
            client.close()

    def handle(self, client: Any, collection: Collection) -> Any:
        found = self.handles.get(collection.id)
        if found is None:
            found = client.get_collection(collection.name, embedding_function=None)
            if str(found.id) != collection.id:
                raise ViewDamaged(f"Another collection {collection.name!r} is in {self.path} now.", REBUILD)
            self.handles[collection.id] = found
        return found

    def vacuum(self) -> None:
        _import_chromadb()
        with self._alone():
            self._forget_client()
            code = "import sys; from chromadb.cli.cli import app; sys.exit(app())"
            command = [sys.executable, "-c", code, "vacuum", "--path", str(self.path), "--force"]
            try:
                done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=VACUUM_S)
            except subprocess.TimeoutExpired:
                raise StoreUnavailable(f"`chroma vacuum` of {self.path} took too long.", "It is tried again.") from None
        if done.returncode:
            raise StoreUnavailable(f"`chroma vacuum` of {self.path} failed.", "Deleted texts are still in its file.")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self.changed:
            self.wanted += 1
            try:
                self.changed.wait_for(lambda: self.users == 0)
                self._check_open()
                self.users = -1
            finally:
                self.wanted -= 1
                self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                self.users = 0
                self.changed.notify_all()

    def _check_open(self) -> None:
        """Once closed, another process may have it."""
        if self.closed:
            raise StoreUnavailable(f"{self.path} is being closed.", "Try again; nothing was written.")


def _locked(path: Path) -> TextIO:
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOCK).open("a+")
    except OSError as error:
        raise _KIND.unwritable(path, error.strerror or type(error).__name__) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read().strip() or "?"
        file.close()
        raise _KIND.held(
            path, who, f"{BESIDE}, stop it, or run `chroma run` on the folder and use `chroma+http://localhost:8000`."
        ) from None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


def _open_client(path: Path) -> Any:
    chromadb = _import_chromadb()
    with chroma_errors(path):
        _check_version(path, chromadb)
        try:
            return chromadb.PersistentClient(str(path), settings=_settings(chromadb))
        except AttributeError:  # of what the last opening, that failed, has left behind; it is thrown away by that
            return chromadb.PersistentClient(str(path), settings=_settings(chromadb))


def _settings(chromadb: Any) -> Any:
    return chromadb.config.Settings(anonymized_telemetry=False)


def _check_version(path: Path, chromadb: Any) -> None:
    """chromadb opens a database of a later one without a word, and writes to it."""
    versions = _schema_versions(path)
    if versions.items() <= _SCHEMA.items():
        return
    with TemporaryDirectory() as empty:  # what the chromadb here makes of a new one
        chromadb.PersistentClient(empty, settings=_settings(chromadb)).close()
        known = _schema_versions(Path(empty))
    if any(version > known.get(part, 0) for part, version in versions.items()):
        raise StoreUnsupported(
            f"The Chroma folder {path} was written by a newer version of chromadb. Nothing was changed.",
            "Update it here: pip install --upgrade chromadb.",
        )


def _schema_versions(path: Path) -> dict[str, int]:
    """The last migration of each part of the database; nothing of a new one."""
    if not (path / DATABASE).is_file():
        return {}
    # To be written too: what a killed writer left half done is rolled back first.
    with closing(sqlite3.connect(f"{(path / DATABASE).as_uri()}?mode=rw", uri=True)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'migrations'").fetchone():
            return {}
        return dict(database.execute("SELECT dir, max(version) FROM migrations GROUP BY dir").fetchall())


def index_folder(path: Path, collection: str) -> Path | None:
    """Where Chroma keeps the vectors of a collection."""
    query = "SELECT id FROM segments WHERE collection = ? AND scope = 'VECTOR'"
    with closing(sqlite3.connect(f"{(path / DATABASE).as_uri()}?mode=ro", uri=True)) as database:
        found = database.execute(query, (collection,)).fetchone()
    folder = path / found[0] if found else None
    return folder if folder is not None and folder.is_dir() else None


def _import_chromadb() -> Any:
    try:
        with LIBRARIES:
            import chromadb
            import chromadb.config
    except ImportError:
        raise _KIND.missing() from None
    return chromadb


@contextmanager
def chroma_errors(path: Path) -> Iterator[None]:
    """Raises what chromadb raises inside as one of our errors, or of `backend`."""
    try:
        yield
    except WhimbrelError:
        raise
    except sqlite3.Error as error:
        raise _translate(path, str(error)) from error
    except Exception as error:
        if not type(error).__module__.startswith("chromadb") and not isinstance(error, ValueError | TypeError):
            raise
        raise _translate(path, str(error), type(error).__name__) from None  # its message may quote a text
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's panic passes by `except Exception`
            raise
        raise ViewDamaged(f"Chroma broke on the folder {path}.", REBUILD) from error


def _no_room(path: Path) -> bool:
    return path.exists() and shutil.disk_usage(path).free < ROOM


def _translate(path: Path, said: str, kind: str = "") -> Exception:
    lower = said.lower()
    if "error finding id" in lower:
        return UnknownId()
    if "batch size" in lower:
        return Refused(f"Chroma takes no batch as large as this one in {path}")
    # Without room chromadb cannot even read what was written last, and says many things, but seldom why.
    if "disk is full" in lower or "no space left" in lower or "code: 13)" in lower or _no_room(path):
        return _KIND.full(path)
    if any(sign in lower for sign in ("readonly", "unable to open database", "permission denied", "os error 30")):
        return HomeError(f"The Chroma folder {path} cannot be written.", "Check its owner and permissions.")
    if "database is locked" in lower:
        return StoreUnavailable(f"Another program has locked the database in {path}.", "Close it; nothing was lost.")
    if kind in ("InvalidArgumentError", "InvalidDimensionException", "ValueError", "TypeError", "DuplicateIDError"):
        if "name" in lower and "expected a name" in lower:
            return StoreRefused("Chroma does not take this as the name of a collection.", NAMES)
        return ViewError(f"Chroma refused a request ({kind}).", "This is a fault in Whimbrel; please report it.")
    if kind == "NotFoundError":
        return gone(path)
    return _KIND.damaged(path, said[:200])
