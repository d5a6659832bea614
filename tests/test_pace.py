"""Work on rows gives way to searches, and to nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from running import Toy
from whimbrel import Whimbrel
from whimbrel.models.embedders import resolve
from whimbrel.owner import ahead as ahead_module
from whimbrel.owner.ahead import ahead
from whimbrel.owner.pace import LONGEST_S, RECENT_S, TRAFFIC, Traffic


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No rest is taken; they are noted."""
    found: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        found.append(seconds)
        await sleep(0)

    monkeypatch.setattr("whimbrel.owner.pace.asyncio.sleep", noted)
    return found


async def test_it_rests_as_long_as_it_worked_while_somebody_searches(rests: list[float]) -> None:
    traffic = Traffic()
    await traffic.give_way(0.25)
    assert rests == []
    with traffic.searching():
        await traffic.give_way(0.25)
        await traffic.give_way(99.0)
    assert rests == [0.25, LONGEST_S]


async def test_who_searched_just_now_may_search_again(rests: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("whimbrel.owner.pace.time.monotonic", lambda: now)
    traffic = Traffic()
    with pytest.raises(ValueError, match="bad"), traffic.searching():
        raise ValueError("bad")
    assert traffic.busy
    now += RECENT_S
    assert not traffic.busy
    await traffic.give_way(1.0)
    assert rests == []


async def test_nothing_is_read_ahead_while_somebody_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = Traffic()
    monkeypatch.setattr(ahead_module, "TRAFFIC", traffic)
    read: list[int] = []

    async def batches() -> AsyncGenerator[int, None]:
        for number in range(4):
            read.append(number)
            yield number

    taken = []
    reader = ahead(batches())
    async for number in reader:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        taken.append((number, list(read)))
        if number == 1:
            search = traffic.searching()
            search.__enter__()
    assert taken == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2]), (3, [0, 1, 2, 3])]


def test_a_search_of_a_home_is_traffic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    class Watching(Toy):
        def embed(self, *args: object, **options: object):  # type: ignore[no-untyped-def, override]
            seen.append(TRAFFIC.busy)
            return super().embed(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setitem(resolve._PROVIDERS, "watching", lambda _model, _threads: Watching())
    with Whimbrel(home=tmp_path / "home", embedder="watching") as whimbrel:
        monkeypatch.setattr(TRAFFIC, "_ended", float("-inf"))
        whimbrel.add([{"id": "a", "text": "The whimbrel flies far."}])
        assert seen
        assert not any(seen)
        whimbrel.search("whimbrel")
        assert seen[-1]
