"""What a view in Postgres promises beyond the suite of all stores: its errors, its life with a server, its traces."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import filter_strategies
from whimbrel.domain import Position, Space
from whimbrel.errors import (
    Conflict,
    Forbidden,
    NewerHome,
    SpaceMismatch,
    StoreUnavailable,
    ViewDamaged,
    WhimbrelError,
)
from whimbrel.filters import matches, normalise_metadata, parse
from whimbrel.stores.base import DENSE, Reach, Records
from whimbrel.stores.postgres import PostgresStore, index, nearest
from whimbrel.stores.postgres.pool import Link
from whimbrel.stores.postgres.table import table_name

DIMENSIONS = 16
SPACE = Space("test", "1", DIMENSIONS)


def unit_vectors(count: int, seed: int = 0, dimensions: int = DIMENSIONS) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows_of(metadata: list[dict[str, Any]], *, first: int = 0, text: str = "text", dimensions: int = 16) -> Records:
    ids = [f"{i:06d}" for i in range(first, first + len(metadata))]
    vectors = unit_vectors(len(ids), first, dimensions)
    return Records(ids, {DENSE: vectors}, [f"{text} {i}" for i in ids], metadata)


@pytest.fixture
def uri(fresh_postgres: str) -> str:
    return fresh_postgres.replace("+psycopg", "")


@pytest.fixture
async def store(uri: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(uri, "view", SPACE)
    await store.create()
    yield store
    await store.close()


def run(uri: str, *statements: str) -> list[tuple[Any, ...]]:
    """The last one's rows. As the server's administrator, unless the URI says otherwise."""
    with psycopg.connect(uri, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


# --- rows ------------------------------------------------------------------------------------------------------------


async def test_numbers_that_jsonb_would_change_come_back_exactly(store: PostgresStore) -> None:
    metadata = [
        {"zero": -0.0, "big": 1e300, "tiny": 5e-324, "deep": {"list": [1e16, -0.0]}},
        {"whole": 2.0, "integer": 2, "odd": 2**53 + 1, "most": 2**63 - 1, "nothing": None, "empty": [[], {}]},
    ]
    await store.upsert(rows_of(metadata), new=True)
    found = await store.fetch(["000000", "000001"])
    by_id = dict(zip(found.ids, found.metadata, strict=True))
    assert [by_id["000000"], by_id["000001"]] == metadata
    assert math.copysign(1, by_id["000000"]["zero"]) == -1
    assert [type(by_id["000000"]["big"]), type(by_id["000001"]["whole"])] == [float, float]
    assert isinstance(by_id["000001"]["integer"], int)


async def test_other_programs_read_and_filter_the_table(store: PostgresStore, uri: str) -> None:
    await store.upsert(rows_of([{"year": 2020, "site": "docs", "tags": ["a", "b"], "huge": 1e300}]), new=True)
    query = """SELECT id, text, metadata -> 'tags', vector_dims(vector) FROM whimbrel.view
               WHERE metadata @> '{"site": "docs"}' AND (metadata ->> 'year')::int >= 2020"""
    assert run(uri, query) == [("000000", "text 000000", ["a", "b"], DIMENSIONS)]


async def test_data_and_position_are_one_transaction(store: PostgresStore) -> None:
    await store.apply(rows_of([{}]), (), Position("e", 1, "s"), new=True)
    bad = Records(["x\0"], {DENSE: unit_vectors(1)}, ["t"], [{}])
    with suppress(WhimbrelError):
        await store.apply(bad, ["000000"], Position("e", 2, "t"))
    assert await store.position() == Position("e", 1, "s")
    assert await store.ids() == ["000000"]


async def test_rows_that_were_taken_for_new_are_written_once(store: PostgresStore) -> None:
    """As after a commit whose answer was lost."""
    batch = rows_of([{"n": i} for i in range(30)])
    for text in ("first", "second"):
        again = Records(batch.ids, batch.vectors, [text] * 30, batch.metadata)
        await store.apply(again, (), Position("e", 30, "s"), new=True)
    assert await store.count() == 30
    assert set((await store.fetch(batch.ids)).texts) == {"second"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(filter_strategies.metadatas, min_size=1, max_size=12),
    wheres=st.lists(filter_strategies.filters, min_size=1, max_size=6),
)
async def test_filters_keep_what_the_reference_keeps(
    store: PostgresStore, data: list[dict[str, Any]], wheres: list[Any]
) -> None:
    await store.delete(await store.ids())
    metadata = [normalise_metadata(one) for one in data]
    await store.upsert(rows_of(metadata), new=True)
    for where in wheres:
        found = await store.search(unit_vectors(1)[0], 20, where)
        assert sorted(found.ids) == [f"{i:06d}" for i, one in enumerate(metadata) if matches(where, one)]
    held = await store.fetch([f"{i:06d}" for i in range(len(metadata))])
    by_id = dict(zip(held.ids, held.metadata, strict=True))
    assert [json.dumps(by_id[i], sort_keys=True) for i in sorted(by_id)] == [
        json.dumps(one, sort_keys=True) for one in metadata
    ]


async def test_a_long_list_of_values_is_compared_row_by_row(store: PostgresStore) -> None:
    await store.upsert(rows_of([{"n": i} for i in range(300)] + [{}]), new=True)
    values = list(range(100, 5_000))
    found = await store.search(unit_vectors(1)[0], 400, parse({"n": {"$in": values}}))
    assert sorted(found.ids) == [f"{i:06d}" for i in range(100, 300)]
    assert len((await store.search(unit_vectors(1)[0], 400, parse({"n": {"$nin": values}}))).ids) == 101


# --- the index -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dimensions", "indexes"), [(64, 2), (2_500, 2), (4_100, 1)])
async def test_searches_of_any_number_of_dimensions(uri: str, dimensions: int, indexes: int) -> None:
    count = 600
    store = PostgresStore(uri, "wide", Space("test", "1", dimensions))
    await store.create()
    rows = rows_of([{"n": i} for i in range(count)], dimensions=dimensions)
    await store.apply(rows, (), Position("e", 1, "s"), new=True)
    await store.maintain(full=True)
    made = run(uri, "SELECT count(*) FROM pg_indexes WHERE tablename = 'wide' AND indexname NOT LIKE '%pkey'")
    assert made == [(indexes,)]
    query = rows.vectors[DENSE][7]
    cosines = rows.vectors[DENSE] @ query
    found = await store.search(query, 10, parse({"n": {"$gte": 5}}))
    assert found.ids[0] == "000007"
    order = [i for i in np.argsort(-cosines, kind="stable") if i >= 5][:10]
    assert len(set(found.ids) & {rows.ids[i] for i in order}) >= 9
    by_id = dict(zip(rows.ids, cosines, strict=True))
    assert np.allclose(found.scores, [max(0.0, by_id[i]) for i in found.ids], atol=1e-6)
    read = await store.fetch(["000003"])
    assert np.array_equal(read.vectors[DENSE][0], rows.vectors[DENSE][3]), "the table holds them whole"
    await store.close()


def has_index(uri: str) -> bool:
    return bool(run(uri, "SELECT 1 FROM pg_indexes WHERE tablename = 'view' AND indexdef LIKE '%hnsw%'"))


async def test_the_index_waits_until_the_rows_have_come(
    store: PostgresStore, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MIN_ROWS", 100)
    await store.begin_bulk()
    await store.upsert(rows_of([{}] * 4_000), new=True)
    await store.maintain()
    assert not has_index(uri)
    await store.end_bulk()
    assert has_index(uri)
    await store.upsert(rows_of([{}], first=5_000), new=True)
    assert (await store.search(unit_vectors(1, 5_000)[0], 1)).ids == ["005000"]


async def test_few_rows_are_not_indexed(store: PostgresStore, uri: str) -> None:
    await store.upsert(rows_of([{}] * 50), new=True)
    await store.maintain()
    await store.end_bulk()
    assert not has_index(uri)


async def test_filters_that_keep_hardly_a_row_find_all_of_them(store: PostgresStore, monkeypatch: Any) -> None:
    rows = rows_of([{"n": i, "hundredth": i % 100, "s": f"v{i % 2_000}"} for i in range(20_000)])
    await store.upsert(rows, new=True)
    await store.maintain(full=True)
    query = unit_vectors(1, seed=77)[0]
    cosines = rows.vectors[DENSE] @ query
    for where, passing in [
        ({"hundredth": 7}, [i for i in range(20_000) if i % 100 == 7]),
        ({"n": {"$lt": 200}}, list(range(200))),
        ({"n": {"$gte": 19_988}}, list(range(19_988, 20_000))),
        ({"s": "v5"}, list(range(5, 20_000, 2_000))),
        ({"$not": {"n": {"$gte": 3}}}, [0, 1, 2]),
        ({"n": -1}, []),
    ]:
        found = await store.search(query, 10, parse(where))
        best = sorted(passing, key=lambda i: -cosines[i])[:10]
        assert len(found.ids) == min(10, len(passing)), where
        assert len(set(found.ids) & {rows.ids[i] for i in best}) >= len(best) - 1, where


@pytest.mark.parametrize(("left_kb", "taken_kb"), [(0, 1_024), (4_096, 2_048), (1_000_000, 6_213)])
async def test_an_index_is_built_in_half_of_the_memory_that_is_left(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch, left_kb: int, taken_kb: int
) -> None:
    """Up to what it needs, and from what is taken anyway."""
    monkeypatch.setattr(index, "MAX_MEMORY_KB", 1_024)

    async def left(_link: Link) -> int:
        return left_kb

    monkeypatch.setattr(index, "_left_kb", left)
    execute, said = Link.execute, list[Any]()

    async def noted(self: Link, query: str, parameters: Any = None) -> int:
        if "maintenance_work_mem" in query:
            said.extend(parameters)
        return await execute(self, query, parameters)

    monkeypatch.setattr(Link, "execute", noted)
    await store.begin_bulk()
    await store.upsert(rows_of([{}] * 6_000))
    await store.end_bulk()
    assert said == [taken_kb]


async def test_the_memory_of_a_server_is_read_where_its_role_may(uri: str) -> None:
    async with await psycopg.AsyncConnection.connect(uri, autocommit=True) as connection:
        if sys.platform.startswith("linux"):
            assert await index._left_kb(Link(connection)) > 0
        await connection.execute("CREATE ROLE reader_of_nothing")
        try:
            await connection.execute("SET ROLE reader_of_nothing")
            assert await index._left_kb(Link(connection)) == 0
        finally:
            await connection.execute("RESET ROLE")
            await connection.execute("DROP ROLE reader_of_nothing")


@pytest.mark.parametrize(
    ("groups", "left_kb"),
    [
        ([None] * 4, 8_000_000),
        (["max\n", "1000\n", None, None], 8_000_000),
        (["2147483648\n", "1073741824\n", None, None], 1_048_576),
        ([None, None, "9223372036854771712\n", "4096\n"], 8_000_000),
        ([None, None, "1048576\n", "2097152\n"], 0),
    ],
)
async def test_a_container_has_what_its_group_may_take(groups: list[str | None], left_kb: int) -> None:
    class Said:
        async def fetch(self, _query: str) -> list[tuple[str | None, ...]]:
            return [("MemTotal:  9000000 kB\nMemAvailable:  8000000 kB\n", *groups)]

    assert await index._left_kb(Said()) == left_kb  # type: ignore[arg-type]


async def test_of_a_large_index_more_is_looked_at(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [nearest.width(10, rows) for rows in (0, 100_000, 1_000_000)] == [20, 20, 302]
    assert nearest.width(400, 1_000_000) == 800
    looked: list[int] = []

    async def noted(link: Link, candidates: int) -> None:
        looked.append(candidates)

    monkeypatch.setattr(Link, "search_wide", noted)
    monkeypatch.setattr(nearest, "LARGE", 100)
    await store.begin_bulk()
    await store.upsert(rows_of([{}] * 6_400))
    await store.search(unit_vectors(1)[0], 5)
    await store.end_bulk()  # which asks Postgres anew how many rows there are
    await store.search(unit_vectors(1)[0], 5)
    assert looked == [10, math.ceil(120 * 64**0.4)]


async def test_deleted_rows_do_not_crowd_out_others(store: PostgresStore) -> None:
    """The index keeps them until a VACUUM: a search that stops at the first 120 would find none of the others."""
    rows = rows_of([{}] * 6_000)
    await store.upsert(rows, new=True)
    await store.maintain(full=True)
    query = unit_vectors(1, seed=5)[0]
    order = np.argsort(-(rows.vectors[DENSE] @ query))
    await store.delete([rows.ids[i] for i in order[:4_000]])
    found = await store.search(query, 10)
    assert len(set(found.ids) & {rows.ids[i] for i in order[4_000:4_010]}) >= 9
    assert len((await store.search(query, 3_000)).ids) == 2_000


# --- tables ----------------------------------------------------------------------------------------------------------


async def test_what_is_not_ours_is_not_touched(uri: str) -> None:
    run(uri, "CREATE SCHEMA whimbrel", "CREATE TABLE whimbrel.view (id text)", "INSERT INTO whimbrel.view VALUES ('a')")
    store = PostgresStore(uri, "view", SPACE)
    assert not await store.exists()
    with pytest.raises(Conflict):
        await store.create()
    await store.drop()
    run(uri, "CREATE EXTENSION vector")
    for read in (store.count, store.ids, lambda: store.upsert(rows_of([{}]))):
        with pytest.raises(ViewDamaged):
            await read()
    assert run(uri, "SELECT id FROM whimbrel.view") == [("a",)]
    await store.close()


AWKWARD_NAMES = [
    "positions",
    'quote"; DROP SCHEMA whimbrel',
    "Ünï 100 %s",
    "x" * 200,
    "x" * 199 + "y",
    "",
    "a.b",
    "Case",
]


async def test_names_of_any_form_are_tables_of_their_own(uri: str) -> None:
    assert len({table_name(name) for name in AWKWARD_NAMES}) == len(AWKWARD_NAMES)
    stores = [PostgresStore(f"{uri}&schema=S%20%22p", name, SPACE) for name in AWKWARD_NAMES]
    for number, store in enumerate(stores):
        await store.create()
        for new in (True, False):
            await store.apply(rows_of([{"n": number}] * (number + 1)), ["gone"], Position("e", number, "s"), new=new)
    for number, store in enumerate(stores):
        assert await store.count() == number + 1
        assert await store.position() == Position("e", number, "s")
        assert len((await store.search(unit_vectors(1)[0], 50, parse({"n": number}))).ids) == number + 1
        await store.erase(grace_s=0)
        assert await store.count() == number + 1
    await stores[0].drop()
    assert [await store.exists() for store in stores] == [False] + [True] * (len(stores) - 1)
    for store in stores:
        await store.close()


async def test_another_space_or_format_is_refused(store: PostgresStore, uri: str) -> None:
    for space in (Space("other", "1", DIMENSIONS), Space("test", "1", 8)):
        other = PostgresStore(uri, "view", space)
        with pytest.raises(SpaceMismatch) as mismatch:
            await other.count()
        assert "Nothing was changed" in mismatch.value.hint
        await other.close()
    run(uri, "COMMENT ON TABLE whimbrel.view IS 'whimbrel view, format 99, space x'")
    newer = PostgresStore(uri, "view", SPACE)
    with pytest.raises(NewerHome):
        await newer.count()
    await newer.close()


async def test_a_table_or_column_that_is_gone_is_damage(store: PostgresStore, uri: str) -> None:
    await store.upsert(rows_of([{}]), new=True)
    run(uri, "ALTER TABLE whimbrel.view DROP COLUMN text")
    with pytest.raises(ViewDamaged, match="column"):
        await store.fetch(["000000"])
    run(uri, "DROP TABLE whimbrel.view")
    for read in (store.count, store.ids, lambda: store.search(unit_vectors(1)[0], 3)):
        with pytest.raises(ViewDamaged) as caught:
            await read()
        assert "whimbrel view rebuild" in caught.value.hint
    assert not await store.exists()


async def test_what_is_read_only_is_not_written(store: PostgresStore, uri: str) -> None:
    reader = PostgresStore(uri, "view", SPACE, read_only=True)
    assert await reader.count() == 0
    for write in (
        lambda: reader.upsert(rows_of([{}])),
        lambda: reader.delete(["a"]),
        lambda: reader.set_position(Position("e", 1, "s")),
        reader.drop,
        reader.maintain,
        reader.begin_bulk,
        lambda: reader.erase(grace_s=0),
    ):
        with pytest.raises(Forbidden):
            await write()
    await reader.close()
    assert await store.exists()


async def test_stores_of_one_database_share_its_connections(store: PostgresStore, uri: str) -> None:
    others = [PostgresStore(uri, "view", SPACE) for _ in range(10)]
    await asyncio.gather(*(other.count() for other in others for _ in range(5)))
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'whimbrel'"
    ((connections,),) = run(uri, query)
    assert 1 <= connections <= Reach().max_connections
    for other in others:
        await other.close()
    assert await store.count() == 0


# --- traces ----------------------------------------------------------------------------------------------------------


async def test_erasure_leaves_no_trace_in_the_files(store: PostgresStore, uri: str, postgres_server: Any) -> None:
    secret = "unforgettable-secret"
    metadata = [{"n": i, **({"note": f"meta-{secret}"} if i == 3 else {})} for i in range(2_000)]
    rows = rows_of(metadata)
    texts = [secret if i in (3, 1_999) else text for i, text in enumerate(rows.texts)]
    await store.apply(Records(rows.ids, rows.vectors, texts, rows.metadata), (), Position("e", 1, "s"))
    await store.maintain(full=True)
    run(uri, "CHECKPOINT")

    def traces() -> list[str]:
        files = [path for path in (postgres_server[1] / "base").rglob("*") if path.is_file()]
        return [str(path) for path in files if secret.encode() in path.read_bytes()]

    assert traces()
    await store.delete(["000003", "001999"])
    run(uri, "VACUUM whimbrel.view", "CHECKPOINT")
    assert traces(), "VACUUM alone overwrites nothing"
    await store.erase(grace_s=0)
    assert not traces()
    assert await store.count() == 1_998
    assert await store.position() == Position("e", 1, "s")
    assert has_index(uri)
    assert (await store.search(rows.vectors[DENSE][5], 1)).ids == ["000005"]


async def test_searches_go_on_while_the_table_is_written_anew(store: PostgresStore, uri: str) -> None:
    await store.upsert(rows_of([{"n": i} for i in range(6_000)]), new=True)
    await store.maintain(full=True)
    erasing = asyncio.create_task(store.erase(grace_s=0))
    reader = PostgresStore(uri, "view", SPACE, read_only=True)
    while not erasing.done():
        assert len((await reader.search(unit_vectors(1)[0], 10, parse({"n": {"$gte": 0}}))).ids) == 10
    await erasing
    await reader.close()


async def test_a_reader_that_does_not_end_keeps_the_old_table(
    store: PostgresStore, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whimbrel.stores.postgres import erase

    monkeypatch.setattr(erase, "PATIENCE_S", 0.0)
    monkeypatch.setattr(erase, "LOCK_S", 1)
    await store.upsert(rows_of([{}] * 10), new=True)
    with psycopg.connect(uri) as holder:
        holder.execute("SELECT count(*) FROM whimbrel.view")
        with pytest.raises(StoreUnavailable, match="still in its files"):
            await store.erase(grace_s=0)
        assert len((await store.search(unit_vectors(1)[0], 5)).ids) == 5
    await store.erase(grace_s=0)
    assert await store.count() == 10
