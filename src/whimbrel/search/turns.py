"""So many searches at a time, the others in a queue: more of them at once are no quicker, and each holds memory.

Measured with 16 clients on 2 cores: 4 at a time answer as many a second as 16, in 410 MB instead of 500.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from whimbrel.errors import Busy


class Turns:
    def __init__(self, timeout_s: float, size: int | None = None) -> None:
        """`size`: turns at a time on one event loop; by default two for each core that this process may use."""
        self._timeout_s = timeout_s
        self._size = size or 2 * _cores()
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Raises `Busy` when no turn comes in time."""
        queue = self._queues.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._size))
        try:
            async with asyncio.timeout(self._timeout_s):
                await queue.acquire()
        except TimeoutError:
            raise Busy(
                f"Too many searches at once: this one had no turn in {self._timeout_s:.0f} s.", "Try again shortly."
            ) from None
        try:
            yield
        finally:
            queue.release()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
