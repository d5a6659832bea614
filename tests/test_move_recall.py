"""What a side of a move is said to find, while others write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from whimbrel.domain import Matches
from whimbrel.move.recall import ExactSearch, K, ask
from whimbrel.stores.base import Store

Floats = npt.NDArray[np.float32]

ROWS = 40
IDS = [f"row {number}" for number in range(ROWS)]


class Holding:
    """A store of some rows, searched exactly."""

    def __init__(self, rows: Mapping[str, Floats]) -> None:
        self.rows = rows

    async def search(self, vector: Floats, k: int) -> Matches:
        scores = {id_: float(row @ vector / np.linalg.norm(vector)) for id_, row in self.rows.items()}
        best = sorted(scores, key=lambda id_: -scores[id_])[:k]
        return Matches(best, np.array([scores[id_] for id_ in best], np.float32))


@pytest.fixture
def rows() -> dict[str, Floats]:
    made = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
    return dict(zip(IDS, made / np.linalg.norm(made, axis=1, keepdims=True), strict=True))


@pytest.fixture
def queries() -> Floats:
    return 3 * np.random.default_rng(1).normal(size=(7, 8)).astype(np.float32)


async def recall(store: Any, queries: Floats, before: Mapping[str, Floats], now: Mapping[str, Floats]) -> float:
    """`before`: the rows of record that the exact search was told of; `now`: those that there are by now."""
    exact = ExactSearch(queries)
    exact.add(list(before), np.array(list(before.values())))

    def still(ids: Sequence[str]) -> dict[str, Floats]:
        return {id_: now[id_] for id_ in ids if id_ in now}

    return (await ask(cast(Store, store), queries, exact, still)).recall


async def test_a_row_that_is_not_there_is_missed(rows: dict[str, Floats], queries: Floats) -> None:
    exact = ExactSearch(queries)
    exact.add(list(rows), np.array(list(rows.values())))
    lost = exact.best()[0][0][3]
    of_lost = sum(lost in right for right, _ in exact.best())
    held = {id_: row for id_, row in rows.items() if id_ != lost}
    found = await recall(Holding(held), queries, rows, rows)
    assert found == pytest.approx(1 - of_lost / (K * len(queries)))


async def test_rows_that_others_deleted_or_changed_meanwhile_are_not(rows: dict[str, Floats], queries: Floats) -> None:
    """A few rows that many queries find are enough for a target to be said to find badly."""
    exact = ExactSearch(queries)
    exact.add(list(rows), np.array(list(rows.values())))
    deleted, changed, same = exact.best()[0][0][:3]
    now = {id_: row for id_, row in rows.items() if id_ != deleted}
    now |= {changed: -rows[changed], "new": queries[0] / np.linalg.norm(queries[0])}
    assert await recall(Holding(now), queries, rows, now) == 1.0
    short = {id_: row for id_, row in now.items() if id_ != same}
    assert await recall(Holding(short), queries, rows, now) < 1.0


async def test_all_that_was_right_is_gone(rows: dict[str, Floats], queries: Floats) -> None:
    assert await recall(Holding({}), queries, rows, {}) == 1.0
    assert await recall(Holding({}), queries, rows, rows) == 0.0
