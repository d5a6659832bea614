"""`kill -9`, reopening, and what is left of what was deleted."""

from __future__ import annotations

import asyncio
import time

import pytest

from whimbrel.domain import Position
from whimbrel.stores.base import Store
from whimbrel.testing.base import NewPlace, StoreSuite
from whimbrel.testing.child import batch_of
from whimbrel.testing.filtering import search_where
from whimbrel.testing.place import by_id, rows_of, scanned, unit_vectors


class Surviving(StoreSuite):
    async def test_a_closed_table_is_opened_again(self, new_place: NewPlace) -> None:
        """A table that was closed is as it was, by another handle or the same"""
        place = new_place()
        rows = rows_of([{"n": i, "odd": {"a": [i]}} for i in range(300)])
        async with place.table() as store:
            await store.upsert(rows, new=True)
            await store.set_position(Position("e", 3, "s"))
            await store.close()
            assert await store.count() == 300
        again = place.store()
        assert await again.exists()
        assert by_id(await scanned(again)) == by_id(rows)
        assert await again.position() == Position("e", 3, "s")
        await again.upsert(rows_of([{"n": "new"}], first=299))
        assert await again.count() == 300
        await again.close()

    @pytest.mark.parametrize("after", [0.0, 0.053], ids=["between", "within"])
    async def test_a_killed_writer_loses_nothing_that_it_had_committed(self, new_place: NewPlace, after: float) -> None:
        """After `kill -9` of the writer every committed batch is there, whole; the position is not ahead of the rows"""
        self._needs_processes()
        place = new_place()
        writer = place.process("write")
        assert writer.stdout
        told = 0
        while told < 3:
            line = await asyncio.to_thread(writer.stdout.readline)
            assert line, "the writer ended by itself"
            told = int(line)
        time.sleep(after)
        writer.kill()
        told = max([told, *map(int, writer.stdout.read().split())])
        writer.wait()

        store = place.store()
        await _at_rest(store)
        position = await store.position()
        assert position is not None
        assert position.position in (told, told + 1)
        found = by_id(await scanned(store))
        assert len(found) == await store.count() == len(await store.ids())
        for number in range(max(1, told - 4), told + 1):
            for id_ in batch_of(number).ids:
                batch = int(found[id_][0].split()[0])
                assert batch >= number, f"row {id_} of batch {number} is that of batch {batch}"
        redone = batch_of(position.position + 1)
        await store.apply(redone, [], Position("epoch", position.position + 1, "again"))
        assert by_id(await store.fetch(redone.ids)) == by_id(redone)
        assert list((await store.search(redone.vectors["dense"][5], 1)).ids) == [redone.ids[5]]
        await store.close()

    async def test_what_is_deleted_is_not_found(self, new_place: NewPlace) -> None:
        """Deleted and replaced rows are found no more, before maintenance, after it, and after an erasure"""
        place = new_place()
        async with place.table() as store:
            rows = rows_of([{"gone": i < 200} for i in range(1_000)])
            await store.upsert(rows, new=True)
            await store.maintain(full=True)
            await store.delete(rows.ids[:200])
            await store.upsert(rows_of([{"gone": False, "new": True}] * 100, first=200, text="new"))
            metadata = {id_: {"gone": False, **({"new": True} if i < 300 else {})} for i, id_ in enumerate(rows.ids)}
            metadata = {id_: one for id_, one in metadata.items() if id_ >= "000200"}
            for tidy in (None, lambda: store.maintain(full=True), lambda: store.erase(grace_s=0)):
                if tidy is not None:
                    await tidy()
                for row in (0, 199):
                    found = await store.search(rows.vectors["dense"][row], 800)
                    assert len(found.ids) == 800
                    assert not set(found.ids) & set(rows.ids[:200])
                assert len((await search_where(store, unit_vectors(1)[0], 900, {"new": True}, metadata)).ids) == 100
                assert (await search_where(store, unit_vectors(1)[0], 900, {"gone": True}, metadata)).ids == []
                assert await store.count() == 800
                assert len(await store.fetch(rows.ids[:200])) == 0
            await store.set_position(Position("e", 1, "s"))
            await store.erase(grace_s=0)
            assert await store.position() == Position("e", 1, "s")


async def _at_rest(store: Store) -> None:
    """A server may still be at the last request of a writer that was killed."""
    before, count = -1, await store.count()
    while count != before:
        await asyncio.sleep(0.3)
        before, count = count, await store.count()
