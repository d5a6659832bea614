"""Building a view from the catalog, and comparing every row of it: on a real store, killed in between, and damaged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert

from support import collection, document, write
from whimbrel.catalog import collections, rows, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import Position, Space, ViewKind
from whimbrel.owner import copying
from whimbrel.owner.compare import Comparison, compare
from whimbrel.owner.follower import Follower
from whimbrel.owner.targets import StoreTarget
from whimbrel.stores.base import DENSE, Records, Vectors
from whimbrel.stores.lancedb import LanceStore

SPACE = Space("mini", "1", 8)
Place = tuple[int, int]
FENCE = 1


class Killed(BaseException):
    pass


class Fragile(StoreTarget):
    """The n-th write of rows is the last: killed before it, or after it."""

    def __init__(self, store: LanceStore, nth: int = 0, *, after: bool = False) -> None:
        super().__init__(store)
        self.left = nth
        self.after = after
        self.batches: list[tuple[int, bool]] = []
        """How many rows were written, and whether they were said to be new."""

    async def apply(
        self, rows: rows.ChunkRows | None, deletes: Sequence[str], position: Position | None, *, new: bool
    ) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        await super().apply(rows, deletes, position, new=new)
        if rows is not None:
            self.batches.append((len(rows), new))
        if self.left == 0:
            raise Killed


@pytest.fixture
def place(catalog: Catalog) -> Place:
    with catalog.write() as connection:
        lease = {"name": "owner", "holder": "a test", "token": FENCE, "expires_at": 0.0, "info": {}}
        connection.execute(insert(t.leases), lease)
    return collection(catalog)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "FIRST_ROWS", 10)
    monkeypatch.setattr(copying, "MOST_ROWS", 12)


def fill(catalog: Catalog, place: Place, first: int, count: int) -> None:
    """Documents of two to four chunks; the text of every 17th is refused by the model."""
    documents = []
    for number in range(first, first + count):
        parts = [f"Paragraph {part} of {number}, ü." for part in range(2 + number % 3)]
        documents.append(document(f"memory:{number}", "\n\n".join(parts), {"year": number}, title=f"Note {number}"))
    write(catalog, place, *documents)
    with catalog.write() as connection:
        space = vectors.space_id(connection, SPACE, "onnx:mini")
        keys = rows.next_keys(connection, *place, after=0, upto=10**9, limit=10**6)
        missing = vectors.missing(connection, space, keys)
        refused = {key: "It has a word that I do not read." for key in missing.text_ids if key % 17 == 0}
        kept = [key for key in missing.text_ids if key not in refused]
        random = np.random.default_rng(first).standard_normal((len(kept), 8)).astype(np.float32)
        vectors.put(connection, space, kept, random / np.linalg.norm(random, axis=1, keepdims=True), refused)


def begun(catalog: Catalog, place: Place) -> ViewRow:
    with catalog.write() as connection:
        found = collections.by_id(connection, place[0])
        assert found is not None
        space = vectors.space_id(connection, SPACE, "onnx:mini")
        return collections.add_view(
            connection, found, ViewKind.STORE, uri="lancedb:views", space_id=space, chunking_id=place[1]
        )


@asynccontextmanager
async def following(
    catalog: Catalog, row: ViewRow, folder: Path, nth: int = 0, *, after: bool = False
) -> AsyncIterator[tuple[Follower, LanceStore, Fragile]]:
    """As the next owner finds the view."""
    with catalog.read() as connection:
        known, found = collections.view(connection, row.id), collections.by_id(connection, row.view.collection_id)
    assert found is not None
    store = LanceStore(folder, row.view.name, SPACE)
    target = Fragile(store, nth, after=after)
    follower = Follower(catalog, found, known, target, None, fence=FENCE, on_position=lambda: None)
    await follower.open()
    try:
        yield follower, store, target
    finally:
        await follower.close()


async def to_the_end(follower: Follower) -> None:
    while await follower.step():
        pass


async def compared(
    follower: Follower, besides: set[str] | None = None, witness: Callable[[Sequence[str], Vectors], None] | None = None
) -> Comparison:
    async def progress(*, compared: int, expected: int) -> None:
        assert compared >= 0
        assert expected > 0

    async with follower.standing_still() as still:
        assert still is not None
        connection, changing = still
        return await compare(follower, connection, changing | (besides or set()), progress, witness)


async def test_a_view_holds_what_the_catalog_has(catalog: Catalog, place: Place, tmp_path: Path) -> None:
    fill(catalog, place, 0, 30)
    row = begun(catalog, place)
    shown: dict[str, bytes] = {}

    def witness(ids: Sequence[str], given: Vectors) -> None:
        assert not shown.keys() & set(ids)
        shown.update((id_, vector.tobytes()) for id_, vector in zip(ids, given, strict=True))

    async with following(catalog, row, tmp_path / "views") as (follower, store, target):
        await to_the_end(follower)
        assert all(new for _, new in target.batches)
        assert max(count for count, _ in target.batches) <= 12
        found = await compared(follower, witness=witness)
        held = await store.fetch(list(shown))
    assert found.equal
    assert found.rows == found.expected == len(shown) == len(held) < 90
    assert shown == {id_: one.tobytes() for id_, one in zip(held.ids, held.vectors[DENSE], strict=True)}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", [1, 2, 4, 8])
async def test_a_copy_that_is_killed_goes_on_and_doubles_nothing(
    catalog: Catalog, place: Place, tmp_path: Path, nth: int, after: bool
) -> None:
    fill(catalog, place, 0, 40)
    row = begun(catalog, place)
    async with following(catalog, row, tmp_path / "views", nth, after=after) as (follower, _, _):
        with pytest.raises(Killed):
            await to_the_end(follower)
    async with following(catalog, row, tmp_path / "views") as (follower, _, target):
        await to_the_end(follower)
        assert (await compared(follower)).equal
    sure = [new for _, new in target.batches]
    assert sure == sorted(sure), "after one batch, which may be there, all rows are new again"
    assert not sure[0]
    assert nth == 8 or sure[-1]


async def test_the_same_owner_goes_on_after_a_write_that_failed(catalog: Catalog, place: Place, tmp_path: Path) -> None:
    fill(catalog, place, 0, 20)
    row = begun(catalog, place)
    async with following(catalog, row, tmp_path / "views", 2, after=True) as (follower, _, _):
        with pytest.raises(Killed):
            await to_the_end(follower)
        await to_the_end(follower)
        assert (await compared(follower)).equal


async def test_what_changes_while_it_is_copied_comes_from_the_log(
    catalog: Catalog, place: Place, tmp_path: Path
) -> None:
    fill(catalog, place, 0, 20)
    row = begun(catalog, place)
    async with following(catalog, row, tmp_path / "views") as (follower, _, _):
        assert await follower.step()
        fill(catalog, place, 20, 5)
        write(catalog, place, document("memory:3", "Another text."), document("memory:19", "And another."))
        fill(catalog, place, 0, 0)
        await to_the_end(follower)
        assert (await compared(follower)).equal


async def test_a_view_that_never_comes_to_the_head_is_compared_all_the_same(
    catalog: Catalog, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others write more each time that it follows: what it has not heard of yet is left out, and nothing else."""
    fill(catalog, place, 0, 30)
    row = begun(catalog, place)
    async with following(catalog, row, tmp_path / "views") as (follower, _, target):
        await to_the_end(follower)
        apply, writes = target.apply, 0

        async def outrun(*args: Any, **options: Any) -> None:
            nonlocal writes
            writes += 1
            assert writes < 50, "it runs after them for ever"
            fill(catalog, place, 100 + writes, 1)
            await apply(*args, **options)

        monkeypatch.setattr(target, "apply", outrun)
        fill(catalog, place, 100, 1)
        found = await compared(follower)
        assert found.equal
        assert found.changing == 2 + (100 + writes) % 3
        assert found.rows == found.expected > 80


async def test_every_difference_is_named(catalog: Catalog, place: Place, tmp_path: Path) -> None:
    fill(catalog, place, 0, 30)
    row = begun(catalog, place)
    async with following(catalog, row, tmp_path / "views") as (follower, store, _):
        await to_the_end(follower)
        ids = sorted(await store.ids())
        missing, text, metadata, vector, doubled, left = ids[:6]
        await store.delete([missing, left])
        whole = await store.fetch([text, metadata, vector, doubled])
        for id_, exchanged in ((text, "texts"), (metadata, "metadata"), (vector, "vectors")):
            one = whole.taken([list(whole.ids).index(id_)])
            other: dict[str, object] = {
                "texts": ["Another text."],
                "metadata": [{**one.metadata[0], "year": -1}],
                "vectors": {DENSE: np.roll(one.vectors[DENSE], 1)},
            }
            await store.upsert(replace(one, **{exchanged: other[exchanged]}))
        await store.upsert(whole.taken([list(whole.ids).index(doubled)]), new=True)
        strangers = ["an id of another program's", "f" * 32]
        stray = Records(strangers, {DENSE: np.eye(2, 8, dtype=np.float32)}, ["a", "b"], [{}, {}])
        await store.upsert(stray)
        found = await compared(follower, besides={left})
    assert not found.equal
    assert found.missing == [missing]
    assert sorted(found.extra) == sorted(strangers)
    assert sorted(found.different) == sorted([text, metadata, vector])
    assert found.doubled == 1
    assert found.changing == 1
    assert (found.rows, found.expected) == (len(ids), len(ids) - 1)
    assert found.report()["examples"]["missing"] == [missing]


async def test_a_row_whose_text_the_model_refused_should_not_be_there(
    catalog: Catalog, place: Place, tmp_path: Path
) -> None:
    fill(catalog, place, 0, 30)
    row = begun(catalog, place)
    async with following(catalog, row, tmp_path / "views") as (follower, store, _):
        await to_the_end(follower)
        held = set(await store.ids())
        with catalog.read() as connection:
            keys = rows.next_keys(connection, *place, after=0, upto=10**9, limit=10**6)
            every, _, _ = rows.load_chunks(connection, keys, None)
        refused = sorted(set(every.ids) - held)
        assert refused
        await store.upsert(Records([refused[0]], {DENSE: np.ones((1, 8), np.float32)}, ["a"], [{}]))
        found = await compared(follower)
    assert (found.extra, found.missing, found.expected) == ([refused[0]], [], len(held))


async def test_an_empty_collection_is_equal_to_an_empty_view(catalog: Catalog, place: Place, tmp_path: Path) -> None:
    row = begun(catalog, place)
    async with following(catalog, row, tmp_path / "views") as (follower, _, _):
        await to_the_end(follower)
        found = await compared(follower)
    assert found.equal
    assert found.rows == 0
