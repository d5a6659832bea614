"""Milvus: what it does not say of itself, and what stands in the way."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milvus_server import MilvusServer, free_ports, own_milvus
from running import Toy, files, found, until, verified
from small_disk import small_disk
from whimbrel.app import Whimbrel
from whimbrel.domain import Position, Space
from whimbrel.errors import (
    AlreadyOwned,
    ConfigError,
    Conflict,
    DiskFull,
    HomeError,
    RowRefused,
    SpaceMismatch,
    StoreRefused,
    StoreUnavailable,
    WhimbrelError,
)
from whimbrel.filters import parse
from whimbrel.models.embedders import resolve
from whimbrel.stores.base import DENSE, Reach, Records
from whimbrel.stores.foreign import resolve as foreign
from whimbrel.stores.milvus import MilvusStore
from whimbrel.stores.milvus.backend import EF, FILTERED_EF
from whimbrel.stores.milvus.rows import collection_name, from_milvus, pieces, to_milvus
from whimbrel.stores.milvus.server import ServerBackend
from whimbrel.stores.milvus.shares import Shares
from whimbrel.stores.milvus.uri import parse_server
from whimbrel.stores.milvus.where import ArrayFacts, TextFacts, compile_filter
from whimbrel.testing.place import SPACE, by_id, rows_of, unit_vectors

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")
pytestmark = pytest.mark.timeout(300)

SHORT = Reach(connect_timeout_s=1.0, timeout_s=3.0)


def lite(folder: Path, name: str = "view", space: Space = SPACE, **how: Any) -> MilvusStore:
    return MilvusStore("milvus:views.db", name, space, base=folder, **how)


def served(uri: str, name: str = "view", space: Space = SPACE, reach: Reach = SHORT) -> MilvusStore:
    return MilvusStore(uri, name, space, base=Path(), reach=reach)


# --- addresses -------------------------------------------------------------------------------------------------------


def test_what_a_uri_says() -> None:
    server = parse_server("milvus+http://me:p%40ss@db:1234?database=notes", {})
    assert (server.url, server.token, server.database) == ("http://db:1234", "me:p@ss", "notes")
    assert parse_server("milvus+https://KEY@cloud", {}).token == "KEY"
    assert parse_server("milvus+https://cloud", {}).url == "https://cloud:443"
    known = parse_server("milvus+http://db", {"MILVUS_TOKEN": "k", "MILVUS_DATABASE": "d"})
    assert (known.url, known.token, known.database) == ("http://db:19530", "k", "d")
    assert "p@ss" not in repr(server)


@pytest.mark.parametrize(
    "uri", ["milvus+http://", "milvus+http://db:x", "milvus+http://db/path", "milvus+http://db?tenant=a"]
)
def test_a_uri_that_cannot_be(uri: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_server(uri, {})
    assert refused.value.hint


# --- rows and filters ------------------------------------------------------------------------------------------------


def test_texts_in_pieces_cut_no_character() -> None:
    for text in ("", "a", "é" * 100_000, "\U0001f426" * 40_001, "aé" * 65_535):
        parts = pieces(text)
        assert "".join(parts) == text
        assert all(0 < len(part.encode()) <= 65_535 for part in parts)


def test_ids_that_milvus_has_no_escape_for() -> None:
    for id_ in ("", "a\x01b", "whimbrel:position", "whimbrel:id:61", 'plain "quoted" \\', "é"):
        assert from_milvus(to_milvus(id_)) == id_
    assert to_milvus('"\\é') == '"\\é'


def test_one_condition_for_many_equalities() -> None:
    either = parse({"$or": [{"a": 1}, {"b": {"$in": [2, 3]}}, {"$or": [{"c": "x"}]}]})
    assert either is not None
    compiled = compile_filter(either, ArrayFacts())
    assert compiled.exact
    assert compiled.where.count("array_contains_any") == 1
    assert compile_filter(either, TextFacts()).where.count("like") == 4
    ordered = parse({"year": {"$gte": 2020}})
    assert ordered is not None
    assert not compile_filter(ordered, ArrayFacts()).exact
    assert "2020" in compile_filter(ordered, ArrayFacts()).where


async def test_an_id_that_is_too_long_is_refused_alone(tmp_path: Path) -> None:
    store = lite(tmp_path)
    await store.create()
    rows = rows_of([{}] * 2)
    with pytest.raises(RowRefused) as refused:
        await store.upsert(Records(["a", "b" * 70_000], rows.vectors, rows.texts, rows.metadata))
    assert refused.value.row.startswith("bbb")
    await store.close()


async def test_a_row_with_more_facts_than_an_array_holds(milvus_server: MilvusServer) -> None:
    store = served(milvus_server.uri, "loose", reach=Reach())
    await store.create()
    many = [{"n": list(range(6_000)), "kind": "many"}, {"n": [5], "kind": "few"}, {"kind": "none"}]
    await store.upsert(rows_of(many), new=True)
    for raw, due in (
        ({"n": 5_999}, ["000000"]),
        ({"n": 5}, ["000000", "000001"]),
        ({"n": {"$ne": 5}}, ["000002"]),
        ({"n": {"$exists": False}}, ["000002"]),
        ({"kind": "many", "n": {"$gt": 5_998}}, ["000000"]),
    ):
        hits = await store.search(unit_vectors(1)[0], 5, parse(raw))
        assert sorted(hits.ids) == due, raw
    await store.drop()


async def test_the_row_with_the_position_is_no_row(tmp_path: Path) -> None:
    store = lite(tmp_path)
    await store.create()
    await store.set_position(Position("e", 1, "s"))
    assert (await store.count(), await store.ids()) == (0, [])
    await store.upsert(Records(["whimbrel:position"], {DENSE: unit_vectors(1)}, ["mine"], [{}]))
    assert by_id(await store.fetch(["whimbrel:position"])) == {"whimbrel:position": ("mine", {})}
    assert await store.position() == Position("e", 1, "s")
    await store.close()


async def test_other_programs_read_the_dynamic_fields(milvus_server: MilvusServer) -> None:
    import pymilvus

    store = served(milvus_server.uri, "plain", reach=Reach())
    await store.create()
    await store.upsert(rows_of([{"site": "docs", "year": 2024, "odd key": 1, "none": None}]), new=True)
    client = pymilvus.MilvusClient(milvus_server.url, dedicated=True)
    (row,) = client.query("plain", 'site == "docs" and year > 2020', ["*"], consistency_level="Strong")
    assert (row["id"], row["text"], row["site"], row["year"]) == ("000000", "text 000000", "docs", 2024)
    client.close()
    await store.drop()


# --- a file ----------------------------------------------------------------------------------------------------------


async def test_a_file_of_milvus_lite_2_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "views.db").write_bytes(b"SQLite format 3\0" + bytes(100))
    with pytest.raises(StoreRefused, match="Milvus Lite 2") as refused:
        await lite(tmp_path).exists()
    assert f"whimbrel copy 'milvus:{tmp_path / 'views.db'}/*' 'milvus:NEW.db/*'" in refused.value.hint
    assert len((tmp_path / "views.db").read_bytes()) == 116


async def test_a_collection_of_another_program_is_left_alone(tmp_path: Path) -> None:
    import milvus_lite

    kinds = milvus_lite.DataType
    with milvus_lite.MilvusLite(str(tmp_path / "views.db")) as database:
        columns = [
            milvus_lite.FieldSchema("id", kinds.INT64, is_primary=True),
            milvus_lite.FieldSchema("vector", kinds.FLOAT_VECTOR, dim=16),
        ]
        database.create_collection("view", milvus_lite.CollectionSchema(columns)).insert(
            [{"id": 1, "vector": [1.0] * 16}]
        )
    store = lite(tmp_path)
    for work in (store.create, store.count, store.drop, lambda: store.upsert(rows_of([{}]))):
        with pytest.raises(Conflict):
            await work()
    await store.close()
    with milvus_lite.MilvusLite(str(tmp_path / "views.db")) as database:
        assert database.get_collection("view").num_entities == 1


async def test_two_stores_of_a_process_share_a_file(tmp_path: Path) -> None:
    one, two = lite(tmp_path, "one"), lite(tmp_path, "two")
    await one.create()
    await two.create()
    await one.upsert(rows_of([{}] * 3))
    await one.close()
    assert await two.count() == 0
    await two.close()
    again = lite(tmp_path, "one", read_only=True)
    assert await again.count() == 3
    await again.close()


async def test_a_file_that_another_program_has_open(tmp_path: Path) -> None:
    store = lite(tmp_path)
    await store.create()
    await store.close()
    code = (
        "import sys, milvus_lite; db = milvus_lite.MilvusLite(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "views.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout
        assert await asyncio.to_thread(other.stdout.readline)
        with pytest.raises(AlreadyOwned, match=f"is open in process {other.pid}, and only one") as refused:
            await store.count()
        assert refused.value.hint
        address = foreign.parse(f"milvus:{tmp_path / 'views.db'}/*")
        database = foreign.open_database(address, base=tmp_path, scratch=tmp_path / "scratch", reach=Reach())
        with pytest.raises(AlreadyOwned, match=f"is open in process {other.pid}: its files"):
            await database.collections()
    finally:
        other.kill()
        other.wait()
    assert await store.count() == 0
    await store.close()


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
async def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with pytest.raises(HomeError) as refused:
        await MilvusStore("milvus:file/views.db", "view", SPACE, base=tmp_path).create()
    assert refused.value.hint


async def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 8) as folder:
        store = lite(folder)
        await store.create()
        await store.begin_bulk()
        with pytest.raises(DiskFull):
            await store.upsert(rows_of([{"long": "x" * 500}] * 40_000))


# --- a server --------------------------------------------------------------------------------------------------------


async def test_nobody_answers() -> None:
    (port,) = free_ports(1)
    with pytest.raises(StoreUnavailable) as refused:
        await served(f"milvus+http://127.0.0.1:{port}").exists()
    assert refused.value.hint


@contextmanager
def listening(answer: bytes) -> Iterator[int]:
    """Something that is no Milvus."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    taken, _ = listener.accept()
                    with taken:
                        taken.recv(1_000)
                        taken.sendall(answer)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


async def test_another_program_answers() -> None:
    with (
        listening(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as port,
        pytest.raises(StoreRefused, match="is not a Milvus server"),
    ):
        await served(f"milvus+http://127.0.0.1:{port}").exists()


async def test_tls_against_plain(milvus_server: MilvusServer) -> None:
    with pytest.raises(StoreRefused, match="does not speak TLS"):
        await served(milvus_server.uri.replace("http:", "https:")).exists()


async def test_a_database_that_is_not_there(milvus_server: MilvusServer) -> None:
    with pytest.raises(StoreRefused, match="no database 'nowhere'"):
        await served(f"{milvus_server.uri}?database=nowhere").exists()


async def test_names_that_milvus_refuses_are_written_otherwise(milvus_server: MilvusServer) -> None:
    names = ["notes-1", "notes.1", "1 of all", "日本" * 60, "x" * 300]
    assert len({collection_name(name) for name in names}) == len(names)
    assert collection_name("notes_1") == "notes_1"
    for name in names[2:]:
        store = served(milvus_server.uri, name, reach=Reach())
        await store.create()
        assert await store.count() == 0
        await store.drop()


async def test_another_metric_or_dimension(milvus_server: MilvusServer) -> None:
    store = served(milvus_server.uri, "dims", reach=Reach())
    await store.create()
    with pytest.raises(SpaceMismatch):
        await served(milvus_server.uri, "dims", Space("conformance", "1", 8)).count()
    await store.drop()


async def test_a_token(tmp_path: Path) -> None:
    with own_milvus("authorization_enabled=true") as server:
        for token in ("", "root:wrong@", "key@"):
            with pytest.raises(StoreRefused, match="does not accept the token") as refused:
                await served(server.uri.replace("//", f"//{token}")).exists()
            assert "MILVUS_TOKEN" in refused.value.hint
            assert "wrong" not in str(refused.value)
        right = served(server.uri.replace("//", "//root:Milvus@"))
        assert not await right.exists()
        await right.close()


# --- a whole Whimbrel ------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: made)
    return made


def test_a_home_with_its_views_in_a_file(tmp_path: Path, toy: Toy) -> None:
    files(tmp_path / "notes", 12)
    how: dict[str, Any] = {"embedder": "toy", "store": "milvus:"}
    with Whimbrel(home=tmp_path / "home", **how) as whimbrel:
        whimbrel.ingest([tmp_path / "notes"])
        whole = whimbrel.search("notes on birds number 7")
        assert not whole.degraded
        verified(whimbrel, "default")
    assert (tmp_path / "home" / "milvus.db" / "collections").is_dir()
    with Whimbrel(home=tmp_path / "home", **how) as whimbrel:
        assert {hit.uri for hit in whimbrel.search("notes on birds number 7").hits} == {hit.uri for hit in whole.hits}


def test_a_server_is_killed_within_queries_and_comes_back(tmp_path: Path, toy: Toy) -> None:
    files(tmp_path / "notes", 20)
    with (
        own_milvus() as server,
        Whimbrel(home=tmp_path / "home", embedder="toy", store=server.uri) as whimbrel,
    ):
        whimbrel.ingest([tmp_path / "notes"])
        assert not whimbrel.search("notes on birds number 7").degraded
        answers: list[Any] = []

        def ask() -> None:
            answers.extend(whimbrel.search("notes on birds number 7") for _ in range(30))

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        server.kill()
        for thread in asking:
            thread.join()
        assert len(answers) == 90
        assert all(answer.hits for answer in answers)
        assert any(any("store:" in why for why in answer.degraded) for answer in answers)

        files(tmp_path / "more", 5, "boats")
        whimbrel.ingest([tmp_path / "more"], wait="lexical")
        server.start()
        until(lambda: not whimbrel.search("notes on boats number 3").degraded, "the view has caught up")
        head = found(whimbrel, "default").head
        assert [row.view.position for row in whimbrel.views("default") if row.view.kind == "store"] == [head]
        verified(whimbrel, "default")


# --- other programs' collections -------------------------------------------------------------------------------------


async def test_every_row_of_a_file_of_milvus_lite_2(tmp_path: Path, data_dir: Path) -> None:
    from copying import Copies

    found = data_dir / "vector_fixtures" / "milvus_lite_bennykillua" / "milvus_demo.db"
    if not found.is_file():
        pytest.skip("the file is not there")
    shutil.copy(found, tmp_path / "old.db")
    before = found.read_bytes()
    copies = Copies(tmp_path)
    source = f"milvus:{tmp_path}/old.db/my_rag_collection"
    table, rows = await copies.read(source)
    assert (table.dimensions, table.metric, table.ids, table.has_text) == (1536, "dot", "int", True)
    assert len(rows) == 246
    assert rows.texts[0] == "#"
    assert np.isfinite(rows.vectors).all()
    for target in (f"lancedb:{tmp_path}/l/rag", f"milvus:{tmp_path}/new.db/rag"):
        report = await copies.one(source, target)
        assert (report.rows, report.written, report.holds) == (246, 246, True)
    assert (tmp_path / "old.db").read_bytes() == before
    with pytest.raises(WhimbrelError):
        await copies.one(f"lancedb:{tmp_path}/l/rag", f"milvus:{tmp_path}/old.db/rag")


async def test_several_vectors_and_none_named(tmp_path: Path) -> None:
    import milvus_lite

    from copying import Copies
    from whimbrel.errors import BadInput

    kinds, field = milvus_lite.DataType, milvus_lite.FieldSchema
    with milvus_lite.MilvusLite(str(tmp_path / "two.db")) as database:
        columns = [
            field("id", kinds.INT64, is_primary=True),
            *(field(name, kinds.FLOAT_VECTOR, dim=4) for name in ("vector", "image")),
        ]
        made = database.create_collection("both", milvus_lite.CollectionSchema(columns, enable_dynamic_field=True))
        made.create_index("image", {"index_type": "HNSW", "metric_type": "IP"})
        made.load()
        made.insert([{"id": i, "vector": [1.0, 0, 0, i], "image": [0.0, 1, 2, i], "text": f"t{i}"} for i in range(9)])
    copies, source = Copies(tmp_path), f"milvus:{tmp_path}/two.db/both"
    with pytest.raises(BadInput, match="vector, image") as refused:
        await copies.read(source)
    assert "--vector" in refused.value.hint
    table, rows = await copies.read(source, vector="image")
    assert (table.metric, table.ids, list(table.notes)) == ("dot", "int", ["the vectors 'vector' are not copied"])
    assert rows.texts == [f"t{i}" for i in range(9)]
    assert rows.vectors[3].tolist() == [0, 1, 2, 3]


async def test_the_nearest_rows_by_the_source_s_own_index(tmp_path: Path) -> None:
    from copying import Copies, fill_milvus_lite, vectors
    from whimbrel.stores.foreign.base import Chosen
    from whimbrel.stores.foreign.milvus import MilvusSource
    from whimbrel.stores.foreign.resolve import open_database, parse

    uri = fill_milvus_lite(tmp_path / "foreign")
    address = parse(uri)
    database = open_database(address, base=tmp_path, scratch=tmp_path / "scratch", reach=Reach())
    source = database.source(address.collection, Chosen())
    assert isinstance(source, MilvusSource)
    query = (3 * vectors(300)[17]).astype(np.float32)
    hits = await source.nearest(query, 5)
    assert hits[0] == ("id '17\" \\\\ é", 1.0)
    assert [score for _, score in hits] == sorted((score for _, score in hits), reverse=True)
    table, rows = await Copies(tmp_path).read(uri)
    assert table.metric == "l2"
    exact = np.argsort(np.linalg.norm(rows.vectors - query, axis=1))[:5]
    assert [id_ for id_, _ in hits] == [rows.ids[row] for row in exact]
    some = list(rows.ids[100:110])
    assert {id_ for id_, _ in await source.nearest(query, 3, some)} <= set(some)
    await source.close()
    await database.close()


def test_a_search_looks_at_as_many_rows_as_its_filter_needs() -> None:
    shares = Shares()
    assert shares.ef("c", "half") == FILTERED_EF
    assert not shares.is_due("c", "half"), "a condition that comes once is not counted"
    assert shares.is_due("c", "half")
    assert not shares.is_due("c", "half"), "one count at a time"
    shares.learned("c", "half", 500, 1_000)
    assert not shares.is_due("c", "half")
    assert EF < shares.ef("c", "half") < FILTERED_EF == shares.ef("other", "half")

    for passing, rows in ((1, 1_000), (0, 1_000), (0, 0)):
        shares.learned("c", "few", passing, rows)
        assert shares.ef("c", "few") == FILTERED_EF
    shares.failed("c", "half")
    assert shares.ef("c", "half") == FILTERED_EF
    assert [shares.is_due("c", "half") for _ in range(2)] == [False, True]
    long = "x" * 10_000
    assert not any(shares.is_due("c", long) for _ in range(3))


async def test_how_many_rows_pass_a_filter_is_counted_beside_its_searches(milvus_server: MilvusServer) -> None:
    store = served(milvus_server.uri, "counted")
    await store.create()
    await store.upsert(rows_of([{"half": row % 2 == 0} for row in range(600)]))
    await store.set_position(Position(1, 1, "a"))
    where = parse({"half": True})
    backend = store._backend
    assert isinstance(backend, ServerBackend)
    answers = [await store.search(unit_vectors(600)[4], 5, where) for _ in range(2)]
    while not (known := [one.share for one in backend._shares._known.values() if one.share is not None]):
        await asyncio.sleep(0.02)
    assert known == [0.5]
    answers.append(await store.search(unit_vectors(600)[4], 5, where))
    assert len({tuple(answer.ids) for answer in answers}) == 1
    await store.drop()
