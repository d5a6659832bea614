"""Searches take turns."""

from __future__ import annotations

import asyncio

import pytest

from whimbrel.errors import Busy
from whimbrel.search.turns import Turns


async def test_no_more_than_so_many_at_a_time_and_each_gets_its_turn() -> None:
    turns = Turns(timeout_s=5, size=3)
    now = most = done = 0

    async def search() -> None:
        nonlocal now, most, done
        async with turns.take():
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            now -= 1
            done += 1

    await asyncio.gather(*(search() for _ in range(50)))
    assert (most, done) == (3, 50)


async def test_one_that_waits_too_long_is_sent_away_and_takes_no_turn_from_others() -> None:
    turns = Turns(timeout_s=0.05, size=1)
    async with turns.take():
        with pytest.raises(Busy):
            async with turns.take():
                pytest.fail("two turns at once")
    async with turns.take():
        pass


def test_each_event_loop_has_its_own() -> None:
    turns = Turns(timeout_s=5, size=1)

    async def crowd() -> None:
        async def one() -> None:
            async with turns.take():
                await asyncio.sleep(0)

        await asyncio.gather(one(), one(), one())

    asyncio.run(crowd())
    asyncio.run(crowd())
