"""What a view in Chroma promises, in a folder and behind a server: beyond what every store does."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chroma_server import ChromaServer
from filter_strategies import filters, metadatas
from small_disk import fill, small_disk
from whimbrel.domain import Matches, Position, Space
from whimbrel.errors import (
    BadInput,
    ConfigError,
    Conflict,
    DiskFull,
    Forbidden,
    HomeError,
    SpaceMismatch,
    StoreRefused,
    StoreUnavailable,
    StoreUnsupported,
    TooLarge,
    ViewDamaged,
    ViewError,
)
from whimbrel.filters import Compare, Filter, Op, flatten, matches, parse
from whimbrel.stores import chroma
from whimbrel.stores.base import DENSE, Reach, Records
from whimbrel.stores.chroma import ChromaStore, embedded, folder
from whimbrel.stores.chroma import server as chroma_server
from whimbrel.stores.chroma.uri import parse_server

pytest.importorskip("chromadb")

DIMENSIONS = 16
SPACE = Space("test", "1", DIMENSIONS)
_numbers = count()


def unit_vectors(count: int, seed: int = 0, dimensions: int = DIMENSIONS) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def records(metadata: Sequence[dict[str, Any]], *, first: int = 0, text: str = "text") -> Records:
    count = len(metadata)
    ids = [f"{i:06d}" for i in range(first, first + count)]
    return Records(ids, {DENSE: unit_vectors(count, first)}, [f"{text} {i}" for i in ids], metadata)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    server = ChromaServer(tmp_path_factory.mktemp("server") / "data")
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["folder", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return f"chroma:{tmp_path}/chroma"
    server: ChromaServer = request.getfixturevalue("server")
    return server.uri


def opened(place: str, name: str | None = None, **options: Any) -> ChromaStore:
    return ChromaStore(place, name or f"view_{next(_numbers)}", SPACE, base=Path(), **options)


@pytest.fixture
async def store(place: str) -> AsyncIterator[ChromaStore]:
    store = opened(place)
    await store.create()
    yield store
    await store.close()


# --- metadata --------------------------------------------------------------------------------------------------------

AWKWARD: list[dict[str, Any]] = [
    {},
    {"none": None, "empty": [], "nested": {"empty": {}, "list": [[], {}]}},
    {
        "big": 2**63 - 1,
        "small": -(2**63),
        "odd": 2**53 + 1,
        "zero": -0.0,
        "tiny": 5e-324,
        "huge": 1.7976931348623157e308,
    },
    {"past": 2**64 + 1, "below": [-(2**70)], "thirds": 1 / 3, "decimals": [0.1, 123456.789012345678]},
    {"chroma:document": "x", "chroma:y": 1, "#document": "y", "#": 1, "$eq": 2, "$and": [1], "whimbrel:odd": ["z"]},
    {"key": 1, "Key": "one", "KEY": [True]},
    {"a.b": 1, "a": {"b": 2, "c": [{"d": "x"}, {"d": "y"}]}},
    {
        "quote'\"`": "'; DROP TABLE embeddings; --",
        "back\\slash": "\\'",
        "": "empty key",
        "línea\n😀": "\uffff\U00010000",
    },
    {"mixed": [1, 2.5, "two", True, None, {"deep": [1]}], "long": "x" * 60_000},
    {"one": ["a"], "ints": [1, 2], "floats": [1.0, 2.5], "booleans": [True, False], "nested": [["a"], ["b"]]},
    {"infinite": math.inf, "minus": [-math.inf]},
]


async def test_metadata_comes_back_as_it_was_given(store: ChromaStore) -> None:
    rows = records(AWKWARD)
    await store.upsert(rows, new=True)
    await store.upsert(rows)
    found = await store.fetch(rows.ids)
    by_id = dict(zip(found.ids, found.metadata, strict=True))
    assert [by_id[i] for i in rows.ids] == AWKWARD
    assert math.copysign(1, by_id["000002"]["zero"]) == -1
    assert [type(v) for v in by_id["000008"]["mixed"][:4]] == [int, float, str, bool]


async def test_metadata_replaces_what_was_there(store: ChromaStore) -> None:
    """Chroma's own upsert keeps the keys that do not come again."""
    for metadata in [*AWKWARD, {"site": "docs"}, {"site": ["a", "b"]}, {}]:
        await store.upsert(records([metadata]))
        assert (await store.fetch(["000000"])).metadata == [metadata]
    assert not (await store.search(unit_vectors(1)[0], 5, parse({"site": "docs"}))).ids


async def test_awkward_values_are_found_by_filters(store: ChromaStore) -> None:
    await store.upsert(records(AWKWARD), new=True)
    for row, metadata in enumerate(AWKWARD):
        for path, scalars in flatten(metadata).items():
            for scalar in scalars:
                found = await store.search(unit_vectors(1)[0], 20, Compare(path, Op.EQ, (scalar,)))
                assert f"{row:06d}" in found.ids, (path, scalar)


async def test_what_another_store_of_the_process_writes_is_seen(store: ChromaStore, place: str) -> None:
    """Of a folder each remembers what the collection is: arrays that come later at a path change what a filter asks."""
    other = opened(place, store._name)
    await store.upsert(records([{"site": "docs"}]), new=True)
    assert list((await other.search(unit_vectors(1)[0], 5, parse({"site": "docs"}))).ids) == ["000000"]
    await store.upsert(records([{"site": ["docs", "more"]}, {"site": 0.1 + 0.2}], first=1), new=True)
    await store.set_position(Position("e", 7, "s"))
    assert await other.position() == Position("e", 7, "s")
    found = await other.search(unit_vectors(1)[0], 5, parse({"site": "docs"}))
    assert sorted(found.ids) == ["000000", "000001"]
    assert list((await other.search(unit_vectors(1)[0], 5, parse({"site": {"$lte": 0.3}}))).ids) == []
    await other.close()


async def test_other_programs_find_plain_keys(store: ChromaStore, place: str) -> None:
    import chromadb

    await store.upsert(records([{"year": 2020, "site": "docs", "tags": ["a", "b"], "odd": None}]), new=True)
    await store.close()
    if place.startswith("chroma:"):
        client = chromadb.PersistentClient(place.removeprefix("chroma:"))
    else:
        client = chromadb.HttpClient("127.0.0.1", int(place.rpartition(":")[2]))
    collection = client.get_collection(store._name, embedding_function=None)
    found = collection.get(where={"$and": [{"year": 2020}, {"site": "docs"}, {"tags": {"$contains": "a"}}]})
    assert (found["ids"], found["documents"]) == (["000000"], ["text 000000"])
    assert found["metadatas"][0]["tags"] == ["a", "b"]
    client.close()


async def test_what_a_killed_writer_left_half_done_is_rolled_back(tmp_path: Path) -> None:
    """Its journal lies beside the database, which cannot be read before it has been written back."""
    place = f"chroma:{tmp_path / 'chroma'}"
    store = opened(place)
    await store.create()
    await store.upsert(records([{}] * 5))
    await store.close()
    database = tmp_path / "chroma" / "chroma.sqlite3"
    code = f"""
        import os, sqlite3
        database = sqlite3.connect({str(database)!r}, isolation_level=None)
        database.execute("PRAGMA cache_size = 1")
        database.execute("BEGIN")
        database.execute("DELETE FROM embeddings")
        database.execute("CREATE TABLE left_over AS SELECT randomblob(1000000)")
        os._exit(9)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60)
    assert database.with_name("chroma.sqlite3-journal").stat().st_size
    again = opened(place, store._name)
    assert await again.count() == 5
    assert len(await again.fetch(await again.ids())) == 5
    await again.close()


async def test_no_row_inherits_what_a_dropped_collection_had(store: ChromaStore, place: str) -> None:
    """Chroma leaves the arrays of a dropped collection behind, and gives its row numbers again."""
    await store.upsert(records([{"tags": ["ghost", "of"], "n": i} for i in range(20)]))
    name = store._name
    collection = await store._open()
    await store._backend.drop(collection)
    again = opened(place, name)
    await again.create()
    await again.upsert(records([{"n": i} for i in range(20)]), new=True)
    assert (await again.fetch(["000007"])).metadata == [{"n": 7}]
    assert not (await again.search(unit_vectors(1)[0], 5, parse({"tags": "ghost"}))).ids
    assert len((await again.search(unit_vectors(1)[0], 50, parse({"tags": {"$ne": "ghost"}}))).ids) == 20
    await again.close()


# --- rows ------------------------------------------------------------------------------------------------------------

IDS = [
    "",
    " ",
    "whimbrel:id:",
    "whimbrel:id:whimbrel:id:a",
    "a\nb",
    "é😀",
    "x" * 3_000,
    "'\"\\",
    "a/b?c#d",
    "A",
    "a",
    "\u200b",
]


async def test_ids_of_any_form_come_back(store: ChromaStore) -> None:
    rows = Records(IDS, {DENSE: unit_vectors(len(IDS))}, IDS, [{}] * len(IDS))
    await store.upsert(rows, new=True)
    assert sorted(await store.ids()) == sorted(IDS)
    found = await store.fetch([*IDS, "unknown"])
    assert sorted(zip(found.ids, found.texts, strict=True)) == sorted(zip(IDS, IDS, strict=True))
    assert sorted((await store.search(unit_vectors(1)[0], 50)).ids) == sorted(IDS)
    assert sorted((await store.search(unit_vectors(1)[0], 50, ids=["", "A", "unknown"])).ids) == ["", "A"]
    await store.delete(["", "a", "unknown"])
    assert sorted(await store.ids()) == sorted({*IDS} - {"", "a"})


async def test_rows_are_written_replaced_and_removed(store: ChromaStore) -> None:
    first = records([{"n": i} for i in range(50)])
    await store.upsert(first, new=True)
    await store.upsert(records([{"n": "changed", "more": i} for i in range(20)], first=40, text="new"))
    await store.delete(["000000", "000041", "unknown"])
    kept = {f"{i:06d}" for i in range(60)} - {"000000", "000041"}
    assert set(await store.ids()) == kept
    assert await store.count() == len(kept)
    scanned = [batch async for batch in store.scan(batch=7)]
    assert all(len(batch) <= 7 for batch in scanned)
    assert sorted(i for batch in scanned for i in batch.ids) == sorted(kept)
    found = await store.fetch(["000001", "000040", "000000", "unknown"])
    rows = dict(zip(found.ids, zip(found.texts, found.metadata, found.vectors[DENSE], strict=True), strict=True))
    assert set(rows) == {"000001", "000040"}
    assert rows["000040"][:2] == ("new 000040", {"n": "changed", "more": 0})
    assert np.allclose(rows["000001"][2], first.vectors[DENSE][1], atol=1e-6)


async def test_nothing_is_nothing(store: ChromaStore) -> None:
    await store.upsert(records([]))
    await store.delete([])
    assert len(await store.fetch([])) == 0
    assert len(await store.fetch(["unknown"])) == 0
    assert await store.ids() == []
    assert [batch async for batch in store.scan()] == []
    assert (await store.search(unit_vectors(1)[0], 5)).ids == []
    assert (await store.search(unit_vectors(1)[0], 5, ids=["unknown"])).ids == []
    assert await store.position() is None
    await store.maintain()


async def test_an_id_that_comes_twice_keeps_its_last_row(store: ChromaStore) -> None:
    twice = Records(["a", "b", "a"], {DENSE: unit_vectors(3)}, ["old", "b", "last"], [{"n": 1}, {}, {"n": 2}])
    await store.upsert(twice)
    found = await store.fetch(["a"])
    assert (found.texts, found.metadata) == (["last"], [{"n": 2}])
    assert await store.count() == 2


async def test_deletes_during_a_scan_lose_nothing_else(store: ChromaStore) -> None:
    await store.upsert(records([{}] * 300), new=True)
    seen: set[str] = set()
    deleted = {f"{i:06d}" for i in range(0, 300, 3)}
    async for batch in store.scan(batch=20):
        seen.update(batch.ids)
        if deleted:
            await store.delete(sorted(deleted))
            deleted_now, deleted = deleted, set()
    assert {f"{i:06d}" for i in range(300)} - deleted_now <= seen


async def test_the_position_is_kept_with_the_data(place: str) -> None:
    store = opened(place)
    await store.create()
    batch = records([{"n": i} for i in range(30)])
    for _ in range(2):
        await store.apply(batch, ["unknown"], Position("epoch", 30, "stamp"))
    assert await store.count() == 30
    await store.close()
    again = opened(place, store._name)
    assert await again.position() == Position("epoch", 30, "stamp")
    assert len((await again.search(unit_vectors(1)[0], 50)).ids) == 30
    await again.close()


# --- search ----------------------------------------------------------------------------------------------------------


async def test_scores_are_cosines_and_best_first(store: ChromaStore) -> None:
    rows = records([{}] * 400)
    await store.upsert(rows, new=True)
    query = unit_vectors(1, seed=99)[0]
    cosines = rows.vectors[DENSE] @ query
    best = np.argsort(-cosines)[:10]
    found = await store.search(query, 10)
    assert found.ids == [rows.ids[i] for i in best]
    assert found.scores.dtype == np.float32
    assert np.allclose(found.scores, cosines[best], atol=1e-6)
    everything = await store.search(query, 1_000)
    assert len(everything.ids) == 400
    assert everything.scores.min() == 0.0


async def test_ties_break_by_id(store: ChromaStore) -> None:
    same = np.repeat(unit_vectors(1), 500, axis=0)
    ids = [f"{(i * 7919) % 500:06d}" for i in range(500)]
    await store.upsert(Records(ids, {DENSE: same}, ids, [{}] * 500), new=True)
    assert (await store.search(same[0], 20)).ids == sorted(ids)[:20]


@pytest.mark.soak  # the suite of stores draws some too
@pytest.mark.parametrize("kind", ["folder", "server"])
def test_filters_mean_what_the_evaluator_says(
    kind: str, server: ChromaServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(metadatas, min_size=1, max_size=12), st.lists(filters, min_size=1, max_size=8))
    def check(metadata: list[dict[str, Any]], wheres: list[Filter]) -> None:
        asyncio.run(compare(metadata, wheres))

    async def compare(metadata: list[dict[str, Any]], wheres: list[Filter]) -> None:
        folder = f"chroma:{tmp_path_factory.mktemp('filters')}"
        store = opened(folder if kind == "folder" else server.uri)
        await store.create()
        half = len(metadata) // 2
        await store.upsert(records(metadata[:half]), new=True)
        await store.upsert(records(metadata[half:], first=half), new=True)
        found = await store.fetch([f"{i:06d}" for i in range(len(metadata))])
        assert dict(zip(found.ids, found.metadata, strict=True)) == {f"{i:06d}": m for i, m in enumerate(metadata)}
        for where in wheres:
            expected = [f"{i:06d}" for i, one in enumerate(metadata) if matches(where, one)]
            assert sorted((await store.search(unit_vectors(1)[0], 50, where)).ids) == expected, where
        await store.drop()

    check()


# --- what is refused -------------------------------------------------------------------------------------------------


async def test_a_collection_is_made_once_and_dropped_alone(store: ChromaStore, place: str) -> None:
    other = opened(place)
    await other.create()
    with pytest.raises(Conflict):
        await opened(place, store._name).create()
    await store.drop()
    await store.drop()
    assert not await store.exists()
    assert await other.exists()
    with pytest.raises(ViewDamaged):
        await store.count()
    await store.create()
    assert await store.count() == 0
    await other.close()


async def test_a_collection_of_another_space_metric_or_program_is_refused(place: str) -> None:
    store = opened(place)
    await store.create()
    await store.upsert(records([{}]))
    name = store._name
    with pytest.raises(SpaceMismatch, match="space") as mismatch:
        await ChromaStore(place, name, Space("other", "1", DIMENSIONS), base=Path()).count()
    assert "Nothing was changed" in mismatch.value.hint
    with pytest.raises(SpaceMismatch):
        await store.search(unit_vectors(1, dimensions=8)[0], 1)
    with pytest.raises(SpaceMismatch):
        await store.upsert(Records(["a"], {DENSE: unit_vectors(1, dimensions=8)}, ["t"], [{}]))
    with pytest.raises(BadInput):
        await store.upsert(Records(["a"], {DENSE: unit_vectors(1) * np.nan}, ["t"], [{}]))
    client = theirs(place, store)
    for metric, dimensions, error in [("l2", 16, "metric 'l2'"), ("ip", 16, "'ip'"), ("cosine", 8, "8 dimensions")]:
        made = client.create_collection(
            f"{name}_{metric}", configuration={"hnsw": {"space": metric}}, embedding_function=None
        )
        made.upsert(ids=["a"], embeddings=unit_vectors(1, dimensions=dimensions), documents=["t"])
        with pytest.raises(SpaceMismatch, match=error):
            await opened(place, f"{name}_{metric}").count()
    foreign = opened(place, f"{name}_mine")
    client.create_collection(
        f"{name}_mine", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
    ).upsert(ids=["a"], embeddings=unit_vectors(1), documents=["t"])
    for write in (lambda: foreign.upsert(records([{}])), lambda: foreign.delete(["a"]), foreign.drop, foreign.count):
        with pytest.raises(Conflict, match="another program"):
            await write()
    reader = opened(place, f"{name}_mine", read_only=True)
    assert (await reader.search(unit_vectors(1)[0], 1)).ids == ["a"]
    client.get_collection(name, embedding_function=None).modify(metadata={"whimbrel:format": 2})
    with pytest.raises(StoreUnsupported, match="newer"):
        await opened(place, name).count()
    client.close()
    for one in (store, foreign, reader):
        await one.close()


def theirs(place: str, store: ChromaStore) -> Any:
    """chromadb's own client of the same place; in a folder it shares what this process has open."""
    import chromadb
    from chromadb.config import Settings

    if place.startswith("chroma:"):
        return chromadb.PersistentClient(
            str(Path(place.removeprefix("chroma:")).resolve()), settings=Settings(anonymized_telemetry=False)
        )
    return chromadb.HttpClient("127.0.0.1", int(place.rpartition(":")[2]))


@pytest.mark.parametrize("name", ["ab", "a b", "é" * 5, "_abc", "a..b", "1.2.3.4", "x" * 513])
async def test_a_name_that_chroma_does_not_take_is_said(place: str, name: str) -> None:
    store = opened(place, name)
    with pytest.raises(StoreRefused, match="name") as refused:
        await store.create()
    assert "3 to 512" in refused.value.hint
    await store.close()


async def test_what_is_read_only_is_not_written(store: ChromaStore, place: str) -> None:
    await store.upsert(records([{}]), new=True)
    reader = opened(place, store._name, read_only=True)
    assert await reader.count() == 1
    writes: list[Callable[[], Any]] = [
        lambda: reader.upsert(records([{}])),
        lambda: reader.delete(["000000"]),
        lambda: reader.set_position(Position("e", 1, "s")),
        reader.drop,
        lambda: reader.erase(grace_s=0),
    ]
    for write in writes:
        with pytest.raises(Forbidden):
            await write()
    assert await reader.count() == 1
    await reader.close()


# --- a folder --------------------------------------------------------------------------------------------------------


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process that has made `store`, on the collection "view" in the folder given first."""
    prelude = """
        import asyncio, sys, os
        import numpy as np
        from pathlib import Path
        from whimbrel.domain import Position, Space
        from whimbrel.stores.base import DENSE, Reach, Records
        from whimbrel.stores.chroma import ChromaStore
        store = ChromaStore("chroma:" + sys.argv[1], "view", Space("test", "1", 16), base=Path())
    """
    source = textwrap.dedent(prelude) + textwrap.dedent(code)
    path = os.pathsep.join(filter(None, [str(Path(chroma.__file__).parents[3]), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


async def test_a_second_process_is_refused_with_the_way_out(tmp_path: Path) -> None:
    store = opened(f"chroma:{tmp_path}", "view")
    await store.create()
    assert store.describe().single_process
    code = """
        from whimbrel.errors import AlreadyOwned
        try:
            asyncio.run(store.count())
        except AlreadyOwned as error:
            print(error.message, error.hint)
    """
    out, _ = run_python(code, tmp_path).communicate()
    assert f"process {os.getpid()}" in out
    assert "chroma run" in out
    other = opened(f"chroma:{tmp_path}", "view")
    assert await other.count() == 0  # of this process: they share it
    await store.close()
    assert await other.count() == 0
    await other.close()
    out, _ = run_python("print(asyncio.run(store.count()))", tmp_path).communicate()
    assert out.strip() == "0"


async def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    code = """
        async def main():
            await store.create()
            for start in range(0, 100_000, 100):
                ids = [f"{i:06d}" for i in range(start, start + 100)]
                vectors = np.random.default_rng(start).normal(size=(100, 16)).astype(np.float32)
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                batch = Records(ids, {DENSE: vectors}, ids, [{"n": start}] * 100)
                await store.apply(batch, [], Position("e", start + 100, "s"))
                print(start + 100, flush=True)
        asyncio.run(main())
    """
    writer = run_python(code, tmp_path)
    assert writer.stdout is not None
    done = 0
    while done < 1_500:
        done = int(writer.stdout.readline())
    writer.kill()
    writer.wait()
    store = opened(f"chroma:{tmp_path}", "view")
    position = await store.position()
    assert position is not None
    assert position.position >= done
    assert {f"{i:06d}" for i in range(position.position)} <= set(await store.ids())
    found = await store.search(unit_vectors(1)[0], 3_000)
    assert sorted(found.ids) == sorted(await store.ids())
    await store.close()


async def test_of_two_that_make_a_collection_at_once_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = embedded._find

    def slow(client: Any, name: str) -> Any:
        found = find(client, name)
        time.sleep(0.3)  # the other looks meanwhile
        return found

    monkeypatch.setattr(embedded, "_find", slow)
    stores = [opened(f"chroma:{tmp_path}/chroma", "one") for _ in range(2)]
    made = await asyncio.gather(*(store.create() for store in stores), return_exceptions=True)
    assert sorted(type(one).__name__ for one in made) == ["Conflict", "NoneType"]
    for store in stores:
        assert await store.count() == 0
        await store.close()


async def test_a_folder_of_a_newer_chroma_is_not_opened(tmp_path: Path) -> None:
    store = opened(f"chroma:{tmp_path}", "view")
    await store.create()
    await store.close()
    with closing(sqlite3.connect(tmp_path / "chroma.sqlite3")) as database:
        database.execute("INSERT INTO migrations VALUES ('metadb', 99, '00099-later.sqlite.sql', '', '')")
        database.commit()
    before = (tmp_path / "chroma.sqlite3").read_bytes()
    with pytest.raises(StoreUnsupported, match="newer version of chromadb"):
        await store.count()
    assert (tmp_path / "chroma.sqlite3").read_bytes() == before


async def test_a_folder_without_its_database_is_not_made_by_reading(tmp_path: Path) -> None:
    store = opened(f"chroma:{tmp_path}/unmounted", "view")
    assert not await store.exists()
    for read in (store.count, store.position, store.ids):
        with pytest.raises(ViewDamaged):
            await read()
    assert not (tmp_path / "unmounted").exists()


async def test_a_database_that_is_none_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "chroma.sqlite3").write_bytes(b"no database" * 1_000)
    with pytest.raises(ViewDamaged):
        await opened(f"chroma:{tmp_path}", "view").count()


async def test_a_place_that_is_no_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(HomeError, match="cannot be written"):
        await opened(f"chroma:{tmp_path}/file", "view").create()


async def test_a_read_only_folder_is_said(tmp_path: Path) -> None:
    store = opened(f"chroma:{tmp_path}/data", "view")
    await store.create()
    await store.close()
    data = str(tmp_path / "data")
    if subprocess.run(["mount", "--bind", data, data], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", data], check=True)
        with pytest.raises(HomeError, match="cannot be written"):
            await store.count()
    finally:
        subprocess.run(["umount", "-l", data], check=True)


async def test_erasing_leaves_no_text_in_the_folder(tmp_path: Path) -> None:
    store = opened(f"chroma:{tmp_path}", "view")
    await store.create()
    await store.upsert(
        records([{"m": f"metaword{i}x", "tags": [f"tagword{i}x", "b"]} for i in range(1_500)], text="textword")
    )
    await store.search(unit_vectors(1)[0], 1)
    await store.delete([f"{i:06d}" for i in range(10)])
    other = opened(f"chroma:{tmp_path}", "view")
    assert await other.count() == 1_490
    await store.erase(grace_s=0)
    held = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"textword 000011" in held
    for gone in (b"textword 000007", b"metaword7x", b"tagword7x"):
        assert gone not in held
    assert await other.count() == 1_490
    assert len((await store.search(unit_vectors(1)[0], 2_000)).ids) == 1_490
    await other.close()
    await store.close()


async def test_dropping_leaves_no_vector_in_the_folder(tmp_path: Path) -> None:
    store, other = opened(f"chroma:{tmp_path}", "view"), opened(f"chroma:{tmp_path}", "other")
    await other.create()
    await store.create()
    rows = records([{"tags": ["tagword", "b"]} for i in range(1_500)])
    await store.upsert(rows, new=True)
    await other.upsert(records([{}] * 1_500, first=5_000), new=True)
    await store.drop()
    await other.erase(grace_s=0)
    held = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"tagword" not in held
    assert rows.vectors[DENSE][3].tobytes()[:12] not in held
    assert len((await other.search(unit_vectors(1)[0], 2_000)).ids) == 1_500
    await other.close()
    await store.close()


# --- a server --------------------------------------------------------------------------------------------------------


async def test_a_server_that_goes_and_comes_back_has_lost_nothing(tmp_path: Path) -> None:
    server = ChromaServer(tmp_path / "data")
    store = opened(server.uri, "view")
    with pytest.raises(StoreUnavailable, match="Nobody answers"):
        await store.exists()
    server.start()
    await store.create()
    await store.apply(records([{"n": i} for i in range(2_000)]), [], Position("e", 1, "s"))
    searches = [asyncio.create_task(store.search(unit_vectors(1)[0], 1_000)) for _ in range(200)]
    await asyncio.sleep(0.05)
    server.kill()
    answers = await asyncio.gather(*searches, return_exceptions=True)
    assert all(isinstance(answer, Matches | StoreUnavailable) for answer in answers)
    assert any(isinstance(answer, StoreUnavailable) for answer in answers)
    for call in (store.count, store.position, lambda: store.upsert(records([{}]))):
        with pytest.raises(StoreUnavailable):
            await call()
    server.start()
    assert await store.position() == Position("e", 1, "s")
    assert await store.count() == 2_000
    assert len((await store.search(unit_vectors(1)[0], 3_000)).ids) == 2_000
    server.kill()
    await store.close()


async def test_a_connection_that_the_server_has_closed_is_no_outage(
    server: ChromaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(server.uri)
    await store.create()
    await store.upsert(records([{}] * 4))
    send, broken = httpx.AsyncClient.request, list[str]()

    async def request(self: httpx.AsyncClient, method: str, url: Any, **more: Any) -> httpx.Response:
        if not broken and str(url).endswith("/delete"):
            broken.append(str(url))
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        return await send(self, method, url, **more)

    monkeypatch.setattr(httpx.AsyncClient, "request", request)
    await store.delete(["000001"])
    assert len(broken) == 1
    assert await store.count() == 3
    await store.close()


async def test_a_server_without_its_data_is_a_damaged_view(tmp_path: Path) -> None:
    server = ChromaServer(tmp_path / "data")
    server.start()
    store = opened(server.uri, "view")
    await store.create()
    await store.upsert(records([{}]))
    server.kill()
    shutil.rmtree(tmp_path / "data")
    server.start()
    with pytest.raises(ViewDamaged):
        await store.search(unit_vectors(1)[0], 1)
    assert not await store.exists()
    server.kill()
    await store.close()


async def test_a_server_whose_disk_was_full_and_what_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps transactions open that it had no room for; started anew, it has lost nothing."""

    async def unanswered(*_: Any, **__: Any) -> httpx.Response:
        raise httpx.ReadTimeout("")

    with small_disk(tmp_path / "disk", 96) as disk:
        server = ChromaServer(disk / "data")
        server.start()
        store = opened(server.uri, "view", reach=Reach(timeout_s=0.5))
        await store.create()
        await store.apply(records([{}] * 300), [], Position("e", 1, "s"))
        ballast = fill(disk)
        for write in (lambda: store.upsert(records([{}], first=300)), lambda: store.delete(["000001"])):
            with pytest.raises(DiskFull) as full:
                await write()
            assert "started anew" in full.value.hint
        assert len((await store.search(unit_vectors(1)[0], 10)).ids) == 10
        ballast.unlink()
        with monkeypatch.context() as patched:
            patched.setattr(httpx.AsyncClient, "request", unanswered)
            with pytest.raises(StoreUnavailable) as late:
                await store.count()
        assert "started anew" in late.value.hint
        server.kill()
        with pytest.raises(StoreUnavailable, match="Nobody answers"):
            await store.count()
        server.start()
        await store.apply(records([{}] * 5, first=300), ["000001"], Position("e", 2, "s"))
        assert await store.count() == 304
        assert await store.position() == Position("e", 2, "s")
        assert not chroma_server._WERE_FULL
        server.kill()
        await store.close()


async def test_large_batches_are_halved_and_a_row_that_is_too_large_is_said(tmp_path: Path) -> None:
    server = ChromaServer(tmp_path / "data", "max_payload_size_bytes: 100000")
    server.start()
    store = opened(server.uri, "view")
    await store.create()
    await store.upsert(records([{}] * 100, text="x" * 5_000))
    assert await store.count() == 100
    for size in (200_000, 20_000_000):  # of the larger, the server breaks off before it has read it
        with pytest.raises(TooLarge, match="000200"):
            await store.upsert(records([{}], first=200, text="x" * size))
    assert await store.count() == 100
    with pytest.raises(StoreRefused, match="no request as large") as refused:
        await store.fetch([f"{i:0500}" for i in range(600)])
    assert "max_payload_size_bytes" in refused.value.hint
    server.kill()
    await store.close()


@asynccontextmanager
async def proxied(server: ChromaServer, header: str) -> AsyncIterator[int]:
    """The port of a proxy that lets requests with this line in their head through to the server, as nginx would."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if header.lower().encode() not in head.lower():
            body = b'{"error":"AuthError","message":"Forbidden"}'
            writer.write(
                b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            await writer.drain()
            writer.close()
            return
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", server.port)
        upstream.write(head)
        await asyncio.gather(pipe(reader, upstream), pipe(upstream_reader, writer))

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield proxy.sockets[0].getsockname()[1]
    proxy.close()


@pytest.mark.parametrize(
    ("userinfo", "environment", "header"),
    [
        ("secret-token@", {}, "authorization: Bearer secret-token"),
        ("secret-token@", {}, "x-chroma-token: secret-token"),
        ("user:p%40ss@", {}, "authorization: Basic dXNlcjpwQHNz"),
        ("", {"CHROMA_API_KEY": "secret-token"}, "x-chroma-token: secret-token"),
        ("", {"CHROMA_CLIENT_AUTH_CREDENTIALS": "user:p@ss"}, "authorization: Basic dXNlcjpwQHNz"),
    ],
)
async def test_the_key_goes_with_each_request_and_a_wrong_one_is_said(
    server: ChromaServer, monkeypatch: pytest.MonkeyPatch, userinfo: str, environment: dict[str, str], header: str
) -> None:
    async with proxied(server, header) as port:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = opened(f"chroma+http://{userinfo}127.0.0.1:{port}")
        await store.create()
        assert await store.count() == 0
        await store.close()
        for name in environment:
            monkeypatch.setenv(name, "wrong-key")
        wrong = opened(f"chroma+http://{'wrong-key@' if userinfo else ''}127.0.0.1:{port}")
        with pytest.raises(StoreRefused, match="does not accept the key") as refused:
            await wrong.create()
        assert "wrong-key" not in refused.value.message + refused.value.hint + repr(wrong._backend._server)
        await wrong.close()


async def test_tls_against_plain_is_said(server: ChromaServer) -> None:
    store = opened(f"chroma+https://127.0.0.1:{server.port}")
    with pytest.raises(StoreRefused, match="does not speak TLS") as refused:
        await store.exists()
    assert "chroma+http://" in refused.value.hint
    await store.close()


async def test_plain_against_tls_and_a_strange_certificate_are_said(tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout key.pem -out cert.pem"
    if subprocess.run(command.split(), cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("openssl is not here")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    listening = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    for scheme, said in (("https", "certificate"), ("http", "TLS|HTTP|broke off")):
        store = opened(f"chroma+{scheme}://127.0.0.1:{port}", reach=Reach(timeout_s=5))
        with pytest.raises(StoreRefused if scheme == "https" else ViewError, match=said):
            await store.exists()
        await store.close()
    listening.close()


@asynccontextmanager
async def answering(answers: dict[str, tuple[int, str]]) -> AsyncIterator[int]:
    """The port of a server that answers these paths, and 404 else."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status, body = answers.get(head.split()[1].decode(), (404, "<html>Not found</html>"))
        writer.write(f"HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield listening.sockets[0].getsockname()[1]
    listening.close()


@pytest.mark.parametrize(
    ("answers", "error", "said"),
    [
        ({"/api/v1/version": (200, '"0.4.24"')}, StoreUnsupported, "version 0.4.24"),
        ({"/api/v2/version": (200, '"0.6.3"')}, StoreUnsupported, "version 0.6.3"),
        ({}, StoreRefused, "not a Chroma server"),
        ({"/api/v2/version": (200, "<html>")}, StoreRefused, "not a Chroma server"),
        ({"/api/v2/version": (302, "")}, StoreRefused, "elsewhere"),
        ({"/api/v2/version": (503, "busy")}, StoreUnavailable, "503"),
    ],
)
async def test_who_is_no_chroma_of_today_is_named(
    answers: dict[str, tuple[int, str]], error: type[Exception], said: str
) -> None:
    async with answering(answers) as port:
        store = opened(f"chroma+http://127.0.0.1:{port}")
        with pytest.raises(error, match=said):
            await store.exists()
        await store.close()


async def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    store = opened(f"chroma+http://127.0.0.1:{port}", reach=Reach(timeout_s=0.3))
    with pytest.raises(StoreUnavailable, match="did not answer"):
        await store.exists()
    await store.close()
    silent.close()


@pytest.mark.parametrize("name", ["absent", "no", "not a name"])
async def test_a_database_that_is_not_there_is_said(server: ChromaServer, name: str) -> None:
    store = opened(f"{server.uri}?database={quote(name)}")
    with pytest.raises(StoreRefused, match=f"no database '{name}' of the tenant 'default_tenant'"):
        await store.exists()
    await store.close()


# --- the URI ---------------------------------------------------------------------------------------------------------


def test_a_uri_names_a_server() -> None:
    plain = parse_server("chroma+http://db", {})
    assert (plain.url, plain.tenant, plain.database) == ("http://db:8000", "default_tenant", "default_database")
    assert dict(plain.headers) == {}
    asked = "chroma+https://tok@[::1]:9/chroma/?tenant=t&database=d"
    full = parse_server(asked, {"CHROMA_TENANT": "other", "CHROMA_API_KEY": "other"})
    assert (full.url, full.tenant, full.database) == ("https://[::1]:9/chroma", "t", "d")
    assert full.headers["X-Chroma-Token"] == "tok"
    assert "tok" not in repr(full)
    environment = parse_server("chroma+http://db", {"CHROMA_TENANT": "t", "CHROMA_DATABASE": "d"})
    assert (environment.tenant, environment.database) == ("t", "d")


@pytest.mark.parametrize(
    "uri",
    [
        "chroma+http://",
        "chroma+http://:8000",
        "chroma+http://host:port",
        "chroma+http://host:99999",
        "chroma+ftp://host",
        "chroma+http://host?tennant=t",
    ],
)
def test_a_uri_that_names_no_server_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError):
        parse_server(uri, {})


# --- a full disk -----------------------------------------------------------------------------------------------------


FULL_DISK = """
import asyncio, sys
from contextlib import suppress
from pathlib import Path
from shutil import disk_usage

import numpy as np

from whimbrel.domain import Space
from whimbrel.errors import DiskFull, ViewDamaged
from whimbrel.stores.base import DENSE, Records
from whimbrel.stores.chroma import ChromaStore, folder

DIMENSIONS = 384
disk = Path(sys.argv[1])
folder.ROOM = int(sys.argv[2])

def rows(count, first):
    vectors = np.random.default_rng(first).standard_normal((count, DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"{number:06d}" for number in range(first, first + count)]
    return Records(ids, {DENSE: vectors}, [f"The text of {id_}. " * 10 for id_ in ids], [{"n": 1}] * count)

async def main():
    full = disk / "full"
    for number in range(10):
        left, delete = divmod(number, 2)
        store = ChromaStore(f"chroma:{disk}/chroma", f"view_{number}", Space("t", "1", DIMENSIONS), base=disk)
        await store.create()
        await store.upsert(rows(150, 0))
        with full.open("wb", buffering=0) as file, suppress(OSError):
            file.write(bytes(disk_usage(disk).free - 4096 * left))
        said = []
        for first in (200, 240, 300)[: None if folder.ROOM else 1]:
            try:
                await (store.delete(["000001"]) if delete else store.upsert(rows(2, first)))
            except (DiskFull, ViewDamaged) as error:
                said.append(type(error).__name__)
        assert said, number
        try:
            assert len((await store.search(rows(1, 0).vectors[DENSE][0], 10)).ids) == 10
        except (DiskFull, ViewDamaged) as error:
            said.append(type(error).__name__)
        full.unlink()
        if "ViewDamaged" not in said:
            with suppress(ViewDamaged):  # chromadb may have cut its index short when it wrote that; it is built anew
                await store.upsert(rows(40, 300))
                await store.delete(["000301"])
                found = {row for batch in [b async for b in store.scan()] for row in batch.ids}
                assert {"000300", "000302"} < found and "000301" not in found
                print("whole", number)
        await store.drop()
        await store.close()

asyncio.run(main())
print("ended")
"""


@pytest.mark.parametrize("room", [0, folder.ROOM], ids=["met by chromadb", "seen before"])
def test_a_full_disk_is_said_and_passes(tmp_path: Path, room: int) -> None:
    """chromadb leaves a transaction open where it cannot be written; its next write waited for that for ever, and with
    Python's lock in its hand, so that the whole process stood still. Hence another process here."""
    with small_disk(tmp_path / "disk", 16) as disk:
        done = subprocess.run(
            [sys.executable, "-c", FULL_DISK, str(disk), str(room)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ended\n")
    assert "whole" in done.stdout


def test_whatever_chromadb_says_where_there_is_no_room_it_is_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search makes it write, too, and what it says then read as damage: the view was built anew."""
    monkeypatch.setattr(folder, "ROOM", 2**62)
    for error in (ValueError("Could not connect to tenant default_tenant."), sqlite3.OperationalError("anything")):
        with pytest.raises(DiskFull), folder.chroma_errors(tmp_path):
            raise error
