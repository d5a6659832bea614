"""Searches: the nearest rows, their scores, and how many of the true nearest are found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from whimbrel.domain import Space
from whimbrel.filters import parse
from whimbrel.stores.base import DENSE, Metric, Records, Store, Vectors
from whimbrel.stores.metrics import measure, scores
from whimbrel.testing.base import NewPlace, StoreSuite
from whimbrel.testing.filtering import search_where
from whimbrel.testing.place import Place, rows_of, unit_vectors
from whimbrel.testing.texts import QUERIES, embedded

RECALL = 0.95
TOLERANCE = 2e-6
"""Of a score: a database computes in float32."""


class Searching(StoreSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def real(cls, new_place: NewPlace) -> tuple[Place, Space, Vectors, Vectors]:
        """A table of real embeddings, as it is after a bulk load: its place and space, its vectors, and queries."""
        texts, vectors, space = embedded()
        place = new_place()

        async def fill() -> None:
            async with place.table(space=space) as store:
                await store.begin_bulk()
                ids = [f"{row:06d}" for row in range(len(texts) - QUERIES)]
                metadata = [{"tenth": row % 10 == 0, "row": row} for row in range(len(ids))]
                rows = Records(ids, {DENSE: vectors[:-QUERIES]}, texts[:-QUERIES], metadata)
                for start in range(0, len(ids), 2_000):
                    await store.upsert(rows.between(start, start + 2_000), new=True)
                await store.end_bulk()
                await store.maintain(full=True)

        asyncio.run(fill())
        return place, space, vectors[:-QUERIES], vectors[-QUERIES:]

    async def test_recall_on_real_embeddings(
        self, real: tuple[Place, Space, Vectors, Vectors], record_property: Callable[[str, object], None]
    ) -> None:
        """Recall@10 against exact search, on real embeddings, is at least 0.95"""
        place, space, vectors, queries = real
        store = place.store(space=space)
        recall = [await _recall(store, vectors, query, None) for query in queries]
        filtered = [await _recall(store, vectors, query, {"tenth": True}) for query in queries]
        await store.close()
        record_property("recall@10", f"{np.mean(recall):.3f}")
        record_property("recall@10, a filter keeps a tenth", f"{np.mean(filtered):.3f}")
        assert np.mean(recall) >= RECALL
        assert np.mean(filtered) >= RECALL

    async def test_scores_are_the_formula(self, real: tuple[Place, Space, Vectors, Vectors]) -> None:
        """A score is max(0, cosine) whatever the metric, computed from the whole vectors; best first"""
        place, space, vectors, queries = real
        store = place.store(space=space)
        for query in [*queries[:20], vectors[0], -vectors[0]]:
            found = await store.search(query, 20)
            assert len(found.ids) == 20
            assert found.scores.dtype == np.float32
            due = scores(Metric.COSINE, measure(Metric.COSINE, vectors[[int(id_) for id_ in found.ids]], query))
            assert np.allclose(found.scores, due, atol=TOLERANCE)
            assert (np.diff(found.scores) <= 0).all()
            assert found.scores.min() >= 0.0
            assert found.scores.max() <= 1.0
        assert (await store.search(-vectors[0], 1)).scores[0] < 1.0
        await store.close()

    async def test_a_search_gives_k_rows(self, store: Store) -> None:
        """A search gives k rows, and all rows where there are fewer; those that point away score 0"""
        rows = rows_of([{}] * 300)
        await store.upsert(rows, new=True)
        query = unit_vectors(1, seed=99)[0]
        for k in (1, 10, 299, 300, 1_000):
            found = await store.search(query, k)
            assert len(found.ids) == len(set(found.ids)) == min(k, 300)
        everything = await store.search(query, 1_000)
        assert everything.scores.min() == 0.0
        assert list((await store.search(query, 0)).ids) == []

    async def test_ties_break_by_id(self, store: Store) -> None:
        """Rows of one score are ordered by id, also where the k-th place is tied"""
        same = np.repeat(unit_vectors(1), 200, axis=0)
        ids = [f"{(i * 7919) % 200:06d}" for i in range(200)]
        await store.upsert(Records(ids, {DENSE: same}, ids, [{}] * 200), new=True)
        near = unit_vectors(1)[0]
        for k in (1, 20, 200):
            assert list((await store.search(near, k)).ids) == sorted(ids)[:k]

    async def test_vectors_of_any_length_are_compared_by_direction(self, store: Store) -> None:
        """Vectors and queries that are not of length 1 are compared by their direction"""
        vectors = unit_vectors(50) * np.linspace(0.01, 100.0, 50, dtype=np.float32)[:, None]
        rows = rows_of([{}] * 50)
        await store.upsert(Records(rows.ids, {DENSE: vectors}, rows.texts, rows.metadata), new=True)
        query = unit_vectors(1, seed=3)[0] * 7
        due = scores(Metric.COSINE, measure(Metric.COSINE, vectors, query))
        found = await store.search(query, 5)
        assert np.allclose(found.scores, np.sort(due)[::-1][:5], atol=TOLERANCE)

    async def test_search_within_given_ids(self, store: Store) -> None:
        """A search can be held to given ids, with a filter too; unknown ones are ignored"""
        await store.upsert(rows_of([{"even": i % 2 == 0} for i in range(200)]), new=True)
        many = min(store.describe().max_ids, 10_000)
        wanted = [f"{i:06d}" for i in range(100, 200)] + [f"no'{i}" for i in range(many - 100)]
        found = await store.search(unit_vectors(1)[0], 150, ids=wanted)
        assert sorted(found.ids) == [f"{i:06d}" for i in range(100, 200)]
        where = parse({"even": True})
        assert where
        if store.answers(where):
            found = await store.search(unit_vectors(1)[0], 60, where, ids=wanted)
            assert sorted(found.ids) == [f"{i:06d}" for i in range(100, 200, 2)]
        assert list((await store.search(unit_vectors(1)[0], 5, ids=[])).ids) == []
        assert list((await store.search(unit_vectors(1)[0], 5, ids=["unknown"])).ids) == []


async def _recall(store: Store, vectors: Vectors, query: Vectors, raw: dict[str, bool] | None) -> float:
    """Share of the ten nearest rows that a search finds; rows as near as the tenth count."""
    rows = np.arange(len(vectors)) if raw is None else np.arange(0, len(vectors), 10)
    exact = measure(Metric.COSINE, vectors[rows], query)
    tenth = np.sort(exact)[-10]
    if raw is None:
        found = await store.search(query, 10)
    else:
        metadata = {f"{row:06d}": {"tenth": row % 10 == 0} for row in range(len(vectors))}
        found = await search_where(store, query, 10, raw, metadata)
    hits = [int(id_) for id_ in found.ids]
    assert set(hits) <= set(rows.tolist())
    return float(np.mean(measure(Metric.COSINE, vectors[hits], query) >= tenth - TOLERANCE) * len(hits) / 10)
