"""A Chroma folder as files: whether a program has it open, and copies of it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from whimbrel.errors import AlreadyOwned, Conflict, DiskFull, HomeError, NotFound, StoreUnsupported
from whimbrel.stores.chroma.folder import DATABASE, LOCK
from whimbrel.stores.folders import user_of

_LEFT_OUT = frozenset({LOCK})
_LETTING_GO = 5.0
"""Seconds in which a Chroma client that this process has closed lets go of its files: its pool of connections is
dropped, and each is closed by a thread of its own when that thread gets its turn."""


@dataclass(slots=True)
class Snapshot:
    """A copy of the files of `folder`, to be read in its place."""

    folder: Path
    scratch: Path
    _taken: str = ""

    @property
    def copy(self) -> Path:
        return self.scratch / "files"

    def version(self) -> str:
        """Of the files that are there now."""
        return version(self.folder)

    def take(self) -> None:
        """Once. One that an earlier run took of the same files is used again.

        Raises `NotFound`, `AlreadyOwned` where a program has the folder open, `DiskFull`.
        """
        if self._taken:
            return
        check(self.folder)
        now = version(self.folder)
        note = self.scratch / "version"
        if not note.is_file() or note.read_text() != now:
            self.drop()
            copy_files(self.folder, self.copy)
            if version(self.folder) != now:
                raise _in_use(self.folder, "is written to")
            note.write_text(now)
        self._taken = now

    def drop(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)


def check(folder: Path) -> None:
    """Raises where `folder` is no Chroma folder of today, or a program has it open."""
    if not (folder / DATABASE).is_file():
        from whimbrel.stores.foreign.chroma_old import is_old

        if is_old(folder):
            raise StoreUnsupported(
                f"The folder {folder} is of Chroma before 0.4, which no client of today opens. Nothing was copied.",
                f"Copy it row by row: `whimbrel copy chroma:{folder}/COLLECTION ...`, without --cold.",
            )
        raise NotFound(f"There is no Chroma folder {folder}.", "Check the path after `chroma:`.")
    until = time.monotonic() + _LETTING_GO
    while (user := opened_by(folder)) == str(os.getpid()) and time.monotonic() < until:
        time.sleep(0.02)
    if user:
        raise _in_use(folder, f"is open in process {user}")


def opened_by(folder: Path) -> str:
    """The id of a process that has files of the folder open; empty where none is seen. Whimbrel's own lock is asked on
    every system, other programs only where there is a `/proc`."""
    with suppress(OSError), (folder / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return lock.read().strip() or "?"
    return user_of(folder)


def version(folder: Path) -> str:
    """Names, sizes and times of all files, as one hash."""
    said = [(str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in _files(folder)]
    return sha256(repr(said).encode()).hexdigest()


def copy_files(folder: Path, target: Path) -> dict[str, str]:
    """Every file, on disk when this returns; SHA-256 of each as it was read, by its path. Raises `Conflict` where there
    is something at `target`."""
    sums = {}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise Conflict(f"There is something in {target} already. Nothing was changed.", "Name another folder.")
        target.mkdir(exist_ok=True)
        for path, _ in _files(folder):
            name = path.relative_to(folder)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            sums[str(name)] = _copy(path, target / name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"No space left to copy {folder} to {target}.", "Free some space; the source is as it was."
            ) from error
        raise HomeError(
            f"{folder} cannot be copied to {target}: {error.strerror}.", "Check owner and permissions."
        ) from error
    return sums


def digest(path: Path) -> str:
    with path.open("rb") as file:
        found = sha256()
        while block := file.read(1 << 20):
            found.update(block)
        return found.hexdigest()


def _copy(path: Path, target: Path) -> str:
    found = sha256()
    with path.open("rb") as source, target.open("wb") as copy:
        while block := source.read(1 << 20):
            found.update(block)
            copy.write(block)
        copy.flush()
        os.fsync(copy.fileno())
    return found.hexdigest()


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _LEFT_OUT)
    return [(path, path.stat()) for path in paths]


def _in_use(folder: Path, how: str) -> AlreadyOwned:
    return AlreadyOwned(
        f"The Chroma folder {folder} {how}: its files cannot be read as they are now. Nothing was changed.",
        "Stop that program, or copy from its server: `chroma+http://localhost:8000/COLLECTION`.",
    )
