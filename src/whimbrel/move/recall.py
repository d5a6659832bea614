"""How well a store finds: its ten nearest against the ten that an exact search over the vectors of record finds.

Two indexes of the same vectors find different neighbours (of 0.61 recall each, 0.61 in common), so each side is judged
against exact search, never against the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Matches
from whimbrel.owner.pace import TRAFFIC
from whimbrel.stores.base import Store

K = 10
TIED = 1e-5
"""Of a score: rows that are as near as another, within rounding, are as right as it."""

Floats = npt.NDArray[np.float32]


class ExactSearch:
    """The `k` nearest rows to each of some vectors by cosine similarity, over rows that come in blocks.

    Memory is that of one block's products, whatever the number of rows.
    """

    def __init__(self, queries: Floats, k: int = K) -> None:
        """`queries`: float32[n, d]."""
        self._queries = _unit(queries)
        self._k = k
        self._ids: list[list[str]] = [[] for _ in range(len(queries))]
        self._scores: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32) for _ in range(len(queries))]

    def add(self, ids: Sequence[str], vectors: Floats) -> None:
        """A block of rows, float32[m, d]; none of them came before."""
        if not len(ids) or not len(self._ids):
            return
        products = self._queries @ _unit(vectors).T
        count = min(self._k, len(ids))
        best = np.argpartition(-products, count - 1, axis=1)[:, :count]
        for query, rows in enumerate(best):
            scores = np.concatenate([self._scores[query], products[query, rows]])
            names = self._ids[query] + [ids[row] for row in rows]
            order = np.argsort(-scores, kind="stable")[: self._k]
            self._scores[query] = scores[order]
            self._ids[query] = [names[place] for place in order]

    def best(self) -> list[tuple[list[str], npt.NDArray[np.float32]]]:
        """For each query the ids, nearest first, and their cosine similarities."""
        return list(zip(self._ids, self._scores, strict=True))


@dataclass(frozen=True, slots=True)
class Found:
    """How one side answered."""

    recall: float
    """Mean share of the nearest ten that were found."""
    p50_ms: float
    p95_ms: float
    ids: Sequence[Sequence[str]]
    """What each query found."""

    def as_dict(self, queries: int) -> dict[str, float]:
        return {
            f"recall@{K}": round(self.recall, 4),
            "p50_ms": round(self.p50_ms, 2),
            "p95_ms": round(self.p95_ms, 2),
            "queries": queries,
        }


async def ask(
    store: Store, queries: Floats, exact: ExactSearch, now: Callable[[Sequence[str]], Mapping[str, Floats]]
) -> Found:
    """Search a store with each query, one after another, and compare with what is right.

    `now`: of those rows that there are still, their vectors of record. A row that was deleted or changed since `exact`
    was told of it is not missed.
    """
    asked: list[_Asked] = []
    if len(queries):
        await store.search(queries[0], K)  # what a first search opens is not a later one's time
    for query, unit, (right, _) in zip(queries, _unit(queries), exact.best(), strict=True):
        began = time.perf_counter()
        found = await store.search(query, K)
        asked.append(_Asked(unit, right, found, time.perf_counter() - began))
        await TRAFFIC.give_way(asked[-1].seconds)
        await asyncio.sleep(0)
    missed = sorted({id_ for one in asked for id_ in one.missed})
    vectors = await asyncio.to_thread(now, missed) if missed else {}
    there = {id_: _unit(vector[np.newaxis])[0] for id_, vector in vectors.items()}
    shares = [share for one in asked if (share := one.share(there)) is not None]
    times = np.array([one.seconds for one in asked] or [0.0]) * 1000
    return Found(
        float(np.mean(shares)) if shares else 1.0,
        float(np.median(times)),
        float(np.percentile(times, 95)),
        [list(one.found.ids) for one in asked],
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    query: Floats
    right: Sequence[str]
    found: Matches
    seconds: float

    @property
    def missed(self) -> set[str]:
        return set(self.right).difference(self.found.ids)

    def share(self, there: Mapping[str, Floats]) -> float | None:
        """Of the nearest rows that there are still, how many were found; None where none is left. `there`: missed ones
        of these, each with its vector, of length 1. One that is no nearer than what was found in its place, within
        rounding, is not missed."""
        left = len(self.right) - len(self.missed - there.keys())
        if not left:
            return None
        worst = float(np.min(self.found.scores)) if len(self.found.ids) >= K else -1.0
        missed = sum(float(there[id_] @ self.query) > worst + TIED for id_ in self.missed & there.keys())
        return 1 - missed / left


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = (vectors / np.maximum(lengths, 1e-30)).astype(np.float32)
    return unit
