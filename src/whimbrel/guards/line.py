"""Concurrency: so many calls at a time, so many in line; whoever comes after is refused at once."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from whimbrel.errors import ModelQueueFull

_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Line:
    """Of one kind of call, for all event loops of this process.

    Bulk work (many texts at once, as in ingestion) gives way: it takes at most half of the places, waits behind the
    others, and is never refused, as it is bounded where it comes from.
    """

    def __init__(self, what: str, at_once: int, waiting: int) -> None:
        self._what = what
        self._free = at_once
        self._bulk_free = max(at_once // 2, 1)
        self._waiting = waiting
        self._lock = threading.Lock()
        self._line: deque[_Waiter] = deque()
        self._bulk_line: deque[_Waiter] = deque()

    @asynccontextmanager
    async def place(self, *, bulk: bool = False) -> AsyncGenerator[None]:
        """Raises `ModelQueueFull`."""
        waiter = self._enter(bulk)
        if waiter is not None:
            await self._wait(waiter, bulk)
        try:
            yield
        finally:
            self._leave(bulk)

    def _enter(self, bulk: bool) -> _Waiter | None:
        with self._lock:
            if self._free and not self._line and (not bulk or self._bulk_free):
                self._take(bulk)
                return None
            if not bulk and len(self._line) >= self._waiting:
                raise ModelQueueFull(
                    f"{self._waiting:,} calls that {self._what} are in line already. Nothing was sent.",
                    "Try again shortly; or raise `guards.max_waiting`, or what may run at once.",
                )
            loop = asyncio.get_running_loop()
            waiter = loop, loop.create_future()
            (self._bulk_line if bulk else self._line).append(waiter)
            return waiter

    async def _wait(self, waiter: _Waiter, bulk: bool) -> None:
        try:
            await waiter[1]
        except asyncio.CancelledError:
            with self._lock:
                line = self._bulk_line if bulk else self._line
                had_place = waiter not in line
                if not had_place:
                    line.remove(waiter)
            if had_place:
                self._leave(bulk)
            raise

    def _leave(self, bulk: bool) -> None:
        with self._lock:
            self._free += 1
            self._bulk_free += bulk
            while self._free and self._line:
                self._take(False)
                _wake(self._line.popleft())
            while self._free and self._bulk_free and self._bulk_line:
                self._take(True)
                _wake(self._bulk_line.popleft())

    def _take(self, bulk: bool) -> None:
        self._free -= 1
        self._bulk_free -= bulk


def _wake(waiter: _Waiter) -> None:
    loop, future = waiter

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    with suppress(RuntimeError):  # its loop is closed, and with it whoever waited
        loop.call_soon_threadsafe(wake)
