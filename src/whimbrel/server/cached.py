"""What is asked for often, and read seldom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from whimbrel.errors import WhimbrelError

T = TypeVar("T")

SHARE = 20
"""A reading that took long is not repeated before this many times as long: it costs a twentieth at most."""


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    value: T | None
    """None before the first reading has succeeded."""
    error: WhimbrelError | None
    """Why the last reading failed."""
    overdue_s: float
    """How long a reading has been under way that has not ended."""


class Cached(Generic[T]):
    """The last reading, at once; a new one begins in the background when that is old."""

    def __init__(self, read: Callable[[], Awaitable[T]], fresh_s: float) -> None:
        self._read = read
        self._fresh_s = fresh_s
        self._value: T | None = None
        self._error: WhimbrelError | None = None
        self._began = 0.0
        self._next = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def get(self, wait_s: float) -> Seen[T]:
        """Waits only for a first reading, and no longer than that."""
        now = time.monotonic()
        if self._reading is None and now >= self._next:
            self._began = now
            self._reading = asyncio.create_task(self._again())
        if self._value is None and self._error is None and self._reading is not None:
            await asyncio.wait({self._reading}, timeout=wait_s)
        overdue = time.monotonic() - self._began if self._reading is not None else 0.0
        return Seen(self._value, self._error, overdue)

    async def _again(self) -> None:
        try:
            self._value, self._error = await self._read(), None
        except WhimbrelError as error:
            self._error = error
        finally:
            ended = time.monotonic()
            self._next = ended + max(self._fresh_s, SHARE * (ended - self._began))
            self._reading = None

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
