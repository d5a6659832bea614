"""What the databases in folders that one process may open have in common: who has one open, and what went wrong in it.

The stores of a process share what is open. How they use it differs, and is each database's own: Qdrant's local mode
takes turns, Milvus Lite lets readers in together, Chroma does everything but a vacuum at once.
"""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from whimbrel.errors import AlreadyOwned, DiskFull, HomeError, MissingExtra, ViewDamaged
from whimbrel.stores.base import REBUILD

BESIDE = "Search through that process (`whimbrel search` does beside a running `whimbrel serve`)"

_PROCESSES = Path("/proc")


@dataclass
class OpenFolder(ABC):
    """A folder that this process has open, shared by its stores."""

    path: Path
    stores: int = field(default=0, kw_only=True)

    _open: ClassVar[dict[Path, Self]]
    _taking: ClassVar[threading.Lock]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._open = {}
        cls._taking = threading.Lock()

    @classmethod
    def take(cls, path: Path) -> Self:
        """Open it, or join the stores that have. Raises `AlreadyOwned` when another process has it open; what opening
        raises."""
        resolved = path.resolve()
        with cls._taking:
            folder = cls._open.get(resolved)
            if folder is None:
                folder = cls._open[resolved] = cls._opened(resolved)
            folder.stores += 1
            return folder

    def release(self) -> None:
        """The last store closes it."""
        with self._taking:
            self.stores -= 1
            if self.stores:
                return
            self._open.pop(self.path, None)
            self._close()

    @classmethod
    def open_now(cls) -> Sequence[Self]:
        return list(cls._open.values())

    @classmethod
    @abstractmethod
    def _opened(cls, path: Path) -> Self: ...

    @abstractmethod
    def _close(self) -> None:
        """Called when no store has it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """The words for a database of one kind in a folder."""

    what: str
    """As `Chroma folder`."""
    package: str
    """Whose database it is, as `Chroma`."""
    extra: str
    other: str = "folder"
    """What else may be named in its place."""

    def held(self, path: Path, who: str, hint: str) -> AlreadyOwned:
        """`who`: the process that has it open; empty where that cannot be told."""
        process = f"process {who}" if who else "another process"
        return AlreadyOwned(
            f"The {self.what} {path} is open in {process}, and only one may have it open. Nothing was changed.", hint
        )

    def failed(self, path: Path, error: OSError) -> DiskFull | HomeError:
        """Of what the system says to writing."""
        return self.full(path) if is_full(error) else self.unwritable(path, error.strerror or type(error).__name__)

    def full(self, path: Path) -> DiskFull:
        return DiskFull(f"No space left for the {self.what} {path}. What was written before is safe.", "Free some.")

    def unwritable(self, path: Path, why: str) -> HomeError:
        return HomeError(
            f"The {self.what} {path} cannot be written: {why}. Nothing was changed.",
            f"Give this user write permission there, or name another {self.other}.",
        )

    def damaged(self, path: Path, why: str) -> ViewDamaged:
        return ViewDamaged(f"The {self.what} {path} cannot be read: {why}", REBUILD)

    def missing(self) -> MissingExtra:
        return MissingExtra(f"The package of {self.package} is not installed.", f"pip install 'whimbrel[{self.extra}]'")


def gone(path: Path) -> ViewDamaged:
    return ViewDamaged(f"The collection is not in {path} any more.", REBUILD)


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def user_of(path: Path) -> str:
    """The id of a process that has the file, or a file of the folder, open: of another one, if there is; empty where
    none is seen. There must be a `/proc`, and the process must be this user's."""
    whole = str(path.resolve())
    inside = f"{whole}{os.sep}"
    here = ""
    for process in _PROCESSES.glob("[0-9]*"):
        with suppress(OSError):
            names = map(_link, (process / "fd").iterdir())
            if any(name == whole or name.startswith(inside) for name in names):
                if process.name != str(os.getpid()):
                    return process.name
                here = process.name
    return here


def _link(handle: Path) -> str:
    try:
        return str(handle.readlink())
    except OSError:
        return ""
