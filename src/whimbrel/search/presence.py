"""That this process searches, said while a move is under way; and that it has the move's views open before the switch.

So a switch interrupts nobody: no search of any process is the first to open the new view.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress

from whimbrel.catalog import collections, moves, processes
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import MoveState
from whimbrel.errors import WhimbrelError, place, spot
from whimbrel.home import host_name

logger = logging.getLogger("whimbrel.search")

LOOK_S = 1.0
_WARM = (MoveState.VERIFYING, MoveState.READY, MoveState.PREPARED, MoveState.SWITCHED, MoveState.ROLLED_BACK)
"""States in which a switch, or one back, may come."""


class Presence:
    """Looks for moves every second, on the loop that searches."""

    def __init__(self, catalog: Catalog, warm: Callable[[ViewRow, str], Awaitable[None]]) -> None:
        """`warm(view, language of its collection)` opens a view and searches it once."""
        self._catalog = catalog
        self._warm = warm
        self._id = f"{host_name()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._prepared: set[int] = set()
        self._said = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """From the first search on. Nothing happens where it has begun."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._loop(), name="presence")

    async def end(self) -> None:
        task = self._task
        if task is not None and task.get_loop() is not asyncio.get_running_loop():
            self.abandon()
        elif task is not None:
            self._task = None
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._said:
            with suppress(WhimbrelError):  # it is taken for gone in a few seconds anyway
                await asyncio.to_thread(self._leave)

    def abandon(self) -> None:
        """Look no more, from whatever thread: a program may have searched on a loop of its own."""
        task, self._task = self._task, None
        if task is not None:
            with suppress(RuntimeError):  # that loop has been closed, and its tasks with it
                task.get_loop().call_soon_threadsafe(task.cancel)

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except WhimbrelError as error:  # the catalog is out: every search says so
                logger.warning("could not look for moves: %s", error.message)
            except Exception as defect:
                logger.error("could not look for moves: %s", place(defect))

    async def _look(self) -> None:
        under_way, rows = await asyncio.to_thread(self._read)
        if not under_way:
            if self._said:
                await asyncio.to_thread(self._leave)
            return
        error = ""
        for row, language in rows:
            if row.id in self._prepared:
                continue
            try:
                await self._warm(row, language)
                self._prepared.add(row.id)
            except WhimbrelError as reason:
                error = reason.message
            except Exception as defect:  # of ours or of a library: the switch is to wait for this process, and say why
                logger.error("view %s could not be opened: %s", row.id, place(defect))
                error = spot(defect)
        self._prepared &= {row.id for row, _ in rows}
        await asyncio.to_thread(self._say, error)

    def _read(self) -> tuple[bool, list[tuple[ViewRow, str]]]:
        with self._catalog.read() as connection:
            found = moves.listing(connection, under_way=True, limit=None)
            rows = []
            for move in found:
                collection = collections.by_id(connection, move.collection_id)
                if move.state in _WARM and collection is not None:
                    every = {row.id: row for row in collections.views(connection, move.collection_id)}
                    keys = [key for key in (*move.targets, *move.sources) if key in every]
                    rows += [(every[key], collection.language) for key in keys]
            return bool(found), rows

    def _say(self, error: str) -> None:
        info = {"host": host_name(), "pid": os.getpid()}
        with self._catalog.write() as connection:
            processes.seen(connection, self._id, info, sorted(self._prepared), error)
        self._said = True

    def _leave(self) -> None:
        with self._catalog.write() as connection:
            processes.leave(connection, self._id)
        self._said = False
        self._prepared.clear()
