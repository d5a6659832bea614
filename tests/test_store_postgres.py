"""What a view in Postgres promises beyond the suite of all stores: its errors, its life with a server, its traces."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import filter_strategies
from own_postgres import OwnPostgres, free_port, own_postgres
from whimbrel.domain import Position, Space
from whimbrel.errors import (
    BadInput,
    ConfigError,
    Conflict,
    DiskFull,
    Forbidden,
    NewerHome,
    SpaceMismatch,
    StoreRefused,
    StoreUnavailable,
    StoreUnsupported,
    ViewDamaged,
    WhimbrelError,
)
from whimbrel.filters import matches, normalise_metadata, parse
from whimbrel.stores.base import DENSE, Reach, Records
from whimbrel.stores.postgres import PostgresStore, index, pool
from whimbrel.stores.postgres.address import parse_address
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


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    with own_postgres() as server:
        yield server


def run(uri: str, *statements: str) -> list[tuple[Any, ...]]:
    """The last one's rows. As the server's administrator, unless the URI says otherwise."""
    with psycopg.connect(uri, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def refusal(uri: str, *, make: bool = True, error: type[WhimbrelError] = StoreRefused) -> WhimbrelError:
    """What a store at `uri` raises, which has a hint and names no password."""
    store = PostgresStore(uri, "view", SPACE)
    try:
        with pytest.raises(error) as caught:
            await (store.create() if make else store.count())
    finally:
        await store.close()
    assert caught.value.hint
    assert "hunter2" not in f"{caught.value.message} {caught.value.hint}"
    return caught.value


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
        with pytest.raises(SpaceMismatch):
            await other.count()
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


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["postgresql://[", "postgresql://u:hunter2@h/d?nosuch=1", "postgresql://h/d?schema="])
def test_a_uri_that_cannot_be_read(bad: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(bad)
    assert "hunter2" not in caught.value.message + caught.value.hint


def test_a_password_is_never_shown() -> None:
    address = parse_address("postgresql://user:hunter2@db.example:5433/app?schema=a%20b")
    assert (address.shown, address.schema) == ("Postgres at db.example:5433/app", "a b")
    assert "hunter2" not in repr(address)
    assert "schema" not in address.conninfo


async def test_too_many_dimensions_are_refused(uri: str) -> None:
    with pytest.raises(BadInput, match="16,000"):
        PostgresStore(uri, "view", Space("test", "1", 16_001))


async def test_a_server_without_pgvector(uri: str) -> None:
    (name,) = run(uri, "SELECT current_database()")[0]
    run(uri, f"ALTER DATABASE {name} SET extension_control_path = '/nowhere'")
    assert "pgvector is not installed" in (await refusal(uri, error=StoreUnsupported)).message


async def test_versions_that_are_too_old_are_named(store: PostgresStore, uri: str, monkeypatch: Any) -> None:
    run(uri, "UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    await store.close()
    assert "pgvector 0.7.4; 0.8.0" in (await refusal(uri, make=False, error=StoreUnsupported)).message
    monkeypatch.setattr(pool, "MIN_SERVER", 990_000)
    assert "is of version 18" in (await refusal(uri, make=False, error=StoreUnsupported)).message


async def test_a_database_of_another_encoding(server: OwnPostgres) -> None:
    server.run("DROP DATABASE IF EXISTS latin")
    server.run("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    uri = server.uri.removesuffix("postgres") + "latin"
    assert "LATIN1" in (await refusal(uri, error=StoreUnsupported)).message


async def test_roles_without_rights(server: OwnPostgres) -> None:
    server.run("DROP DATABASE IF EXISTS rights")
    server.run("DROP ROLE IF EXISTS guest")
    server.run("CREATE ROLE guest LOGIN")
    server.run("CREATE DATABASE rights")
    as_guest = f"postgresql://guest@127.0.0.1:{server.port}/rights"
    assert "may not make it" in (await refusal(as_guest)).message  # the extension
    server.run("CREATE EXTENSION vector", "rights")
    assert "lacks a right" in (await refusal(as_guest)).message  # a schema
    server.run("CREATE SCHEMA whimbrel AUTHORIZATION guest", "rights")
    store = PostgresStore(as_guest, "view", SPACE)
    await store.create()
    await store.apply(rows_of([{}] * 20), (), Position("e", 1, "s"))
    await store.erase(grace_s=0)
    assert await store.count() == 20
    server.run("REVOKE ALL ON whimbrel.view FROM guest", "rights")
    server.run("ALTER TABLE whimbrel.view OWNER TO postgres", "rights")
    with pytest.raises(StoreRefused, match="lacks a right"):
        await store.count()
    await store.close()
    server.run("REVOKE CONNECT ON DATABASE rights FROM public")
    assert "may not connect" in (await refusal(as_guest)).message


async def test_a_standby_takes_no_writes(server: OwnPostgres) -> None:
    server.run("DROP DATABASE IF EXISTS standby")
    server.run("CREATE DATABASE standby")
    uri = server.uri.removesuffix("postgres") + "standby"
    server.run("CREATE EXTENSION vector", "standby")
    assert "no writes" in (await refusal(f"{uri}?options=-cdefault_transaction_read_only%3Don")).message


@pytest.fixture
def locked(server: OwnPostgres) -> Iterator[Callable[[str], None]]:
    """Set how users are let in over the network."""
    rules = server.folder / "pg_hba.conf"
    before = rules.read_text()

    def lock(rule: str) -> None:
        rules.write_text(f"{rule}\n{before}")
        server.run("SELECT pg_reload_conf()")
        deadline = 100
        while deadline and server.run("SELECT count(*) FROM pg_hba_file_rules WHERE line_number = 1") == [(0,)]:
            deadline -= 1

    server.run("DROP ROLE IF EXISTS keyed")
    server.run("CREATE ROLE keyed LOGIN SUPERUSER PASSWORD 'right'")
    yield lock
    rules.write_text(before)
    server.run("SELECT pg_reload_conf()")


async def test_a_wrong_password(server: OwnPostgres, locked: Callable[[str], None]) -> None:
    locked("host all keyed all scram-sha-256")
    where = f"127.0.0.1:{server.port}/postgres"
    for user in ("keyed:hunter2", "keyed", "nobody:hunter2"):
        assert "user or password" in (await refusal(f"postgresql://{user}@{where}", make=False)).message
    assert "no such database" in (await refusal(f"postgresql://keyed:right@{where}x", make=False)).message


async def test_tls_against_plain_and_plain_against_tls(server: OwnPostgres, locked: Callable[[str], None]) -> None:
    assert "speaks no TLS" in (await refusal(f"{server.uri}?sslmode=require")).message
    locked("hostnossl all keyed all reject")
    plain = f"postgresql://keyed:right@127.0.0.1:{server.port}/postgres?sslmode=disable"
    assert "without TLS" in (await refusal(plain)).message


async def test_nobody_at_the_port(server: OwnPostgres) -> None:
    uri = f"postgresql://postgres:hunter2@127.0.0.1:{free_port()}/postgres"
    assert "no answer" in (await refusal(uri, error=StoreUnavailable)).message


async def test_another_server_at_the_port() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        uri = f"postgresql://postgres@127.0.0.1:{listener.getsockname()[1]}/postgres"
        assert "not Postgres" in (await refusal(uri)).message
        listener.shutdown(socket.SHUT_RDWR)


# --- a server's life -------------------------------------------------------------------------------------------------


async def until(work: Callable[[], Awaitable[Any]]) -> Any:
    """What `work` returns once the server answers: nobody has to open anything again."""
    for _ in range(200):
        try:
            return await work()
        except StoreUnavailable:
            await asyncio.sleep(0.05)
    return await work()


@pytest.fixture
async def served(server: OwnPostgres) -> AsyncIterator[PostgresStore]:
    """A store of 6,000 rows with an index, on a server that may be killed."""
    store = PostgresStore(server.uri, "served", SPACE)
    await store.drop()
    await store.create()
    await store.apply(rows_of([{"n": i} for i in range(6_000)]), (), Position("e", 1, "s"), new=True)
    await store.maintain(full=True)
    yield store
    await store.close()


async def test_a_server_that_is_killed_and_comes_back(server: OwnPostgres, served: PostgresStore) -> None:
    query = unit_vectors(1, 3)[0]
    before = await served.search(query, 10)
    server.run("CHECKPOINT")
    server.kill()
    for read in (
        lambda: served.search(query, 10),
        served.count,
        lambda: served.apply(None, ["000001"], Position("e", 2, "")),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            await read()
        assert caught.value.hint
    server.start()
    assert (await until(lambda: served.search(query, 10))).ids == before.ids
    assert await served.position() == Position("e", 1, "s")
    assert await served.count() == 6_000


async def test_a_restart_costs_no_search(server: OwnPostgres, served: PostgresStore) -> None:
    query = unit_vectors(1, 3)[0]
    await asyncio.gather(*(served.search(query, 10) for _ in range(20)))
    server.stop()
    server.start()
    assert all(len(found.ids) == 10 for found in await asyncio.gather(*(served.search(query, 10) for _ in range(20))))


async def test_a_server_that_dies_inside_a_query(server: OwnPostgres, served: PostgresStore) -> None:
    holder = psycopg.connect(server.uri)
    holder.execute("LOCK TABLE whimbrel.served IN ACCESS EXCLUSIVE MODE")
    search = asyncio.create_task(served.search(unit_vectors(1)[0], 3))
    write = asyncio.create_task(served.apply(rows_of([{}], first=9_000), (), Position("e", 2, "t")))
    await asyncio.sleep(0.3)
    assert not search.done()
    assert not write.done()
    server.kill()
    for waiting in (search, write):
        with pytest.raises(StoreUnavailable):
            await waiting
    with suppress(psycopg.Error):
        holder.close()
    server.start()
    assert await until(served.position) == Position("e", 1, "s")
    assert await served.count() == 6_000
    await served.apply(rows_of([{}], first=9_000), (), Position("e", 2, "t"))
    assert await served.count() == 6_001


async def test_a_connection_that_is_ended_inside_a_scan_is_an_error(server: OwnPostgres, served: PostgresStore) -> None:
    scan = served.scan(batch=100)
    await anext(scan)
    server.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'whimbrel' AND pid <> pg_backend_pid()"
    )
    with pytest.raises(StoreUnavailable):
        async for _ in scan:
            pass
    assert await served.count() == 6_000


async def test_who_gives_up_on_a_frozen_server_goes_at_once(server: OwnPostgres, served: PostgresStore) -> None:
    loop = asyncio.get_running_loop()
    with server.frozen():
        search = asyncio.create_task(served.search(unit_vectors(1)[0], 3))
        await asyncio.sleep(0.2)
        began = loop.time()
        search.cancel()
        with pytest.raises(asyncio.CancelledError):
            await search
        waited = loop.time() - began
    assert waited < 4, "the driver itself waits 5 seconds for the server to cancel the statement"
    assert len((await until(lambda: served.search(unit_vectors(1)[0], 3))).ids) == 3


async def test_a_statement_that_takes_too_long_is_ended(server: OwnPostgres, served: PostgresStore) -> None:
    fresh = PostgresStore(server.uri, "served", SPACE, reach=Reach(timeout_s=0.2))
    with psycopg.connect(server.uri) as holder:
        holder.execute("LOCK TABLE whimbrel.served IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable, match="longer than it may"):
            await fresh.count()
    assert await fresh.count() == 6_000
    await fresh.close()


async def test_more_searches_than_connections_wait_their_turn(served: PostgresStore) -> None:
    queries = unit_vectors(200, 50)
    found = await asyncio.gather(*(served.search(query, 5) for query in queries))
    assert all(len(one.ids) == 5 for one in found)


async def test_readers_see_whole_batches_while_others_write(served: PostgresStore, server: OwnPostgres) -> None:
    reader = PostgresStore(server.uri, "served", SPACE, read_only=True)
    stop = asyncio.Event()

    async def write() -> None:
        for batch in range(40):
            added = rows_of([{"batch": batch}] * 50, first=10_000 + 50 * batch)
            await served.apply(
                added, [f"{i:06d}" for i in range(50 * batch, 50 * batch + 50)], Position("e", batch, "s")
            )
        stop.set()

    writing = asyncio.create_task(write())
    while not stop.is_set():
        assert await reader.count() == 6_000
        scanned = [id_ async for batch in reader.scan(batch=1_000) for id_ in batch.ids]
        assert len(scanned) == len(set(scanned)) == 6_000
        assert len((await reader.search(unit_vectors(1)[0], 10)).ids) == 10
    await writing
    await reader.close()


async def test_a_full_disk_is_said_and_what_was_written_stays(server: OwnPostgres, served: PostgresStore) -> None:
    small = server.folder.parent / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m,mode=777", "none", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    if server.user:
        shutil.chown(small, server.user)
    server.run(f"CREATE TABLESPACE small LOCATION '{small}'")
    try:
        server.run("ALTER DATABASE postgres SET default_tablespace = small")
        store = PostgresStore(f"{server.uri}?application_name=full", "full", SPACE)
        await store.create()
        await store.apply(rows_of([{}] * 100), (), Position("e", 1, "s"))
        with pytest.raises(DiskFull) as caught:
            await store.apply(rows_of([{}] * 20_000, first=1_000, text="x" * 500), (), Position("e", 2, "s"), new=True)
        assert caught.value.hint
        assert await store.count() == 100
        assert await store.position() == Position("e", 1, "s")
        await store.drop()
        await store.close()
    finally:
        server.run("ALTER DATABASE postgres RESET default_tablespace")
        server.run("CHECKPOINT")
        server.run("DROP TABLESPACE small")
        subprocess.run(["umount", "-l", str(small)], check=True)


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
