"""Filters mean the same in every store: what `whimbrel.testing.passes` says, row by row."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whimbrel.domain import Matches, Metadata, Space
from whimbrel.errors import BadFilter
from whimbrel.filters import parse
from whimbrel.stores.base import DENSE, Records, Store, Vectors
from whimbrel.testing.base import NewPlace, StoreSuite
from whimbrel.testing.place import Place, rows_of, unit_vectors
from whimbrel.testing.reference import passes
from whimbrel.testing.strategies import filters, foreign_metadatas

ROWS: list[dict[str, Any]] = [
    {},
    {"year": 2020},
    {"year": 2024.0},
    {"year": "2024"},
    {"year": None},
    {"year": [2019, 2024]},
    {"year": []},
    {"year": True},
    {"year": 2**53},
    {"year": 2**53 + 1},
    {"year": -0.5},
    {"site": "docs", "tags": ["a", "b"]},
    {"site": "Docs", "tags": ["A"]},
    {"site": "", "tags": [1, "a", False]},
    {"site": "docs", "year": 2024, "draft": False},
    {"at": "2024-02-29T12:00:00.000000Z"},
    {"at": "2024-03-01T00:00:00.000000Z"},
    {"a": {"b": {"c": 1}}, "deep": [{"x": 1}, {"x": "two"}]},
    {"a.b.c": 2},
    {"tags": ["\U00010000"]},
    {"tags": ["\uffff"]},
]
FILTERS: list[dict[str, Any]] = [
    *({"year": value} for value in (2024, 2024.0, "2024", True, None, 2**53, 2**53 + 1, 0)),
    *({"year": {"$ne": value}} for value in (2024, "2024", True, None, 2**53 + 1)),
    *({"year": {op: value}} for op in ("$gt", "$gte", "$lt", "$lte") for value in (2024, 2023.5, 2**53, -1, "2", "")),
    *({"tags": {op: value}} for op in ("$gt", "$lte") for value in ("a", "\uffff", 0)),
    *({"year": {"$in": values}} for values in ([], [2020, 2024], ["2024", True], [2**53 + 1])),
    *({"year": {"$nin": values}} for values in ([], [2020, 2024], ["2024", True], [2**53 + 1])),
    *({path: {"$exists": there}} for path in ("year", "tags", "a", "a.b.c", "deep.x", "no") for there in (True, False)),
    *({"tags": {"$contains": value}} for value in ("a", "A", 1, False, "c")),
    *({"site": value} for value in ("docs", "Docs", "", "no")),
    {"at": {"$gte": "2024-02-29", "$lt": "2024-03-01"}},
    {"a.b.c": {"$gte": 1}},
    {"deep.x": "two"},
    {"site": "docs", "year": {"$gte": 2020}},
    {"$and": []},
    {"$or": []},
    {"$or": [{"year": {"$gt": 2020}}, {"tags": "a"}, {"$and": [{"site": "Docs"}, {"year": {"$exists": False}}]}]},
    {"$not": {"$or": [{"year": {"$lt": 3000}}, {"tags": {"$exists": True}}]}},
    {"$not": {"site": "docs", "year": 2024}},
]
"""Each operator; missing keys, nulls, arrays, types that do not mix, dates, nested keys, numbers past 2^53."""


class Filtering(StoreSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def selective(cls, new_place: NewPlace) -> tuple[Place, Space, Vectors]:
        """A table in clusters; `one` marks 1 % of its rows, `rare` 0.01 %, both far from most queries too."""
        count = cls.selective_rows
        generator = np.random.default_rng(7)
        centres = generator.normal(size=(100, 32))
        vectors = centres[generator.integers(0, 100, count)] + 0.6 * generator.normal(size=(count, 32))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        space, place = Space("conformance", "1", 32), new_place()

        async def fill() -> None:
            async with place.table(space=space) as store:
                await store.begin_bulk()
                for start in range(0, count, 5_000):
                    rows = range(start, min(start + 5_000, count))
                    ids = [f"{row:06d}" for row in rows]
                    await store.upsert(
                        Records(ids, {DENSE: vectors[start : rows.stop]}, ids, [_marks(row) for row in rows]), new=True
                    )
                await store.end_bulk()
                await store.maintain()

        asyncio.run(fill())
        return place, space, vectors

    async def test_each_operator(self, store: Store) -> None:
        """Each operator, on missing keys, nulls, arrays, types that do not mix, dates and numbers past 2^53"""
        await store.upsert(rows_of(ROWS), new=True)
        metadata = {f"{row:06d}": one for row, one in enumerate(ROWS)}
        for raw in FILTERS:
            await check(store, raw, metadata)

    def test_random_filters_on_random_metadata(self, new_place: NewPlace) -> None:
        """Random filters on random metadata mean what plain Python says"""
        place = new_place()
        tables = iter(range(1_000_000))

        @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(foreign_metadatas, min_size=1, max_size=12), st.lists(filters, min_size=1, max_size=8))
        def agree(metadata: list[dict[str, Any]], raws: list[dict[str, Any]]) -> None:
            async def work() -> None:
                async with place.table(f"random{next(tables)}") as store:
                    half = len(metadata) // 2
                    await store.upsert(rows_of(metadata[:half]), new=True)
                    await store.upsert(rows_of(metadata[half:], first=half), new=True)
                    held = {f"{row:06d}": one for row, one in enumerate(metadata)}
                    try:
                        for raw in raws:
                            await check(store, raw, held)
                    finally:
                        await store.drop()

            asyncio.run(work())

        agree()

    async def test_large_filters(self, store: Store) -> None:
        """A filter 30 levels deep, one of 1,000 comparisons, one of 10,000 values"""
        rows: list[dict[str, Any]] = [{"n": i, "s": str(i)} for i in range(40)]
        await store.upsert(rows_of(rows), new=True)
        deep: Any = {"n": 5}
        for level in range(30):
            deep = (
                {"$not": deep} if level % 3 == 2 else {"$or" if level % 2 else "$and": [deep, {"n": {"$gte": -level}}]}
            )
        metadata = {f"{row:06d}": one for row, one in enumerate(rows)}
        await check(store, deep, metadata)
        await check(store, {"$or": [{"n": i} for i in range(0, 2_000, 2)]}, metadata)
        await check(store, {"s": {"$in": [str(i) for i in range(0, 20_000, 2)]}}, metadata)

    async def test_filters_that_keep_few_rows_give_k_hits(self, selective: tuple[Place, Space, Vectors]) -> None:
        """Filters that keep 1 % or 0.01 % of the rows give k hits, the nearest ones, wherever the query is"""
        place, space, vectors = selective
        metadata = {f"{row:06d}": _marks(row) for row in range(len(vectors))}
        store = place.store(space=space)
        rare = [row for row in range(len(vectors)) if _marks(row)["rare"]]
        ones = [row for row in range(len(vectors)) if _marks(row)["one"]]
        for raw, rows, k in (({"one": True}, ones, 50), ({"rare": True}, rare, 10), ({"one": True, "n": 0}, ones, 20)):
            passing = np.array([row for row in rows if passes(raw, _marks(row))])
            wanted = min(k, len(passing))
            found_of_wanted = 0
            for query in vectors[5:15]:
                best = passing[np.argsort(-(vectors[passing] @ query), kind="stable")[:wanted]]
                found = await search_where(store, query, k, raw, metadata)
                assert len(found.ids) == wanted, f"{len(found.ids)} hits of {wanted} for {raw}"
                found_of_wanted += len({int(id_) for id_ in found.ids} & set(best.tolist()))
            assert found_of_wanted >= 0.95 * 10 * wanted
        await store.close()


def _marks(row: int) -> dict[str, Any]:
    return {"one": row % 100 == 0, "rare": row % 10_000 == 3, "n": row % 50}


async def check(store: Store, raw: dict[str, Any], metadata: Mapping[str, Metadata]) -> None:
    """A search that lets every row through but for the filter finds exactly the rows that pass."""
    due = sorted(id_ for id_, one in metadata.items() if passes(raw, one))
    found = await search_where(store, unit_vectors(1)[0], len(metadata) + 10, raw, metadata)
    assert sorted(found.ids) == due, raw


async def search_where(
    store: Store, vector: Vectors, k: int, raw: Mapping[str, Any], metadata: Mapping[str, Metadata]
) -> Matches:
    """As the search engine does it: by the store itself, or through ids where it does not answer the filter, which it
    then refuses. `metadata` is what the table holds, by id."""
    where = parse(raw)
    if where is None or store.answers(where):
        return await store.search(vector, k, where)
    with pytest.raises(BadFilter):
        await store.search(vector, k, where)
    return await store.search(vector, k, ids=[id_ for id_, one in metadata.items() if passes(raw, one)])
