"""What a view in Qdrant promises beyond what every store does: a server's rules, pickles, its API, its errors."""

from __future__ import annotations

import pickle
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("qdrant_client")

from qdrant_client import QdrantClient, models

from qdrant_server import QdrantServer
from small_disk import fill, remount, small_disk
from whimbrel.domain import Space
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
    StoreUnsupported,
    TooLarge,
    ViewDamaged,
)
from whimbrel.stores.base import DENSE, Reach, Records
from whimbrel.stores.qdrant import QdrantStore, files, rules
from whimbrel.stores.qdrant.rules import MARKER, check_name, point_id, to_point
from whimbrel.stores.qdrant.uri import parse_server
from whimbrel.testing.place import SPACE, rows_of, unit_vectors


def opened(place: str, name: str = "view", space: Space = SPACE, **options: Any) -> QdrantStore:
    return QdrantStore(place, name, space, base=Path(), **options)


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    made = QdrantServer()
    made.start()
    yield made
    made.stop()


@pytest.fixture(params=["folder", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"qdrant:{tmp_path}/q" if request.param == "folder" else request.getfixturevalue("server").uri


async def filled(place: str, rows: int = 5, name: str = "view") -> None:
    store = opened(place, name)
    await store.create()
    await store.upsert(rows_of([{"n": number} for number in range(rows)]))
    await store.close()


# --- a server's rules on ids, names and sizes ------------------------------------------------------------------------


@given(st.text(), st.text())
def test_ids_have_points_of_their_own(one: str, other: str) -> None:
    assert UUID(to_point(one))
    assert (to_point(one) == to_point(other)) == (one == other)


def test_an_id_of_32_digits_is_its_own_point() -> None:
    id_ = "0f0e0d0c0b0a09080706050403020100"
    assert to_point(id_) == "0f0e0d0c-0b0a-0908-0706-050403020100"
    assert len({to_point(id_), to_point(id_.upper()), to_point(str(UUID(id_)))}) == 3
    assert to_point(MARKER.replace("-", "")) != MARKER


async def test_ids_that_would_share_a_point_are_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash of two bits makes them meet."""
    from whimbrel.stores.qdrant import rows
    from whimbrel.stores.qdrant import store as module

    def small(id_: str) -> str:
        return str(UUID(int=sum(id_.encode()) % 4))

    store = opened(place)
    await store.create()
    for part in (module, rows):
        monkeypatch.setattr(part, "to_point", small)
    with pytest.raises(RowRefused) as caught:
        await store.upsert(rows_of([{}] * 5))
    assert caught.value.row
    assert await store.count() == 0
    await store.upsert(rows_of([{}] * 1))
    assert list((await store.fetch(["000000"])).ids) == ["000000"]
    assert list((await store.fetch(["000004"])).ids) == [], "a row was read by the id of another"
    await store.close()


@pytest.mark.parametrize("wrong", [-1, 2**64, True, "word", 1.5, None, ""])
def test_ids_that_a_server_refuses_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError):
        point_id(wrong)


def test_ids_that_a_server_takes_are_taken() -> None:
    assert [point_id(one) for one in (0, 2**64 - 1)] == [0, 2**64 - 1]
    assert point_id("{0F0E0D0C-0B0A-0908-0706-050403020100}") == UUID("0f0e0d0c0b0a09080706050403020100")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a:b", "a*", "x" * 256, "a\nb", '"'])
async def test_a_name_that_a_server_does_not_take_is_refused(place: str, name: str) -> None:
    with pytest.raises(StoreRefused, match="name"):
        check_name(name)
    store = opened(place, name)
    with pytest.raises(StoreRefused, match="name"):
        await store.create()
    await store.close()


async def test_a_row_that_is_larger_than_a_request_is_refused(place: str) -> None:
    store = opened(place)
    await store.create()
    rows = rows_of([{}] * 3)
    texts = ["small", "x" * (33 << 20), "small"]
    with pytest.raises(TooLarge) as caught:
        await store.upsert(Records(rows.ids, rows.vectors, texts, rows.metadata))
    assert getattr(caught.value, "row", "") == "000001"
    assert caught.value.hint
    assert await store.count() < 3
    await store.close()


async def test_too_large_a_batch_is_halved() -> None:
    server = QdrantServer(most_bytes=60_000)
    server.start()
    store = opened(server.uri)
    await store.create()
    rows = rows_of([{}] * 200)
    await store.upsert(Records(rows.ids, rows.vectors, ["x" * 500] * 200, rows.metadata))
    assert await store.count() == 200
    await store.close()
    server.stop()


# --- pickles ---------------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.file, "it ran"))


def _storage(folder: Path, name: str = "view") -> Path:
    return folder / "collection" / name / "storage.sqlite"


def _point(**said: Any) -> models.PointStruct:
    return models.PointStruct.model_construct(**said)


def _put(folder: Path, pickled: bytes) -> None:
    with closing(sqlite3.connect(_storage(folder))) as database, database:
        database.execute("INSERT INTO points VALUES ('crafted', ?)", (pickled,))


async def test_a_pickle_that_would_run_is_refused_before_it_does(tmp_path: Path) -> None:
    folder, written = tmp_path / "q", tmp_path / "written"
    await filled(f"qdrant:{folder}")
    id_ = "0f0e0d0c-0b0a-0908-0706-050403020100"
    for crafted in (Bomb(written), _point(id=id_, vector={}, payload={"a": [Bomb(written)]})):
        before = _storage(folder).read_bytes()
        _put(folder, pickle.dumps(crafted))
        store = opened(f"qdrant:{folder}")
        with pytest.raises(StoreRefused, match="not what Qdrant writes") as caught:
            await store.count()
        assert "not open this folder" in caught.value.hint
        assert not written.exists()
        await store.close()
        pickle.loads(pickle.dumps(crafted))
        assert written.exists(), "the crafted pickle would not have run at all"
        written.unlink()
        _storage(folder).write_bytes(before)
    store = opened(f"qdrant:{folder}")
    assert await store.count() == 5
    await store.close()


@pytest.mark.parametrize(
    "crafted",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"id": 1}),
        pickle.dumps(print),
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04Pname\n.",
        b"cqdrant_client.http.models.models\nPointStruct\n(N}S'id'\nI1\nstb.",
        pickle.dumps(_point(id=1.5, vector=[], payload={})),
        pickle.dumps(_point(id=1, vector=[], payload=[])),
        pickle.dumps(models.Filter()),
    ],
)
def test_what_is_no_point_is_refused(crafted: bytes) -> None:
    with pytest.raises(StoreRefused):
        files.loads(crafted, Path("there"))
    assert not hasattr(files.Point, "id")


async def test_what_qdrant_writes_is_read(tmp_path: Path) -> None:
    client = QdrantClient(path=str(tmp_path / "q"))
    client.create_collection(
        "all",
        vectors_config={
            "a": models.VectorParams(size=2, distance=models.Distance.DOT),
            "m": models.VectorParams(
                size=2,
                distance=models.Distance.DOT,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            ),
        },
        sparse_vectors_config={"s": models.SparseVectorParams()},
    )
    sparse = models.SparseVector(indices=[3, 1], values=[0.5, 2.0])
    vector = {"a": [1.0, 2.0], "m": [[1.0, 0.0], [0.0, 1.0]], "s": sparse}
    client.upsert("all", [models.PointStruct(id=2**64 - 1, vector=vector, payload={"deep": {"a": [1, None]}})])
    client.close()
    assert files.check(tmp_path / "q") == 1
    ((_, row),) = files.rows(_storage(tmp_path / "q", "all"))
    assert (row.id, row.payload, row.vector["a"]) == (2**64 - 1, {"deep": {"a": [1, None]}}, [1.0, 2.0])
    assert row.vector["s"].said["indices"] == [1, 3]
    assert row.vector["m"] == [[1.0, 0.0], [0.0, 1.0]]


def test_a_folder_whose_collections_lie_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "meta.json").write_text('{"collections": {"../../elsewhere": {}}, "aliases": {}}')
    with pytest.raises(StoreRefused):
        files.check(tmp_path / "q")
    for broken in ("", "[]", '{"collections": 1}'):
        (tmp_path / "q" / "meta.json").write_text(broken)
        with pytest.raises(ViewDamaged):
            files.check(tmp_path / "q")


# --- a folder --------------------------------------------------------------------------------------------------------


async def test_a_folder_that_another_program_has_open_is_refused(tmp_path: Path) -> None:
    await filled(f"qdrant:{tmp_path}/q")
    code = f"import qdrant_client as q; c = q.QdrantClient(path={str(tmp_path / 'q')!r}); print(1, flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert other.stdout is not None
    other.stdout.readline()
    store = opened(f"qdrant:{tmp_path}/q")
    with pytest.raises(AlreadyOwned, match=f"process {other.pid}") as caught:
        await store.count()
    assert "qdrant+http" in caught.value.hint
    other.communicate(b"\n", timeout=30)
    assert await store.count() == 5
    await store.close()


async def test_a_folder_is_not_made_by_looking(tmp_path: Path) -> None:
    store = opened(f"qdrant:{tmp_path}/q")
    assert not await store.exists()
    with pytest.raises(ViewDamaged):
        await store.count()
    assert not (tmp_path / "q").exists()


async def test_a_folder_that_is_full_or_read_only_is_said(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 3) as disk:
        store = opened(f"qdrant:{disk}/q")
        await store.create()
        await store.upsert(rows_of([{}] * 10))
        large = rows_of([{}] * 40, first=100)
        with pytest.raises(DiskFull):
            await store.upsert(Records(large.ids, large.vectors, ["x" * 200_000] * 40, large.metadata))
        assert len(await store.fetch([f"{row:06d}" for row in range(10)])) == 10
        await store.close()
        remount(disk, "ro")
        for one in (opened(f"qdrant:{disk}/q"), opened(f"qdrant:{disk}/new")):
            with pytest.raises(HomeError, match="cannot be written"):
                await one.create()
            await one.close()


async def test_a_folder_that_cannot_be_opened_on_a_full_disk_is_not_damaged(tmp_path: Path) -> None:
    """SQLite wants room for a log beside the file, also to read it; the view would be built anew."""
    with small_disk(tmp_path / "disk", 3) as disk:
        await filled(f"qdrant:{disk}/q")
        full = fill(disk)
        store = opened(f"qdrant:{disk}/q")
        with pytest.raises(DiskFull):
            await store.count()
        with pytest.raises(DiskFull):
            await store.drop()
        full.unlink()
        assert await store.count() == 5
        await store.close()


async def test_erasing_leaves_no_text_in_the_folder(tmp_path: Path) -> None:
    store = opened(f"qdrant:{tmp_path}/q")
    await store.create()
    rows = rows_of([{}] * 50, text="secret")
    await store.upsert(rows)
    await store.delete(rows.ids[:49])
    await store.erase(grace_s=0)
    held = b"".join(path.read_bytes() for path in (tmp_path / "q").rglob("*") if path.is_file())
    assert b"secret 000003" not in held
    assert b"secret 000049" in held
    assert await store.count() == 1
    await store.close()


async def test_a_file_that_is_none_is_a_damaged_view(tmp_path: Path) -> None:
    await filled(f"qdrant:{tmp_path}/q")
    _storage(tmp_path / "q").write_bytes(b"nothing of SQLite" * 100)
    store = opened(f"qdrant:{tmp_path}/q")
    with pytest.raises(ViewDamaged):
        await store.count()
    await store.close()


# --- what another program made ---------------------------------------------------------------------------------------


async def test_what_another_program_made_is_left_alone(tmp_path: Path) -> None:
    client = QdrantClient(path=str(tmp_path / "q"))
    client.create_collection("theirs", models.VectorParams(size=16, distance=models.Distance.COSINE))
    client.upsert("theirs", [models.PointStruct(id=1, vector=[1.0] * 16, payload={"a": 1})])
    client.close()
    store = opened(f"qdrant:{tmp_path}/q", "theirs")
    for what in (store.count, store.create, store.drop, lambda: store.upsert(rows_of([{}]))):
        with pytest.raises(Conflict):
            await what()
    await store.close()
    client = QdrantClient(path=str(tmp_path / "q"))
    assert client.count("theirs").count == 1
    client.close()


async def test_a_collection_that_was_not_marked_is_made_whole(tmp_path: Path) -> None:
    """A process ended between making it and marking it."""
    client = QdrantClient(path=str(tmp_path / "q"))
    client.create_collection("view", {DENSE: models.VectorParams(size=16, distance=models.Distance.COSINE)})
    client.close()
    store = opened(f"qdrant:{tmp_path}/q")
    assert not await store.exists()
    await store.create()
    assert await store.exists()
    assert await store.count() == 0
    await store.close()


async def test_a_collection_that_an_alias_names_is_not_dropped(place: str) -> None:
    store = opened(place)
    await store.create()
    await store.upsert(rows_of([{}] * 3))
    action = models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name="view", alias_name="production")
    )
    await store._backend.do(lambda client: client.update_collection_aliases([action]))
    with pytest.raises(Conflict, match="production"):
        await store.drop()
    assert await store.count() == 3
    other = opened(place, "production")
    with pytest.raises(Conflict):
        await other.create()
    with pytest.raises(Conflict, match="is an alias"):
        await other.drop()
    assert await other.count() == 3
    await other.close()
    gone = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="production"))
    await store._backend.do(lambda client: client.update_collection_aliases([gone]))
    await store.drop()
    assert not await store.exists()
    await store.close()


async def test_a_newer_whimbrel_s_and_another_space_are_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from whimbrel.stores.qdrant import store as module

    monkeypatch.setattr(module, "FORMAT", 2)
    await filled(place)
    monkeypatch.undo()
    store = opened(place)
    with pytest.raises(StoreUnsupported, match="newer"):
        await store.count()
    await store.close()
    other = opened(place, space=Space("another", "1", 16))
    with pytest.raises(SpaceMismatch):
        await other.count()
    await other.close()


# --- the API of a server ---------------------------------------------------------------------------------------------


async def test_a_bulk_load_holds_the_index_back_and_restores_it(server: QdrantServer) -> None:
    store = opened(server.uri)
    await store.create()
    server.state().thresholds["view"] = 4_321
    await store.begin_bulk()
    assert server.state().thresholds["view"] == 0
    await store.upsert(rows_of([{}] * 10), new=True)
    await store.close()
    again = opened(server.uri)  # after a restart in the middle
    await again.begin_bulk()
    await again.upsert(rows_of([{}] * 10, first=10), new=True)
    looks = len(server.of("GET", "/collections/view"))
    await again.end_bulk()
    assert server.state().thresholds["view"] == 4_321
    assert len(server.of("GET", "/collections/view")) >= looks + 4, "it did not wait until the index was there"
    changes = [one.optimizers_config.indexing_threshold for one in server.of("PATCH", "/collections/view")]
    assert changes == [0, 4_321]
    await again.end_bulk()
    assert len(server.of("PATCH", "/collections/view")) == 2
    assert await again.count() == 20
    await again.close()


async def test_fields_that_filters_use_have_indexes(server: QdrantServer) -> None:
    store = opened(server.uri)
    await store.create()
    rows = [{"site": "a", "year": 2024, "ratio": 0.5, "draft": True, "tags": ["x"], "a.b": "c", "long": "y" * 300}]
    await store.upsert(rows_of(rows))
    await store.upsert(rows_of(rows, first=1))
    said = {"site": "keyword", "year": "float", "ratio": "float", "draft": "bool", "tags": "keyword"}
    indexes = {key: kind.rpartition(".")[2].lower() for key, kind in server.state().indexes["view"].items()}
    fields = said
    assert indexes == {"whimbrel_odd": "keyword", '"a.b"': "keyword", **fields}
    assert len(server.of("PUT", "/collections/view/index")) == len(indexes), "an index was asked for twice"
    await store.upsert(rows_of([{f"key {number}": number for number in range(100)}], first=2))
    assert len(server.state().indexes["view"]) == 33
    await store.close()
    asked = len(server.of("PUT", "/collections/view/index"))
    again = opened(server.uri)  # another process: those that there are count, and are not asked for again
    await again.upsert(rows_of([{"site": "b", **{f"later {number}": number for number in range(9)}}], first=3))
    assert len(server.of("PUT", "/collections/view/index")) == asked
    await again.close()


async def test_every_write_waits_until_it_is_there(server: QdrantServer) -> None:
    store = opened(server.uri)
    await store.create()
    await store.upsert(rows_of([{"n": 1}] * 3))
    batch = server.of("PUT", "/collections/view/points")[-1].batch
    assert [UUID(str(id_)) for id_ in batch.ids] == [UUID(to_point(id_)) for id_ in ("000000", "000001", "000002")]
    assert batch.payloads[0] == {"whimbrel_id": "000000", "text": "text 000000", "n": 1}
    assert set(batch.vectors) == {DENSE}
    await store.delete(["000000"])
    assert server.of("POST", "/collections/view/points/delete")[-1].points == [UUID(to_point("000000"))]
    assert await store.count() == 2
    await store.search(unit_vectors(1)[0], 2, ids=["000001"])
    asked = server.of("POST", "/collections/view/points/query")[-1]
    assert (asked.using, asked.filter.must[0].has_id, asked.with_payload) == (
        DENSE,
        [UUID(to_point("000001"))],
        ["whimbrel_id"],
    )
    await store.drop()
    assert server.of("DELETE", "/collections/view")
    await store.close()


async def test_the_key_goes_with_each_request_and_a_wrong_one_is_said() -> None:
    server = QdrantServer(key="s3cret/+")
    server.start()
    uri = f"qdrant+http://s3cret%2F%2B@127.0.0.1:{server.port}"
    await filled(uri)
    for wrong in (server.uri, uri.replace("s3cret", "other")):
        store = opened(wrong)
        with pytest.raises(StoreRefused, match="key") as caught:
            await store.count()
        assert "QDRANT_API_KEY" in caught.value.hint
        assert "other" not in str(caught.value)
        await store.close()
    server.stop()


async def test_a_server_that_is_away_or_too_old_or_none_is_said(server: QdrantServer) -> None:
    await filled(server.uri)
    store = opened(server.uri, reach=Reach(connect_timeout_s=2, timeout_s=2))
    assert await store.count() == 5
    server.failing = 503
    with pytest.raises(StoreUnavailable, match="503"):
        await store.count()
    server.failing = 0
    assert await store.count() == 5
    await store.close()
    server.version = "1.9.2"
    with pytest.raises(StoreUnsupported, match=r"version 1\.9\.2"):
        await store.count()
    server.version = "something else"
    with pytest.raises(StoreRefused, match="not a Qdrant"):
        await store.count()
    await store.close()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    away = opened(f"qdrant+http://127.0.0.1:{port}")
    with pytest.raises(StoreUnavailable, match="Nobody answers"):
        await away.count()
    await away.close()


async def test_tls_against_plain_is_said(server: QdrantServer) -> None:
    store = opened(server.uri.replace("http", "https"))
    with pytest.raises(StoreRefused, match="TLS"):
        await store.count()
    await store.close()


async def test_the_port_of_grpc_is_said() -> None:
    answer = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00@\x00"
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4_096)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        store = opened(f"qdrant+http://127.0.0.1:{listening.getsockname()[1]}", reach=Reach(2, 2))
        with pytest.raises(StoreRefused, match="does not speak HTTP") as caught:
            await store.count()
        assert "6334" in caught.value.hint
        await store.close()


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        store = opened(f"qdrant+http://127.0.0.1:{listening.getsockname()[1]}", reach=Reach(0.3, 1))
        with pytest.raises(StoreUnavailable):
            await store.count()
        await store.close()


def test_a_uri_names_a_server() -> None:
    server = parse_server("qdrant+https://k%40y@host/prefix/?grpc=1", {"QDRANT_API_KEY": "other"})
    assert (server.url, server.key, server.grpc_port) == ("https://host:6333/prefix", "k@y", 6334)
    assert "k@y" not in repr(server)
    plain = parse_server("qdrant+http://[::1]:7000", {"QDRANT_API_KEY": "env"})
    assert (plain.url, plain.key, plain.grpc_port) == ("http://[::1]:7000", "env", None)
    assert parse_server("qdrant+http://h?grpc_port=7001", {}).grpc_port == 7001
    assert parse_server("qdrant+http://h?grpc=0&grpc_port=7001", {}).grpc_port is None


@pytest.mark.parametrize(
    "uri", ["qdrant+http://", "qdrant+http://h:x", "qdrant+http://h?nosuch=1", "qdrant+http://h?grpc_port=x",
            "qdrant+http://h?grpc=perhaps"]
)  # fmt: skip
def test_a_uri_that_names_no_server_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_server(uri, {})
    assert caught.value.hint


def test_the_rules_are_those_of_a_server() -> None:
    assert (rules.MAX_DIMENSIONS, rules.MAX_REQUEST_BYTES, rules.MAX_NAME) == (65_536, 32 << 20, 255)
