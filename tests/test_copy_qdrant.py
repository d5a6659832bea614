"""Copies from and to Qdrant: several vectors, ids of every kind, folders of others, servers."""

from __future__ import annotations

import asyncio
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("qdrant_client")

from qdrant_client import QdrantClient, models

from copying import Copies, at, files, fill_parquet, fill_qdrant_folder, vectors
from qdrant_server import QdrantServer
from whimbrel.errors import (
    AlreadyOwned,
    BadInput,
    ConfigError,
    Conflict,
    NotFound,
    StoreRefused,
    StoreUnavailable,
    StoreUnsupported,
)
from whimbrel.move.copy import CopyFailure, CopyReport, copy_cold
from whimbrel.stores.base import Reach
from whimbrel.stores.foreign.base import Chosen, IdKind, Mark, VectorField, VectorKind
from whimbrel.stores.foreign.resolve import open_database, parse
from whimbrel.stores.foreign.values import differences
from whimbrel.stores.metrics import Metric
from whimbrel.stores.resolve import open_store
from whimbrel.testing.place import SPACE, rows_of

COSINE, DOT = models.Distance.COSINE, models.Distance.DOT
MAX_SIM = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    return Copies(tmp_path)


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    made = QdrantServer()
    made.start()
    yield made
    made.stop()


def fill_four(folder: Path) -> dict[str, int]:
    """The collections of a RAG over documents with pictures: how many rows each has."""
    client = QdrantClient(path=str(folder))
    given = vectors(40, 8)
    text = {"dense": models.VectorParams(size=8, distance=COSINE), "title": models.VectorParams(size=4, distance=DOT)}
    sparse = {"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)}
    client.create_collection("text_chunks", text, sparse_vectors_config=sparse)
    points = []
    for row in range(40):
        vector: dict[str, Any] = {"dense": given[row].tolist()}
        if row % 4:
            vector["bm25"] = models.SparseVector(indices=[row + 9, row, 5_000], values=[1.5, 0.1, row / 3])
        if row % 3:
            vector["title"] = given[row, :4].tolist()
        payload = {"text": f"chunk {row}", "page": row, "source": {"file": "a.pdf", "boxes": [[0.5, 1.25], []]}}
        points.append(models.PointStruct(id=row, vector=vector, payload=payload))
    client.upsert("text_chunks", points)

    client.create_collection("image_chunks", models.VectorParams(size=8, distance=COSINE))
    points = [
        models.PointStruct(id=str(UUID(int=row + 1)), vector=given[row].tolist(), payload={"caption": f"image {row}"})
        for row in range(30)
    ]
    client.upsert("image_chunks", points)

    client.create_collection("colpali_pages", models.VectorParams(size=4, distance=COSINE, multivector_config=MAX_SIM))
    points = [
        models.PointStruct(id=row, vector=vectors(3 + row % 5, 4, seed=row).tolist(), payload={"page": row})
        for row in range(20)
    ]
    client.upsert("colpali_pages", points)

    client.create_collection("user_documents", models.VectorParams(size=8, distance=DOT))
    points = [
        models.PointStruct(id=row + 2**40, vector=(3 * given[row]).tolist(), payload={"content": "é", "user": "u1"})
        for row in range(10)
    ]
    client.upsert("user_documents", points)
    client.close()
    return {"text_chunks": 40, "image_chunks": 30, "colpali_pages": 20, "user_documents": 10}


def everything(folder: Path, name: str) -> dict[Any, tuple[Any, dict[str, np.ndarray]]]:
    """(payload without what a copy adds, vectors) of each point, as any program reads them."""
    client = QdrantClient(path=str(folder))
    points, _ = client.scroll(name, limit=1_000, with_payload=True, with_vectors=True)
    client.close()
    found = {}
    for point in points:
        named = point.vector if isinstance(point.vector, dict) else {"": point.vector}
        arrays = {}
        for key, one in named.items():
            if isinstance(one, models.SparseVector):
                arrays[key] = np.array([one.indices, one.values], np.float32)
            else:
                arrays[key] = np.array(one, np.float32)
        payload = {key: value for key, value in (point.payload or {}).items() if key != "whimbrel_length"}
        found[point.id] = payload, arrays
    return found


def _directed(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


async def test_four_collections_of_a_folder_in_one_call(copies: Copies, tmp_path: Path) -> None:
    counts = fill_four(tmp_path / "a")
    before = files(tmp_path / "a")
    reports = await copies.run(f"qdrant:{tmp_path}/a/*", f"qdrant:{tmp_path}/b/*")
    assert {report.source.split()[-1].strip("'"): report.rows for report in reports} == counts
    assert all(report.holds and report.rejected == 0 and report.written == report.rows for report in reports)
    assert files(tmp_path / "a") == before, "the source was written to"
    for name in counts:
        source, target = everything(tmp_path / "a", name), everything(tmp_path / "b", name)
        assert source.keys() == target.keys()
        for id_, (payload, held) in source.items():
            assert target[id_][0] == payload
            assert target[id_][1].keys() == held.keys()
            for vector in held:
                assert np.allclose(_directed(target[id_][1][vector]), _directed(held[vector]), atol=1e-6)
                if name == "user_documents" or vector in ("title", "bm25"):  # the others are compared by direction
                    assert np.array_equal(target[id_][1][vector], held[vector])
    client = QdrantClient(path=str(tmp_path / "b"))
    text = client.get_collection("text_chunks").config.params
    assert (text.vectors["title"].distance, text.sparse_vectors["bm25"].modifier) == (DOT, models.Modifier.IDF)
    pages = client.get_collection("colpali_pages").config.params.vectors
    assert pages.multivector_config.comparator is models.MultiVectorComparator.MAX_SIM
    found = client.query_points("colpali_pages", query=vectors(3, 4, seed=5).tolist(), limit=1).points
    assert found[0].id == 5
    client.close()
    again = await copies.run(f"qdrant:{tmp_path}/a/*", f"qdrant:{tmp_path}/b/*")
    assert [(report.written, report.unchanged) for report in again] == [(0, report.rows) for report in reports]


async def test_four_collections_go_to_lancedb_and_parquet_and_back(copies: Copies, tmp_path: Path) -> None:
    counts = fill_four(tmp_path / "a")
    for report in await copies.run(f"qdrant:{tmp_path}/a/*", f"lancedb:{tmp_path}/l/*"):
        assert report.holds
        assert report.rejected == 0
    tables = lancedb.connect(tmp_path / "l")
    assert {name: tables.open_table(name).count_rows() for name in counts} == counts
    pages = tables.open_table("colpali_pages").to_arrow()
    assert pages.schema.field("vector_0_").type == pa.list_(pa.list_(pa.float32(), 4))
    assert sorted(len(row) for row in pages["vector_0_"].to_pylist()) == sorted(3 + row % 5 for row in range(20))
    text = tables.open_table("text_chunks").to_arrow()
    assert text["text"].to_pylist()[7] == f"chunk {text['id'].to_pylist()[7]}"
    assert sum(one is None for one in text["vector_bm25"].to_pylist()) == 10
    assert sum(one is None for one in text["vector_title"].to_pylist()) == 14
    for report in await copies.run(f"lancedb:{tmp_path}/l/*", f"parquet:{tmp_path}/p/*"):
        assert report.holds
    assert pq.read_table(tmp_path / "p" / "colpali_pages").num_rows == 20
    for report in await copies.run(f"parquet:{tmp_path}/p/*", f"qdrant:{tmp_path}/back/*"):
        assert report.holds
    for name in counts:
        first, rows = await copies.read(f"qdrant:{tmp_path}/a/{name}")
        last, found = await copies.read(f"qdrant:{tmp_path}/back/{name}")
        assert (first.ids, first.metric, first.main, first.vectors) == (last.ids, last.metric, last.main, last.vectors)
        assert not differences(rows, found, 3e-6)
        assert len(found) == counts[name]


async def test_several_vectors_are_named_where_one_is_taken(
    copies: Copies, fresh_postgres: str, tmp_path: Path
) -> None:
    fill_four(tmp_path / "a")
    for name, named in (("text_chunks", ("'bm25'", "'dense'", "'title'")), ("colpali_pages", ("''",))):
        for target in (at(fresh_postgres, "t"), f"chroma:{tmp_path}/c/t"):
            with pytest.raises(BadInput) as caught:
                await copies.one(f"qdrant:{tmp_path}/a/{name}", target)
            assert all(one in caught.value.message for one in named)
            assert "--vector" in caught.value.hint
    with pytest.raises(BadInput, match="no dense vector 'bm25'") as caught:
        await copies.one(f"qdrant:{tmp_path}/a/text_chunks", at(fresh_postgres, "t"), chosen=Chosen(vector="bm25"))
    assert "dense, title" in caught.value.hint
    chosen = Chosen(vector="dense")
    report = await copies.one(f"qdrant:{tmp_path}/a/text_chunks", at(fresh_postgres, "t"), chosen=chosen)
    assert report.holds
    assert list(report.notes) == ["the vectors 'bm25' are left out", "the vectors 'title' are left out"]
    report = await copies.one(
        f"qdrant:{tmp_path}/a/text_chunks", at(fresh_postgres, "u"), chosen=Chosen(vector="title")
    )
    assert report.rejected == 14, "rows without the vector that was named"


async def test_the_fixture_of_another_program_is_read_whole(copies: Copies, data_dir: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(data_dir / "vector_fixtures" / "qdrant_local_ghnkrk", tmp_path / "a")
    before = files(tmp_path / "a")
    reports = await copies.run(f"qdrant:{tmp_path}/a/*", f"lancedb:{tmp_path}/l/*")
    assert [(report.rows, report.rejected, report.holds, report.metric) for report in reports] == [
        (125, 0, True, "cosine"), (198, 0, True, "cosine")
    ]  # fmt: skip
    assert files(tmp_path / "a") == before
    _, rows = await copies.read(f"lancedb:{tmp_path}/l/documents")
    assert all(rows.texts)
    assert {"title", "language"} <= rows.metadata[0].keys() | set(rows.metadata[0].get("metadata", {}))


async def test_a_view_of_ours_is_read_without_a_trace(copies: Copies, tmp_path: Path) -> None:
    store = open_store(f"qdrant:{tmp_path}/a", "view", SPACE, base=tmp_path)
    await store.create()
    await store.upsert(rows_of([{"n": row, "odd": None} for row in range(50)]))
    await store.close()
    before = files(tmp_path / "a")
    report = await copies.one(f"qdrant:{tmp_path}/a/view", f"qdrant:{tmp_path}/b/view")
    assert (report.rows, report.holds) == (50, True)
    assert files(tmp_path / "a") == before
    _, rows = await copies.read(f"qdrant:{tmp_path}/b/view")
    assert rows.ids[7] == "000007"
    assert rows.metadata[7] == {"n": 7, "odd": None}


async def test_ids_keep_their_kind_and_strings_come_back(copies: Copies, tmp_path: Path) -> None:
    client = QdrantClient(path=str(tmp_path / "a"))
    client.create_collection("mixed", models.VectorParams(size=2, distance=DOT))
    mixed = [0, 7, 2**63, "0f0e0d0c-0b0a-0908-0706-050403020100"]
    client.upsert("mixed", [models.PointStruct(id=id_, vector=[1.0, 0.5], payload={}) for id_ in mixed])
    client.close()
    table, rows = await copies.read(f"qdrant:{tmp_path}/a/mixed")
    assert (table.ids, sorted(rows.ids)) == (IdKind.STR, sorted(map(str, mixed)))
    assert list(table.notes) == ["its ids are integers and UUIDs: both are carried as texts"]
    assert (await copies.one(f"qdrant:{tmp_path}/a/mixed", f"qdrant:{tmp_path}/b/mixed")).holds
    _, rows = await copies.read(f"qdrant:{tmp_path}/b/mixed")
    assert sorted(rows.ids) == sorted(map(str, mixed))
    strange = ["", "a'b\"", "é" * 300, "7", "0F0E0D0C0B0A09080706050403020100", "0f0e0d0c0b0a09080706050403020100"]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors(6, 2).reshape(-1)), 2)
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table({"id": strange, "vector": flat}), tmp_path / "p" / "t.parquet")
    chosen = Chosen(metric=Metric.L2)
    assert (await copies.one(f"parquet:{tmp_path}/p/t", f"qdrant:{tmp_path}/b/t", chosen=chosen)).holds
    table, rows = await copies.read(f"qdrant:{tmp_path}/b/t")
    assert (table.ids, table.metric, sorted(rows.ids)) == (IdKind.STR, Metric.L2, sorted(strange))


async def test_ids_that_a_server_refuses_are_rejected(copies: Copies, tmp_path: Path) -> None:
    """Local mode takes them."""
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors(3, 2).reshape(-1)), 2)
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table({"id": [-1, 0, 5], "vector": flat}), tmp_path / "p" / "t.parquet")
    report = await copies.one(f"parquet:{tmp_path}/p/t", f"qdrant:{tmp_path}/b/t", chosen=Chosen(metric=Metric.DOT))
    assert (report.rows, report.written, report.rejected) == (3, 2, 1)


async def test_values_that_json_cannot_say_come_back(copies: Copies, tmp_path: Path) -> None:
    columns = {
        "id": [1, 2],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(5 * vectors(2, 2).reshape(-1)), 2),
        "at": pa.array([datetime(2024, 5, 1, tzinfo=UTC)] * 2, pa.timestamp("us", "UTC")),
        "raw": [b"\0", b"\xff"],
        "odd": [float("nan"), -0.0],
        "third": [1 / 3, 2.0],
    }
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "p" / "t.parquet")
    report = await copies.one(f"parquet:{tmp_path}/p/t", f"qdrant:{tmp_path}/b/t", chosen=Chosen(metric=Metric.COSINE))
    assert report.holds
    client = QdrantClient(path=str(tmp_path / "b"))
    (point,) = client.retrieve("t", [1])
    assert point.payload["at"] == "2024-05-01T00:00:00+00:00", "no other program can read it"
    assert point.payload["third"] == 1 / 3
    client.close()


async def test_a_folder_that_a_program_has_open_is_refused(copies: Copies, tmp_path: Path) -> None:
    uri = fill_qdrant_folder(tmp_path / "a", rows=3)
    code = f"import qdrant_client as q; c = q.QdrantClient(path={str(tmp_path / 'a')!r}); print(1, flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert other.stdout is not None
    await asyncio.to_thread(other.stdout.readline)
    for source, target in ((uri, f"lancedb:{tmp_path}/l/x"), (f"qdrant:{tmp_path}/a/*", f"qdrant:{tmp_path}/b/*")):
        with pytest.raises(AlreadyOwned, match=f"is open in process {other.pid}, and only one"):
            await copies.run(source, target)
    other.communicate(b"\n", timeout=30)
    assert (await copies.one(uri, f"lancedb:{tmp_path}/l/x")).holds


async def test_a_crafted_pickle_is_refused_before_a_row_is_copied(copies: Copies, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.write_text, (tmp_path / "ran", "it ran"))

    uri = fill_qdrant_folder(tmp_path / "a", rows=3)
    with closing(sqlite3.connect(tmp_path / "a" / "collection" / "notes" / "storage.sqlite")) as database, database:
        database.execute("INSERT INTO points VALUES ('x', ?)", (pickle.dumps(Bomb()),))
    for source, target in ((uri, f"lancedb:{tmp_path}/l/x"), (fill_qdrant_folder(tmp_path / "c"), uri)):
        with pytest.raises(StoreRefused, match="not what Qdrant writes"):
            await copies.one(source, target)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "l").exists()


async def test_what_a_killed_program_left_half_written_is_undone_in_a_copy(copies: Copies, tmp_path: Path) -> None:
    uri = fill_qdrant_folder(tmp_path / "a", rows=3)
    place = tmp_path / "a" / "collection" / "notes" / "storage.sqlite"
    code = (
        f"import sqlite3, os; d = sqlite3.connect({str(place)!r}, isolation_level=None);"
        "d.execute('PRAGMA cache_size=1');"
        "d.execute('BEGIN'); d.execute('DELETE FROM points');"
        "d.executemany('INSERT INTO points VALUES (?, ?)', [(str(i), b'x' * 9000) for i in range(200)]); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code])
    assert place.with_name("storage.sqlite-journal").stat().st_size
    before = files(tmp_path / "a")
    report = await copies.one(uri, f"lancedb:{tmp_path}/l/x")
    assert (report.rows, report.holds) == (3, True)
    assert files(tmp_path / "a") == before


async def test_what_is_not_there_and_what_is_another_s_is_said(copies: Copies, tmp_path: Path) -> None:
    uri = fill_qdrant_folder(tmp_path / "a", rows=3)
    for missing in (f"qdrant:{tmp_path}/a/typo", f"qdrant:{tmp_path}/none/x", f"qdrant:{tmp_path}/none/*"):
        with pytest.raises(NotFound):
            await copies.run(missing, f"lancedb:{tmp_path}/l/" + ("*" if missing.endswith("*") else "x"))
    assert not (tmp_path / "none").exists()
    other = fill_qdrant_folder(tmp_path / "b", rows=3)
    with pytest.raises(Conflict, match="did not make"):
        await copies.one(uri, other)
    with pytest.raises(StoreRefused, match="name"):
        await copies.one(uri, f"qdrant:{tmp_path}/c/a:b")


async def test_the_nearest_are_those_of_an_exact_search(server: QdrantServer, copies: Copies, tmp_path: Path) -> None:
    local = fill_qdrant_folder(tmp_path / "a", rows=200)
    assert (await copies.one(local, f"{server.uri}/notes")).holds
    given = vectors(200)
    for uri, scratch in ((local, tmp_path / "s"), (f"{server.uri}/notes", None)):
        address = parse(uri)
        database = open_database(address, base=tmp_path, scratch=scratch, reach=Reach())
        source = database.source("notes", Chosen())
        source.normalised = False
        found = await source.nearest(given[17], 5)
        exact = np.argsort(np.linalg.norm(given - given[17], axis=1))[:5]
        assert [id_ for id_, _ in found] == [10 + int(row) for row in exact]
        assert found[0][1] == 1.0
        assert found[1][1] == pytest.approx(1 / (1 + np.linalg.norm(given[exact[1]] - given[17])), abs=1e-6)
        among = [10, 11, 12, 999_999]
        assert {id_ for id_, _ in await source.nearest(given[17], 5, among)} == {10, 11, 12}
        await source.close()
        await database.close()


async def test_copies_over_the_api_of_a_server(server: QdrantServer, copies: Copies, tmp_path: Path) -> None:
    counts = fill_four(tmp_path / "a")
    for report in await copies.run(f"qdrant:{tmp_path}/a/*", f"{server.uri}/*"):
        assert report.holds
    made = server.of("PUT", "/collections/text_chunks")[0]
    assert made.optimizers_config.indexing_threshold == 0
    assert server.state().thresholds["text_chunks"] == 20_000, "the index was held back for good"
    for report in await copies.run(f"{server.uri}/*", f"{server.uri}/place1/*"):
        assert report.holds
    for name, count in counts.items():
        assert server.state("/place1").client.count(name).count == count
    server.version = "1.15.3"
    with pytest.raises(StoreUnsupported, match=r"1\.16"):
        await copies.one(f"qdrant:{tmp_path}/a/text_chunks", f"{server.uri}/place2/x")


async def test_a_server_that_is_busy_when_a_copy_begins_is_asked_again(
    server: QdrantServer, copies: Copies, tmp_path: Path
) -> None:
    source, target = fill_qdrant_folder(tmp_path / "q", rows=5), f"{server.uri}/notes"
    server.failing, server.failing_times = 503, 2
    assert (await copies.one(source, target, retries_s=(0.01, 0.01))).holds
    server.failing, server.failing_times = 503, 2
    assert (await copies.one(target, f"parquet:{tmp_path}/p/notes", retries_s=(0.01, 0.01))).holds
    server.failing, server.failing_times = 503, 2
    (one,) = await copies.run(f"{server.uri}/*", f"parquet:{tmp_path}/all/*", retries_s=(0.01, 0.01))
    assert one.holds


def test_what_the_client_takes_to_be_imported_is_not_the_server_s(server: QdrantServer) -> None:
    """On a busy machine that takes seconds, and nobody seemed to answer."""
    code = f"""
import asyncio, sys, time
from pathlib import Path

class Busy:
    def find_spec(self, name, path=None, target=None):
        if name == "qdrant_client":
            time.sleep(4.2)

sys.meta_path.insert(0, Busy())
from whimbrel.stores.base import Reach
from whimbrel.stores.qdrant.backend import open_backend
assert "qdrant_client" not in sys.modules
backend = open_backend({server.uri!r}, Path(), Reach(connect_timeout_s=4))
assert asyncio.run(backend.version()) == (1, 16)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


async def test_of_all_collections_those_that_were_done_are_told_when_the_server_goes_away(
    server: QdrantServer, copies: Copies, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        fill_parquet(tmp_path / "p", name, rows=5)
    fill_parquet(tmp_path / "p", "a:b", rows=5)  # which is no name of Qdrant's
    source, target = f"parquet:{tmp_path}/p/*", f"{server.uri}/*"

    def goes_away(what: str, done: int, total: int) -> None:
        if what == "listing the rows" and server.state().client.collection_exists("b"):
            server.failing = 503

    told = await copies.told(source, target, goes_away, chosen=Chosen(metric=Metric.COSINE))
    assert [one.holds for one in told] == [True, False, False, False]
    first, refused, broken, never = told
    assert isinstance(first, CopyReport)
    assert isinstance(refused, CopyFailure)
    assert isinstance(refused.error, StoreRefused)
    assert "--resume" not in refused.error.hint
    assert isinstance(broken, CopyFailure)
    assert isinstance(broken.error, StoreUnavailable)
    assert "--resume" in broken.error.hint
    assert isinstance(never, CopyFailure)
    assert never.error.message.startswith("Not tried")

    server.failing = 0
    told = await copies.told(source, target, resume=True, chosen=Chosen(metric=Metric.COSINE))
    assert [one.holds for one in told] == [True, False, True, True]


async def test_snapshots_go_from_server_to_server(server: QdrantServer, copies: Copies, tmp_path: Path) -> None:
    counts = fill_four(tmp_path / "a")
    await copies.run(f"qdrant:{tmp_path}/a/*", f"{server.uri}/*")
    other = QdrantServer(key="k3y")
    other.start()
    target = f"qdrant+http://k3y@127.0.0.1:{other.port}"
    told = lambda what, done, total: None  # noqa: E731
    report = await copy_cold(parse(f"{server.uri}/*"), parse(f"{target}/*"), base=tmp_path, on_step=told)
    assert report.collections == counts
    assert "k3y" not in str(report.as_dict())
    assert report.bytes > 10_000
    for name in counts:
        here, there = (
            one.client.scroll(name, limit=100, with_vectors=True)[0] for one in (server.state(), other.state())
        )
        assert [(one.id, one.payload) for one in here] == [(one.id, one.payload) for one in there]
        assert server.state().snapshots[name] == {}, "the snapshot was left on the source"
    with pytest.raises(Conflict, match="already"):
        await copy_cold(parse(f"{server.uri}/*"), parse(f"{target}/*"), base=tmp_path, on_step=told)
    one = await copy_cold(parse(f"{server.uri}/image_chunks"), parse(f"{target}/pictures"), base=tmp_path, on_step=told)
    assert one.collections == {"pictures": 30}
    with pytest.raises(NotFound):
        await copy_cold(parse(f"{server.uri}/typo"), parse(f"{target}/typo"), base=tmp_path, on_step=told)
    with pytest.raises(BadInput):
        await copy_cold(parse(f"{server.uri}/*"), parse(f"{target}/one"), base=tmp_path, on_step=told)
    other.version = "1.19.0"
    with pytest.raises(StoreUnsupported, match=r"1\.19"):
        await copy_cold(parse(f"{server.uri}/image_chunks"), parse(f"{target}/x"), base=tmp_path, on_step=told)
    other.stop()


def test_a_collection_that_is_not_said_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="names no collection"):
        parse("qdrant+https://h:6333")
    monkeypatch.setenv("QDRANT_COLLECTION_NAME", "book_chunks_v1")
    found = parse("qdrant+https://h:6333?grpc=1")
    assert (found.place, found.collection) == ("qdrant+https://h:6333?grpc=1", "book_chunks_v1")
    assert parse("qdrant+https://h:6333/other").collection == "other"
    assert parse("qdrant:folder/a").collection == "a"


def test_a_mark_says_which_vectors_there_are() -> None:
    several = {"p": VectorField(VectorKind.MULTI, 4, "cosine", "max_sim"), "s": VectorField(VectorKind.SPARSE)}
    mark = Mark("c", IdKind.INT, Metric.DOT, {"a": 1}, True, "dense", several)
    assert Mark.read(mark.written()) == mark
    plain = Mark("c", IdKind.STR, None)
    assert "vectors" not in plain.written()
    assert Mark.read(plain.written()) == plain
