"""What a store in Postgres says when it is refused, and how it lives with a server that comes and goes."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest

from own_postgres import OwnPostgres, free_port, own_postgres
from whimbrel.domain import Position, Space
from whimbrel.errors import (
    BadInput,
    ConfigError,
    DiskFull,
    StoreRefused,
    StoreUnavailable,
    StoreUnsupported,
    WhimbrelError,
)
from whimbrel.stores.base import Reach
from whimbrel.stores.postgres import PostgresStore, pool
from whimbrel.stores.postgres.address import parse_address
from whimbrel.testing import rows_of, unit_vectors

DIMENSIONS = 16
SPACE = Space("test", "1", DIMENSIONS)


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
