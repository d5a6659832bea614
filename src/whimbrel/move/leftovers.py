"""What a plan writes beside its target: noted in the home before it is made, so that what a killed one leaves is found.

A note is a file that its process holds locked for as long as the plan lasts. One that nobody holds is of a plan that
was killed, or whose target was out when its table was to be dropped: the next plan drops that, or the owner does.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from whimbrel.config import mask_url
from whimbrel.config.values import without_credentials
from whimbrel.domain import Space
from whimbrel.errors import DiskFull, HomeError, WhimbrelError
from whimbrel.stores.base import Store
from whimbrel.stores.resolve import same_place

logger = logging.getLogger("whimbrel.move")

Opener = Callable[[str, str, Space], Store]
"""The store of (URI, table, space), for writing."""

PREFIX = "whimbrel-plan-"
"""Of the names of scratch tables and folders. Nothing else is ever dropped."""
_NAME = re.compile(rf"{PREFIX}[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Note:
    path: Path

    def done(self) -> None:
        """What it names is not there any more."""
        self.path.unlink(missing_ok=True)


@contextmanager
def noted(plans: Path, table: str, *, uri: str, space: Space, folder: Path | None) -> Iterator[Note]:
    """`folder`: which is removed with all in it; None: the table is dropped from the store at `uri`. Raises `DiskFull`,
    `HomeError`."""
    said = {"table": table, "uri": without_credentials(uri), "space": asdict(space), "folder": str(folder or "")}
    path = plans / f"{table}.json"
    with _held(path, json.dumps(said)):
        yield Note(path)


class Leftovers:
    """What killed plans have left."""

    def __init__(self, plans: Path, opened: Opener) -> None:
        """`plans`: the folder of the notes. `opened(uri, table, space)`: the store, for writing."""
        self._plans = plans
        self._opened = opened
        self._left: set[str] = set()
        """What could not be dropped, by the note's name: whoever looks next tries again."""

    async def drop(self, at: str = "") -> list[str]:
        """The names of the tables and folders that were dropped. What a database does not answer about stays. `at`:
        only from the store of this URI, so that nobody waits for another one that is out; and folders."""
        dropped = []
        for path in sorted(self._plans.glob(f"{PREFIX}*.json")):
            if path.name in self._left:
                continue
            said = _unheld(path)
            if said is not None and (not at or said["folder"] or same_place(said["uri"], at)):
                dropped += await self._try_to_drop(path, said)
        return dropped

    async def _try_to_drop(self, path: Path, said: dict[str, Any]) -> list[str]:
        try:
            return [await self._drop(path, said)]
        except WhimbrelError as error:
            self._left.add(path.name)
            logger.warning("%s, which a plan left, cannot be dropped now: %s", path.stem, error.message)
            return []

    async def _drop(self, path: Path, said: dict[str, Any]) -> str:
        table, folder = str(said["table"]), Path(said["folder"])
        if _NAME.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
        elif _NAME.fullmatch(table):
            store = self._opened(str(said["uri"]), table, Space(**said["space"]))
            try:
                await store.drop()
            finally:
                await store.close()
        path.unlink(missing_ok=True)
        logger.info("%s, which a plan left at %s, was dropped", table, folder.name or mask_url(str(said["uri"])))
        return folder.name or table


def _held(path: Path, said: str) -> TextIO:
    """The note, written and locked: for as long as the file is open."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = path.open("x", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(said)
        file.flush()
        os.fsync(file.fileno())
        return file
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"No space left for {path}. Nothing was begun.", "Free some space.") from error
        raise HomeError(
            f"{path} cannot be written: {error.strerror}. Nothing was begun.", "Check its owner and permissions."
        ) from error


def _unheld(path: Path) -> dict[str, Any] | None:
    """What a note says. None where a plan holds it, or was killed before it had said anything, and made anything."""
    try:
        with path.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            said: dict[str, Any] = json.load(file)
    except (FileNotFoundError, BlockingIOError, ValueError):
        return None
    return said
