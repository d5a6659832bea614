"""The suite of stores finds what it is for: each of these stores has one fault, and fails."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.memory_store import MemoryStore

from whimbrel.domain import Matches, Position
from whimbrel.stores.base import DENSE, Records, Store
from whimbrel.testing import Place, StoreConformance

FAULTS: list[tuple[type[Store], str]] = []


def fault(test: str) -> Any:
    """The store has a fault, which this test of the suite finds."""

    def keep(store: type[Store]) -> type[Store]:
        FAULTS.append((store, test))
        return store

    return keep


@fault("test_metadata_comes_back_as_it_was_given")
class DropsNulls(MemoryStore):
    async def upsert(self, records: Records, *, new: bool = False) -> None:
        kept = [{key: value for key, value in one.items() if value is not None} for one in records.metadata]
        await super().upsert(Records(records.ids, records.vectors, records.texts, kept), new=new)


@fault("test_metadata_comes_back_as_it_was_given")
class RoundsIntegers(MemoryStore):
    async def upsert(self, records: Records, *, new: bool = False) -> None:
        kept = [{k: int(float(v)) if type(v) is int else v for k, v in one.items()} for one in records.metadata]
        await super().upsert(Records(records.ids, records.vectors, records.texts, kept), new=new)


@fault("test_ids_of_any_form_are_kept_apart")
class TrimsIds(MemoryStore):
    async def upsert(self, records: Records, *, new: bool = False) -> None:
        ids = [id_.strip() for id_ in records.ids]
        await super().upsert(Records(ids, records.vectors, records.texts, records.metadata), new=new)


@fault("test_rows_are_written_replaced_and_removed")
@fault("test_an_id_that_comes_twice_is_one_row")
class KeepsTheFirst(MemoryStore):
    async def upsert(self, records: Records, *, new: bool = False) -> None:
        known = set(await self.ids())
        fresh = [row for row, id_ in enumerate(records.ids) if id_ not in known and id_ not in records.ids[:row]]
        await super().upsert(records.taken(fresh), new=new)


@fault("test_rows_are_written_replaced_and_removed")
class MergesMetadata(MemoryStore):
    async def upsert(self, records: Records, *, new: bool = False) -> None:
        before = await self.fetch(records.ids)
        old = dict(zip(before.ids, before.metadata, strict=True))
        merged = [{**old.get(id_, {}), **one} for id_, one in zip(records.ids, records.metadata, strict=True)]
        await super().upsert(Records(records.ids, records.vectors, records.texts, merged), new=new)


@fault("test_a_table_is_made_once_and_dropped_alone")
class EmptyInPlaceOfAnError(MemoryStore):
    async def count(self) -> int:
        return await super().count() if await self.exists() else 0


@fault("test_ties_break_by_id")
class OrdersTiesAsTheyCame(MemoryStore):
    async def search(self, vector: Any, k: int, where: Any = None, *, ids: Sequence[str] | None = None) -> Matches:
        found = await super().search(vector, 10**6, where, ids=ids)
        order = sorted(range(len(found.ids)), key=lambda i: (-found.scores[i], hash(found.ids[i])))[:k]
        return Matches([found.ids[i] for i in order], found.scores[order])


@fault("test_a_search_gives_k_rows")
class ReportsDistances(MemoryStore):
    async def search(self, vector: Any, k: int, where: Any = None, *, ids: Sequence[str] | None = None) -> Matches:
        found = await super().search(vector, k, where, ids=ids)
        return Matches(found.ids, (1 - found.scores).astype(np.float32))


@fault("test_each_operator")
class IgnoresFilters(MemoryStore):
    async def search(self, vector: Any, k: int, where: Any = None, *, ids: Sequence[str] | None = None) -> Matches:
        return await super().search(vector, k, ids=ids)


@fault("test_large_filters")
class FiltersAfterwards(MemoryStore):
    async def search(self, vector: Any, k: int, where: Any = None, *, ids: Sequence[str] | None = None) -> Matches:
        found = await super().search(vector, k // 10)
        allowed = set((await super().search(vector, 10**6, where, ids=ids)).ids)
        kept = [i for i, id_ in enumerate(found.ids) if id_ in allowed]
        return Matches([found.ids[i] for i in kept], found.scores[kept])


@fault("test_a_scan_outlives_deletes")
class ScansByOffset(MemoryStore):
    async def scan(self, batch: int = 5_000) -> AsyncIterator[Records]:
        start = 0
        while part := (await self.ids())[start : start + batch]:
            yield await self.fetch(part)
            start += batch


@fault("test_the_position_is_kept_with_the_data")
class PositionIsARow(MemoryStore):
    async def set_position(self, position: Position) -> None:
        await super().set_position(position)
        vector = np.ones((1, self._space.dimensions), np.float32)
        await self.upsert(Records(["__position__"], {DENSE: vector}, [""], [{}]))


@fault("test_a_batch_applied_again_changes_nothing")
class InsertsTwice(MemoryStore):
    async def scan(self, batch: int = 5_000) -> AsyncIterator[Records]:
        async for part in super().scan(batch):
            yield Records.joined([part, part.between(0, 1)], self._space.dimensions)


@fault("test_wrong_vectors_are_refused")
class TakesNaN(MemoryStore):
    async def upsert(self, records: Records, *, new: bool = False) -> None:
        vectors = np.nan_to_num(records.vectors[DENSE])
        await super().upsert(Records(records.ids, {DENSE: vectors}, records.texts, records.metadata), new=new)


@fault("test_what_is_read_only_is_not_written")
class WritesWhenReadOnly(MemoryStore):
    def _check_writable(self) -> None:
        pass


@pytest.mark.parametrize(("store", "test"), FAULTS, ids=[f"{one.__name__}-{test}" for one, test in FAULTS])
async def test_a_fault_is_found(tmp_path: Path, store: type[Store], test: str) -> None:
    suite = StoreConformance()
    place = Place(f"memory:{uuid.uuid4()}", tmp_path, opener=f"tests.test_conformance:{store.__name__}")
    check = getattr(suite, test)
    wanted = check.__code__.co_varnames[1 : check.__code__.co_argcount]
    async with place.table() as opened:
        given = {"store": opened, "new_place": lambda: Place(f"memory:{uuid.uuid4()}", tmp_path, place.opener)}
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            await check(**{name: given[name] for name in wanted})
