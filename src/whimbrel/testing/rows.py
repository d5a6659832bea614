"""Rows come back as they were given: ids, texts, metadata and vectors of any form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whimbrel.domain import Position, Space
from whimbrel.errors import BadInput, Conflict, Forbidden, SpaceMismatch, ViewDamaged, WhimbrelError
from whimbrel.filters import Compare, Op
from whimbrel.stores.base import DENSE, Records, Store
from whimbrel.testing.base import NewPlace, StoreSuite
from whimbrel.testing.place import SPACE, by_id, rows_of, scanned, unit_vectors
from whimbrel.testing.strategies import foreign_metadatas

METADATA: list[dict[str, Any]] = [
    {},
    {"year": 2024, "site": "docs", "ratio": 0.5, "draft": False, "tags": ["a", "b"]},
    {"none": None, "list of none": [None], "empty": [], "nested": {"empty": {}, "list": [[], {}]}},
    {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "inside": [1.0, math.nan]},
    {"past 2**53": 2**53 + 1, "past 2**63": 2**63, "past 2**64": -(2**64), "largest": 2**63 - 1, "smallest": -(2**63)},
    {
        "-0.0": -0.0,
        "tiny": 5e-324,
        "huge": 1.7976931348623157e308,
        "0.1": 0.1,
        "digits": 0.30000000000000004,
        "1.0": 1.0,
    },
    {"mixed": [1, 2.5, "two", True, None, {"deep": [1]}], "numbers": [1, 2.0], "lists": [[1], [2]]},
    {"a.b": 1, "a": {"b": 2, "c": [{"d": "x"}, {"d": "y"}]}},
    {"key": 1, "Key": "one", "KEY": [True]},
    {
        "": "empty key",
        "quote'\"`": "'; DROP TABLE view; --",
        "back\\slash": "\\'%_",
        "$ne": 1,
        "línea\n😀": "\U00010000",
    },
    dict.fromkeys(("id", "_id", "ID", "text", "vector", "metadata", "document", "embedding", "position"), "mine"),
    dict.fromkeys(("#hash", "chroma:document", "__id__", "_rowid", "_distance", "$float", "$dict", "facts"), "mine"),
    {"long": "é" * 30_000, "many": list(range(2_000))},
    {f"key {i}": i for i in range(300)},
]
"""What some database drops, changes or refuses."""

IDS = [
    *("", " ", "a", "A", "a ", " a", "é", "e\u0301", "\U0001f426", "a\nb", "a\tb", "/", "..", "*", "%", "_", "?"),
    *("'", '"', "\\", "`", "a' OR '1'='1", "-1", "0", "00", "1", "1.0", str(2**64), "null", "None", "true", "NaN"),
    *("0F0E0D0C0B0A09080706050403020100", "0f0e0d0c0b0a09080706050403020100", "0f0e0d0c-0b0a-0908-0706-050403020100"),
    *("x" * 1_000, "x" * 999 + "y", "whimbrel", "whimbrel-id-", "chroma:document", "#", "$", "[1]", "{}", "\uffff"),
]
"""What some database refuses, folds, trims or takes for another."""

TEXTS = [
    "",
    " ",
    "plain",
    "é e\u0301 \U0001f426 שלום 漢字 \u202e",
    "line\nline\r\n\ttab",
    "'\"\\%_`",
    "a" * 200_000,
    "null",
]


class Rows(StoreSuite):
    async def test_metadata_comes_back_as_it_was_given(self, store: Store) -> None:
        """Metadata comes back exactly: null, NaN, nested, empty and mixed lists, integers past 2^53, taken names"""
        await store.upsert(rows_of(METADATA), new=True)
        await store.upsert(rows_of(METADATA, first=100))
        found = by_id(await scanned(store))
        for row, metadata in enumerate(METADATA):
            for first in (0, 100):
                _, back = found[f"{row + first:06d}"]
                assert same(back, metadata), f"{metadata!r} came back as {back!r}"

    async def test_random_metadata_comes_back(self, store: Store) -> None:
        """Random metadata comes back exactly"""
        drawn: list[dict[str, Any]] = []

        @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(foreign_metadatas, max_size=5))
        def draw(metadata: list[dict[str, Any]]) -> None:
            drawn.extend(metadata)

        draw()
        await store.upsert(rows_of(drawn), new=True)
        found = by_id(await scanned(store))
        for row, metadata in enumerate(drawn):
            assert same(found[f"{row:06d}"][1], metadata), f"{metadata!r} came back as {found[f'{row:06d}'][1]!r}"

    async def test_ids_of_any_form_are_kept_apart(self, store: Store) -> None:
        """Ids of any form are kept, found, and told apart: empty, long, quotes, case, blanks, Unicode forms"""
        vectors = unit_vectors(len(IDS), seed=11)
        texts = [f"text of {row}" for row in range(len(IDS))]
        await store.upsert(Records(IDS, {DENSE: vectors}, texts, [{"row": row} for row in range(len(IDS))]), new=True)
        assert sorted(await store.ids()) == sorted(IDS)
        assert await store.count() == len(IDS)
        for row, id_ in enumerate(IDS):
            assert by_id(await store.fetch([id_])) == {id_: (texts[row], {"row": row})}, repr(id_)
            assert list((await store.search(vectors[row], 1)).ids) == [id_], repr(id_)
            assert list((await store.search(vectors[0], 3, ids=[id_])).ids) == [id_], repr(id_)
        await store.delete(IDS[::2])
        assert sorted(await store.ids()) == sorted(IDS[1::2])
        changed = Records(IDS[1::2], {DENSE: vectors[1::2]}, ["new"] * len(IDS[1::2]), [{}] * len(IDS[1::2]))
        await store.upsert(changed)
        assert by_id(await scanned(store)) == {id_: ("new", {}) for id_ in IDS[1::2]}

    async def test_texts_come_back(self, store: Store) -> None:
        """Texts of any Unicode and length come back, the empty one too"""
        rows = rows_of([{}] * len(TEXTS))
        await store.upsert(Records(rows.ids, rows.vectors, TEXTS, rows.metadata), new=True)
        found = by_id(await store.fetch(rows.ids))
        assert [found[id_][0] for id_ in rows.ids] == TEXTS

    async def test_vectors_come_back(self, store: Store) -> None:
        """Vectors come back: bit for bit, or within 1e-6 where the database normalises or rounds"""
        rows = rows_of([{}] * 500)
        await store.upsert(rows, new=True)
        found = await scanned(store)
        order = [rows.ids.index(id_) for id_ in found.ids]
        assert found.vectors[DENSE].dtype == np.float32
        if store.describe().exact_vectors:
            assert np.array_equal(found.vectors[DENSE], rows.vectors[DENSE][order])
        else:
            assert np.allclose(found.vectors[DENSE], rows.vectors[DENSE][order], atol=1e-6)

    async def test_rows_are_written_replaced_and_removed(self, store: Store) -> None:
        """An upsert replaces the whole row, its metadata's keys too; a delete ignores unknown ids"""
        first = rows_of([{"n": i, "old": True, "tags": ["x"]} for i in range(50)])
        await store.upsert(first, new=True)
        await store.upsert(rows_of([{"n": "changed", "more": i} for i in range(20)], first=40, text="new"))
        await store.delete(["000000", "000041", "unknown"])
        kept = {f"{i:06d}" for i in range(60)} - {"000000", "000041"}
        assert set(await store.ids()) == kept
        assert await store.count() == len(kept)
        assert sorted((await scanned(store, batch=7)).ids) == sorted(kept)
        found = by_id(await store.fetch(["000001", "000040", "000040", "000000", "unknown"]))
        assert found == {
            "000001": ("text 000001", {"n": 1, "old": True, "tags": ["x"]}),
            "000040": ("new 000040", {"n": "changed", "more": 0}),
        }
        assert "000040" not in (await store.search(unit_vectors(1)[0], 60, Compare("n", Op.EQ, (40,)))).ids

    async def test_an_id_that_comes_twice_is_one_row(self, store: Store) -> None:
        """Of an id that comes twice in a batch, the last row is kept"""
        for new in (True, False):
            ids = ["a", "b", "a"]
            await store.upsert(
                Records(ids, {DENSE: unit_vectors(3)}, ["old", "b", "last"], [{}, {}, {"n": 1}]), new=new
            )
            assert by_id(await store.fetch(["a", "b"])) == {"a": ("last", {"n": 1}), "b": ("b", {})}
            assert await store.count() == 2
            await store.delete(["a", "b"])

    async def test_nothing_is_nothing(self, store: Store) -> None:
        """An empty table, an empty batch and an empty list of ids are no error"""
        await store.upsert(rows_of([]))
        await store.delete([])
        assert len(await store.fetch([])) == 0
        assert len(await store.fetch(["unknown"])) == 0
        assert list(await store.ids()) == []
        assert len(await scanned(store)) == 0
        assert await store.count() == 0
        assert list((await store.search(unit_vectors(1)[0], 5)).ids) == []
        await store.maintain()
        await store.settle()
        await store.end_bulk()

    async def test_large_batches_are_cut(self, store: Store) -> None:
        """A batch over the database's limits is cut: thousands of rows to write, fetch and delete; 40 MB of text"""
        small = rows_of([{"n": i % 10} for i in range(self.batch_rows)])
        await store.upsert(small, new=True)
        await store.upsert(small.between(0, len(small) // 2))
        assert await store.count() == len(small)
        assert len(await store.fetch(small.ids)) == len(small)
        await store.delete(small.ids)
        assert await store.count() == 0
        large = rows_of([{}] * 40)
        texts = [f"{i:06d} " * 150_000 for i in range(40)]
        await store.upsert(Records(large.ids, large.vectors, texts, large.metadata), new=True)
        found = by_id(await scanned(store))
        assert [found[id_][0] for id_ in large.ids] == texts

    async def test_wrong_vectors_are_refused(self, store: Store, new_place: NewPlace) -> None:
        """Vectors of other dimensions, of another space, NaN and infinities are refused; nothing is written"""
        for bad in (math.nan, math.inf):
            vectors = unit_vectors(2)
            vectors[1, 3] = bad
            with pytest.raises(BadInput):
                await store.upsert(Records(["a", "b"], {DENSE: vectors}, ["t", "t"], [{}, {}]))
            with pytest.raises(BadInput):
                await store.search(vectors[1], 1)
        with pytest.raises(SpaceMismatch):
            await store.upsert(Records(["a"], {DENSE: unit_vectors(1, dimensions=8)}, ["t"], [{}]))
        with pytest.raises(SpaceMismatch):
            await store.search(unit_vectors(1, dimensions=8)[0], 1)
        assert await store.count() == 0

    async def test_large_vectors(self, new_place: NewPlace) -> None:
        """Vectors of 4,096 dimensions, or the most that it says, are kept and searched; more are refused at once"""
        place = new_place()
        most = place.store().describe().max_dimensions
        space = Space("large", "1", min(most or 4_096, 4_096))
        vectors = unit_vectors(40, dimensions=space.dimensions)
        async with place.table(space=space) as store:
            ids = [f"{row}" for row in range(40)]
            await store.upsert(Records(ids, {DENSE: vectors}, ids, [{}] * 40), new=True)
            await store.maintain(full=True)
            assert [(await store.search(vector, 1)).ids[0] for vector in vectors] == ids
        if most is not None:
            with pytest.raises(WhimbrelError) as refused:
                await place.store("more", Space("larger", "1", most + 1)).create()
            assert refused.value.hint

    async def test_a_table_of_another_space_is_refused(self, new_place: NewPlace) -> None:
        """A table whose vectors are of another space, or of other dimensions, is refused when it is opened"""
        place = new_place()
        async with place.table() as store:
            await store.upsert(rows_of([{}]), new=True)
        for space in (Space("another", "1", SPACE.dimensions), Space("conformance", "1", 8)):
            other = place.store(space=space)
            with pytest.raises(SpaceMismatch):
                await other.count()
            await other.close()

    async def test_a_table_is_made_once_and_dropped_alone(self, new_place: NewPlace) -> None:
        """A table is made once, and dropped alone; where none is, nothing is found in its place"""
        place = new_place()
        missing = place.store("missing")
        assert not await missing.exists()
        await missing.drop()
        reads: list[Callable[[], Any]] = [
            missing.count,
            missing.ids,
            missing.position,
            lambda: missing.fetch(["a"]),
            lambda: missing.search(unit_vectors(1)[0], 3),
            lambda: scanned(missing),
        ]
        async with place.table("one") as one, place.table("two") as two:
            await one.upsert(rows_of([{}] * 3), new=True)
            await two.upsert(rows_of([{}] * 5), new=True)
            for read in reads:
                with pytest.raises(ViewDamaged):
                    await read()
            with pytest.raises(Conflict):
                await place.store("one").create()
            assert await one.count() == 3
            await one.drop()
            await one.drop()
            assert not await one.exists()
            assert await two.exists()
            assert await two.count() == 5
            await one.create()
            assert await one.count() == 0
            assert await one.position() is None
        await missing.close()

    async def test_what_is_read_only_is_not_written(self, new_place: NewPlace) -> None:
        """A handle to be read only refuses to write"""
        place = new_place()
        async with place.table() as store:
            await store.upsert(rows_of([{}] * 3), new=True)
            reader = place.store(read_only=True)
            writes: list[Callable[[], Any]] = [
                lambda: reader.upsert(rows_of([{}])),
                lambda: reader.delete(["000000"]),
                lambda: reader.set_position(Position("e", 1, "s")),
                lambda: reader.apply(None, ["000000"], Position("e", 1, "s")),
                reader.create,
                reader.drop,
            ]
            if type(reader).maintain is not Store.maintain:  # that does nothing
                writes.append(reader.maintain)
            if type(reader).erase is not Store.erase:
                writes.append(lambda: reader.erase(grace_s=0))
            for write in writes:
                with pytest.raises(Forbidden):
                    await write()
            assert await reader.count() == 3
            await reader.close()

    async def test_a_store_says_what_it_is(self, store: Store) -> None:
        """It says its metric, dimensions and limits"""
        info = store.describe()
        assert info.name
        assert info.dimensions == SPACE.dimensions
        assert info.max_ids >= 1
        assert all(info.cannot)


def same(left: Any, right: Any) -> bool:
    """Equal in value and type; NaN equals NaN, and -0.0 is not 0.0."""
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and repr(left) == repr(right)
