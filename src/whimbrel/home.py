"""The folder that a home's state lives in: what lies where."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from whimbrel.errors import DiskFull, HomeError


@dataclass(frozen=True, slots=True)
class Home:
    """Paths of one home. The catalog may lie elsewhere (Postgres); views and locks lie here."""

    path: Path

    @property
    def lock(self) -> Path:
        return self.path / "owner.lock"

    @property
    def views(self) -> Path:
        return self.path / "views"

    @property
    def lexicons(self) -> Path:
        return self.path / "lexicons"

    @property
    def moves(self) -> Path:
        """Reports of moves, by id."""
        return self.path / "moves"

    @property
    def plans(self) -> Path:
        """Notes of what plans of moves write beside their targets, so that what a killed one leaves is found."""
        return self.path / "plans"

    @property
    def copies(self) -> Path:
        """Copies of the catalog that were saved before an upgrade."""
        return self.path / "copies"

    @property
    def copying(self) -> Path:
        """What `whimbrel copy` knows of each copy, so that it goes on where it ended."""
        return self.path / "copying"

    @property
    def adopted(self) -> Path:
        """What is kept beside the catalog of databases that were adopted: copies of files, and vectors to search."""
        return self.path / "adopted"

    @property
    def catalog(self) -> Path:
        return self.path / "catalog.db"

    @property
    def cache(self) -> Path:
        """What models have computed, where the catalog is SQLite; it may be deleted while nothing runs."""
        return self.path / "cache.db"

    @property
    def last_answer(self) -> Path:
        """Where the passages of the last answer in a terminal lie: places in documents, none of their text."""
        return self.path / "last-answer.json"

    @property
    def socket(self) -> Path:
        """Where a running `serve` answers the CLI."""
        return self._socket("serve")

    @property
    def owner_socket(self) -> Path:
        """Where the owner answers from stores that allow one process."""
        return self._socket("owner")

    def _socket(self, name: str) -> Path:
        """A Unix socket's path may have 107 bytes: a link in a short place."""
        path = self.path / f"{name}.sock"
        if len(os.fsencode(path)) <= 100:
            return path
        from hashlib import blake2b

        short = blake2b(os.fsencode(self.path), digest_size=8).hexdigest()
        suffix = "" if name == "serve" else f"-{name}"
        return Path(tempfile.gettempdir()) / f"whimbrel-{os.getuid()}-{short}{suffix}.sock"

    def prepare(self) -> None:
        """Make the folders. Raises `HomeError` when this user cannot."""
        try:
            for folder in (self.path, self.views, self.lexicons):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DiskFull(f"No space left to make the home {self.path}.", "Free some space.") from error
            raise HomeError(
                f"The home {self.path} cannot be made: {error.strerror}.",
                "Give this user write permission there, or set WHIMBREL_HOME to another folder.",
            ) from error


def host_name() -> str:
    """Names this machine in leases and jobs."""
    return socket.gethostname()
