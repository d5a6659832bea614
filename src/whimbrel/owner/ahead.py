"""Work that is a batch ahead of who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from whimbrel.owner.pace import TRAFFIC

T = TypeVar("T")


class Ahead(Generic[T]):
    """Reads by a cursor: what comes after it is read while what was read before is being written."""

    def __init__(self, read: Callable[[int], Awaitable[T]]) -> None:
        """`read` is given a cursor, and gives what comes after it."""
        self._read = read
        self._coming: tuple[int, asyncio.Future[T]] | None = None

    async def take(self, after: int) -> T:
        """What comes after the cursor. Raises what reading it raised; it is read again at the next call then."""
        coming, self._coming = self._coming, None
        if coming is None or coming[0] != after:
            return await self._read(after)
        return await coming[1]

    def begin(self, after: int) -> None:
        """Read what comes after the cursor, for the next `take`."""
        self.forget()
        task = asyncio.ensure_future(self._read(after))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # `take` raises it, if it is called
        self._coming = (after, task)

    def forget(self) -> None:
        """Nobody will take what is being read."""
        if self._coming is not None:
            self._coming[1].cancel()
            self._coming = None


async def ahead(batches: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same batches; the next is on its way while one is worked on, unless somebody searches: one core is theirs."""
    async with aclosing(batches):
        coming: asyncio.Future[tuple[T] | None] | None = None
        try:
            while found := await (coming or _next(batches)):
                coming = None if TRAFFIC.busy else asyncio.ensure_future(_next(batches))
                yield found[0]
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)


async def _next(batches: AsyncGenerator[T, None]) -> tuple[T] | None:
    """None at the end."""
    async for batch in batches:
        return (batch,)
    return None
