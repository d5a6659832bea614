"""Reading ahead: what is read early is what would have been read late, and nobody is left reading."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from whimbrel.owner.ahead import Ahead, ahead


class Reader:
    """Reads numbers, when it is let; may fail."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.cancelled: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False

    async def __call__(self, after: int) -> int:
        self.read.append(after)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(after)
            raise
        if self.fails:
            raise OSError("no disk")
        return after + 1


async def test_what_was_begun_is_taken_and_not_read_again() -> None:
    reader = Reader()
    reading = Ahead(reader)
    assert await reading.take(0) == 1
    reading.begin(1)
    await asyncio.sleep(0)
    assert reader.read == [0, 1]
    assert await reading.take(1) == 2
    assert reader.read == [0, 1]


async def test_what_was_begun_elsewhere_is_left() -> None:
    reader = Reader()
    reading = Ahead(reader)
    reading.begin(5)
    assert await reading.take(1) == 2


async def test_a_failure_is_told_to_who_takes_and_what_failed_is_read_again() -> None:
    reader = Reader()
    reading = Ahead(reader)
    reader.fails = True
    reading.begin(1)
    with pytest.raises(OSError, match="no disk"):
        await reading.take(1)
    reader.fails = False
    assert await reading.take(1) == 2
    assert reader.read == [1, 1]


async def test_what_is_forgotten_ends() -> None:
    reader = Reader()
    reading = Ahead(reader)
    reader.gate.clear()
    reading.begin(1)
    await asyncio.sleep(0)
    reading.forget()
    await asyncio.sleep(0)
    assert reader.cancelled == [1]


async def test_batches_come_in_their_order_one_ahead() -> None:
    made: list[int] = []

    async def batches() -> AsyncGenerator[int, None]:
        for number in range(4):
            made.append(number)
            yield number

    seen = []
    async for number in ahead(batches()):
        await asyncio.sleep(0)
        seen.append(number)
        assert made[-1] == min(number + 1, 3)
    assert seen == [0, 1, 2, 3]


async def test_who_stops_early_closes_what_he_read_from() -> None:
    closed = []

    async def batches() -> AsyncGenerator[int, None]:
        try:
            for number in range(10):
                yield number
        finally:
            closed.append(True)

    reading = ahead(batches())
    assert await anext(reading) == 0
    await reading.aclose()
    assert closed == [True]


async def test_an_error_of_a_later_batch_comes_after_the_earlier_ones() -> None:
    async def batches() -> AsyncGenerator[int, None]:
        yield 0
        raise OSError("no disk")

    reading = ahead(batches())
    assert await anext(reading) == 0
    with pytest.raises(OSError, match="no disk"):
        await anext(reading)
