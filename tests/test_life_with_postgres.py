"""A home whose views are in a Postgres that comes and goes: searches degrade and say so, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from own_postgres import OwnPostgres, own_postgres
from whimbrel import Whimbrel
from whimbrel.domain import Mode, SearchResult
from whimbrel.errors import ViewError

BIRDS = {
    "curlew": "The curlew has a long bill that bends down, and calls over wet moors.",
    "godwit": "The godwit flies from Alaska to New Zealand in eight days without landing.",
    "plover": "The plover runs a few steps, stops, and picks worms from the sand.",
    "heron": "The heron stands in shallow water and waits for fish.",
}


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    with own_postgres() as server:
        yield server


def texts(*names: str) -> list[dict[str, object]]:
    return [{"id": name, "text": BIRDS[name], "metadata": {"bird": name}} for name in names]


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def dense(home: Whimbrel, bird: str, collection: str) -> SearchResult:
    return home.search(BIRDS[bird], collection, mode=Mode.DENSE, filter={"bird": bird})


def is_whole(home: Whimbrel, collection: str, *birds: str) -> bool:
    found = [home.search(BIRDS[bird], collection) for bird in birds]
    return all(not one.degraded for one in found) and all(
        [hit.metadata["bird"] for hit in dense(home, bird, collection).hits] == [bird] for bird in birds
    )


def test_a_server_that_goes_and_comes_back(server: OwnPostgres, tmp_path: Path) -> None:
    with Whimbrel(home=tmp_path, store=server.uri) as home:
        home.add(texts("curlew", "godwit"), "b")
        assert is_whole(home, "b", "curlew", "godwit")
        server.kill()

        found = home.search(BIRDS["godwit"], "b")
        assert found.hits[0].metadata["bird"] == "godwit"
        assert [said.split(":")[0] for said in found.degraded] == ["store"]
        with pytest.raises(ViewError):
            dense(home, "godwit", "b")

        home.add(texts("plover"), "b", wait="lexical")
        home.delete(["curlew"], "b")
        found = home.search(BIRDS["plover"], "b")
        assert (found.hits[0].metadata["bird"], bool(found.degraded)) == ("plover", True)
        assert all(hit.metadata["bird"] != "curlew" for hit in home.search(BIRDS["curlew"], "b").hits)

        server.start()
        until(lambda: not home.search(BIRDS["plover"], "b").degraded)
        assert is_whole(home, "b", "godwit", "plover")
        assert dense(home, "curlew", "b").hits == []


def test_a_server_that_is_away_at_the_start(server: OwnPostgres, tmp_path: Path) -> None:
    with Whimbrel(home=tmp_path, store=server.uri) as home:
        home.add(texts("heron"), "s")
    server.stop()
    with Whimbrel(home=tmp_path, store=server.uri) as home:
        found = home.search(BIRDS["heron"], "s")
        assert (found.hits[0].metadata["bird"], bool(found.degraded)) == ("heron", True)
        home.add(texts("plover"), "new", wait="lexical")
        assert home.search(BIRDS["plover"], "new").hits[0].metadata["bird"] == "plover"
        server.start()
        until(lambda: is_whole(home, "s", "heron") and is_whole(home, "new", "plover"))


def test_catalog_and_views_in_one_database(server: OwnPostgres, tmp_path: Path) -> None:
    server.run("CREATE DATABASE one")
    uri = server.uri.removesuffix("postgres") + "one"
    with Whimbrel(home=tmp_path, store=uri, catalog=uri.replace("postgresql:", "postgresql+psycopg:")) as home:
        home.add(texts("heron", "plover"), "c")
        assert is_whole(home, "c", "heron", "plover")
        home.finish(home.purge(["heron"], "c"))
        assert dense(home, "heron", "c").hits == []
        home.delete_collection("c")
        until(lambda: server.run("SELECT count(*) FROM pg_tables WHERE schemaname = 'whimbrel'", "one") == [(1,)])
