"""Many at once: readers beside a writer, deletes beside a scan, other processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from whimbrel.domain import Position
from whimbrel.errors import Conflict
from whimbrel.stores.base import Store
from whimbrel.testing.base import NewPlace, StoreSuite
from whimbrel.testing.place import by_id, rows_of, scanned, unit_vectors


class Living(StoreSuite):
    async def test_reads_beside_writes_and_deletes(self, new_place: NewPlace) -> None:
        """Fetch, scan, count and search beside upserts and deletes: rows that stay are met once, always"""
        place = new_place()
        async with place.table() as store:
            staying = rows_of([{"stays": True}] * 1_000)
            await store.upsert(staying, new=True)
            reader = place.store(read_only=True)
            rounds = 0
            done = asyncio.Event()

            async def write() -> None:
                for number in range(12):
                    first = 10_000 + 300 * number
                    await store.upsert(rows_of([{"stays": False}] * 300, first=first), new=True)
                    await store.upsert(rows_of([{"stays": True, "again": number}] * 50, first=number * 20))
                    if number:
                        await store.delete([f"{id_:06d}" for id_ in range(first - 300, first)])
                    await asyncio.sleep(0.001)  # a store that never waits must let the readers in
                done.set()

            async def read(look: Callable[[], Awaitable[None]]) -> None:
                nonlocal rounds
                while not done.is_set():
                    await look()
                    rounds += 1
                    await asyncio.sleep(0.01)

            async def scan() -> None:
                found = by_id(await scanned(reader, batch=250))
                assert set(staying.ids) <= found.keys(), "a scan missed rows that were there all the time"

            async def fetch() -> None:
                assert by_id(await reader.fetch(staying.ids)).keys() == set(staying.ids)

            async def search() -> None:
                for handle in (store, reader):
                    found = await handle.search(unit_vectors(1, seed=5)[0], 50)
                    assert len(found.ids) == len(set(found.ids)) == 50

            async def count() -> None:
                assert await reader.count() >= 1_000
                ids = await reader.ids()
                assert len(ids) == len(set(ids))
                assert set(staying.ids) <= set(ids)

            await asyncio.gather(write(), *(read(look) for look in (scan, fetch, search, count)))
            assert rounds >= 4
            left = {f"{id_:06d}" for id_ in range(13_300, 13_600)}
            assert set(await reader.ids()) == {*staying.ids, *left}
            assert await reader.count() == len(staying) + len(left)
            await reader.close()

    async def test_a_scan_outlives_deletes(self, store: Store) -> None:
        """Rows that are deleted and written between two batches of a scan make it neither miss one nor repeat one"""
        rows = rows_of([{"n": i} for i in range(1_000)])
        await store.upsert(rows, new=True)
        met: list[str] = []
        async for batch in store.scan(100):
            if not met:
                gone = list(batch.ids[:80]) + [id_ for id_ in rows.ids if id_ not in set(batch.ids)][::3]
                await store.delete(gone)
                await store.upsert(rows_of([{}] * 100, first=2_000))
                await store.upsert(rows_of([{"again": True}] * 20, first=900))
            met += batch.ids
        assert len(met) == len(set(met)), "a row came twice"
        assert set(rows.ids) - set(gone) <= set(met), "a row that was there all the time was missed"

    async def test_two_writers_at_once_lose_nothing(self, store: Store) -> None:
        """Several tasks of one process that write at once lose no row"""
        await asyncio.gather(*(store.upsert(rows_of([{}] * 50, first=100 * number)) for number in range(10)))
        await asyncio.gather(
            *(store.upsert(rows_of([{"n": number}] * 30, first=1_000)) for number in range(5)),
            *(store.delete([f"{100 * number:06d}"]) for number in range(10)),
        )
        assert sorted(await store.ids()) == sorted(
            [f"{100 * n + i:06d}" for n in range(10) for i in range(1, 50)] + [f"{1_000 + i:06d}" for i in range(30)]
        )
        assert len({tuple(one.items()) for _, one in by_id(await store.fetch(["001000", "001029"])).values()}) == 1

    async def test_a_bulk_load_is_searched_before_and_after_it_ends(self, new_place: NewPlace) -> None:
        """Rows of a bulk load are found before it ends, and when it went on in another handle"""
        place = new_place()
        vectors = unit_vectors(1, seed=400)
        async with place.table() as store:
            await store.begin_bulk()
            await store.upsert(rows_of([{"part": 1}] * 500), new=True)
            assert list((await store.search(vectors[0], 500)).ids)
            assert len((await store.search(vectors[0], 500)).ids) == 500
        again = place.store()
        await again.begin_bulk()
        await again.upsert(rows_of([{"part": 2}] * 500, first=500), new=True)
        await again.close()
        third = place.store()
        await third.end_bulk()
        await third.maintain(full=True)
        assert len((await third.search(vectors[0], 1_000)).ids) == 1_000
        assert list((await third.search(unit_vectors(500)[7], 1)).ids) == ["000007"]
        await third.close()

    async def test_the_position_is_kept_with_the_data(self, new_place: NewPlace) -> None:
        """The position is kept with the data, is no row of it, and outlives the handle"""
        place = new_place()
        async with place.table() as store:
            assert await store.position() is None
            await store.upsert(rows_of([{"k": 1}]), new=True)
            await store.set_position(Position("e1", 5, "s1"))
            await store.upsert(rows_of([{"other": "key"}], first=1))
            assert await store.position() == Position("e1", 5, "s1")
            await store.set_position(Position("é'\"", 2**62, "s2"))
            assert await store.count() == 2
            assert sorted(await store.ids()) == ["000000", "000001"]
            assert len((await store.search(unit_vectors(1)[0], 10)).ids) == 2
            assert len(await scanned(store)) == 2
        again = place.store()
        assert await again.position() == Position("é'\"", 2**62, "s2")
        await again.close()

    async def test_a_batch_applied_again_changes_nothing(self, store: Store) -> None:
        """A batch of the log applied twice, or after a part of it, gives what it gives once"""
        batch = rows_of([{"n": i} for i in range(30)])
        await store.upsert(batch.between(0, 10))
        for new in (True, False, False):
            if new:
                await store.delete(batch.ids)
            await store.apply(batch, ["unknown", "000099"], Position("epoch", 30, "stamp"), new=new)
            assert by_id(await scanned(store)) == by_id(batch)
            assert await store.position() == Position("epoch", 30, "stamp")
        await store.apply(batch.between(0, 5), batch.ids[20:], Position("epoch", 31, "next"))
        assert sorted(await store.ids()) == list(batch.ids[:20])
        await store.apply(None, [], Position("epoch", 32, "last"))
        assert await store.position() == Position("epoch", 32, "last")

    async def test_another_process_is_seen_at_once(self, new_place: NewPlace) -> None:
        """What another process commits is seen at once by handles that are open"""
        place = new_place()
        async with place.table() as store:
            self._needs_several_processes(store)
            assert await store.count() == 0
            child = place.process("add", ids=["theirs", "'theirs too'"])
            assert await asyncio.to_thread(child.wait) == 0
            assert sorted(await store.ids()) == ["'theirs too'", "theirs"]
            assert await store.position() == Position("epoch", 9, "theirs")
            assert list((await store.search(unit_vectors(1)[0], 1)).ids) == ["theirs"]

    async def test_several_processes_read_beside_a_writer(self, new_place: NewPlace) -> None:
        """Several processes read while another writes"""
        place = new_place()
        async with place.table() as store:
            self._needs_several_processes(store)
            await store.upsert(rows_of([{}] * 500), new=True)
            readers = [place.process("read") for _ in range(2)]
            try:
                first = [await asyncio.to_thread(_line, reader) for reader in readers]
                for number in range(10):
                    await store.upsert(rows_of([{"n": number}] * 200, first=400 + 50 * number))
                    await store.delete([f"{number:06d}"])
                later = [await asyncio.to_thread(_line, reader) for reader in readers]
                assert all(reader.poll() is None for reader in readers), "a reader ended"
            finally:
                for reader in readers:
                    reader.kill()
                    reader.wait()
            assert first == later == ["10", "10"]

    async def test_a_second_process_is_refused_where_one_is_allowed(self, new_place: NewPlace) -> None:
        """A second process is refused where the database allows one, with the way out"""
        place = new_place()
        async with place.table() as store:
            self._needs_processes()
            if not store.describe().single_process:
                pytest.skip("any number of processes may open it")
            await store.upsert(rows_of([{}] * 3), new=True)
            child = place.process("count")
            assert (await asyncio.to_thread(_line, child)).startswith("AlreadyOwned True")
            child.wait()
            assert await store.count() == 3
        child = place.process("count")
        assert await asyncio.to_thread(_line, child) == "3"
        child.wait()

    async def test_two_tables_that_are_made_at_once_are_one(self, new_place: NewPlace) -> None:
        """Of those that make the same table at once, all but one are told that there is one"""
        place = new_place()
        handles = [place.store() for _ in range(4)]
        made = await asyncio.gather(*(handle.create() for handle in handles), return_exceptions=True)
        told = [type(one) for one in made if one is not None]
        assert set(told) <= {Conflict}
        assert len(told) < len(handles)
        assert await handles[0].exists()
        assert await handles[0].count() == 0
        for handle in handles:
            await handle.close()


def _line(process: object) -> str:
    return str(process.stdout.readline()).strip()  # type: ignore[attr-defined]
