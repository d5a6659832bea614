"""Adopting from servers: Chroma's and Milvus' own, and what stands in for Qdrant's; nothing is written to them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import chromadb
import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, VectorParams
from sqlalchemy import select

from adopting import D, Table, qdrant_id, qdrant_points, sightings, text_of
from chroma_server import ChromaServer
from commands import Shell
from milvus_server import MilvusServer
from qdrant_server import QdrantServer
from running import DEADLINE_S, Toy
from whimbrel.adopt import sameness
from whimbrel.adopt.inspecting import look_into
from whimbrel.app import Whimbrel
from whimbrel.catalog import adoptions, collections
from whimbrel.catalog import tables as t
from whimbrel.catalog.documents import text_hash
from whimbrel.domain import MoveState
from whimbrel.home import Home
from whimbrel.models.embedders import resolve
from whimbrel.move import switching

pytestmark = pytest.mark.timeout(180)

_NUMBERS = count()
ROWS = 60

Row = tuple[str, Mapping[str, Any], list[float]]
"""Its text, its metadata and its vector, as the database's client reads them."""


class Theirs(Protocol):
    """A collection of a server, by the database's own client."""

    uri: str

    def ids(self, table: Table) -> Sequence[str]:
        """The table's, as the collection has them."""
        ...

    def read(self) -> dict[str, Row]: ...

    def about(self) -> Any:
        """All else that a write would change."""
        ...

    def delete(self, ids: Sequence[str]) -> None: ...

    def drop(self) -> None: ...


class TheirChroma:
    """As LangChain fills it: no metric is said, so that it is L2."""

    def __init__(self, server: ChromaServer, name: str, table: Table) -> None:
        self.uri = f"{server.uri}/{name}"
        self._client = chromadb.HttpClient("127.0.0.1", server.port)
        self._made = self._client.create_collection(name, embedding_function=None)
        self._made.add(
            ids=list(table.ids),
            embeddings=table.vectors,
            documents=[str(text) for text in table.texts],
            metadatas=[dict(one) for one in table.metadata],
        )

    def ids(self, table: Table) -> Sequence[str]:
        return list(table.ids)

    def read(self) -> dict[str, Row]:
        found = self._made.get(include=["documents", "metadatas", "embeddings"])
        texts, about, vectors = found["documents"], found["metadatas"], found["embeddings"]
        assert texts is not None
        assert about is not None
        assert vectors is not None
        return {
            id_: (texts[row], about[row], np.asarray(vectors[row]).tolist()) for row, id_ in enumerate(found["ids"])
        }

    def about(self) -> Any:
        return [(one.name, one.id, one.metadata, str(one.configuration)) for one in self._client.list_collections()]

    def delete(self, ids: Sequence[str]) -> None:
        self._made.delete(ids=list(ids))

    def drop(self) -> None:
        self._client.delete_collection(self._made.name)


class TheirMilvus:
    """As LangChain fills it: a column for each key of the metadata, and an index of the kind HNSW."""

    def __init__(self, server: MilvusServer, name: str, table: Table) -> None:
        import pymilvus

        self.uri, self._name = f"{server.uri}/{name}", name
        self._client, kinds = pymilvus.MilvusClient(server.url, dedicated=True), pymilvus.DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        for field in ("source", "title", "text"):
            schema.add_field(field, kinds.VARCHAR, max_length=1000)
        for field in ("chunk_index", "year"):
            schema.add_field(field, kinds.INT64)
        schema.add_field("pk", kinds.VARCHAR, is_primary=True, max_length=100)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=D)
        self._client.create_collection(name, schema=schema, consistency_level="Session")
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="HNSW", metric_type="L2", params={"M": 8, "efConstruction": 64})
        self._client.create_index(name, index)
        self._client.load_collection(name)
        rows = zip(table.ids, table.texts, table.vectors.tolist(), table.metadata, strict=True)
        self._client.insert(name, [{"pk": id_, "text": text, "vector": one, **said} for id_, text, one, said in rows])

    def ids(self, table: Table) -> Sequence[str]:
        return list(table.ids)

    def read(self) -> dict[str, Row]:
        found = self._client.query(self._name, 'pk != ""', ["*"], consistency_level="Strong")
        rows = {str(one.pop("pk")): one for one in map(dict, found)}
        return {id_: (one.pop("text"), one, [*map(float, one.pop("vector"))]) for id_, one in rows.items()}

    def about(self) -> Any:
        client, name = self._client, self._name
        indexes = [client.describe_index(name, one)["index_type"] for one in client.list_indexes(name)]
        return str(client.describe_collection(name)), indexes, client.list_partitions(name), client.get_load_state(name)

    def delete(self, ids: Sequence[str]) -> None:
        self._client.delete(self._name, ids=list(ids))

    def release(self) -> None:
        self._client.release_collection(self._name)

    def is_loaded(self) -> bool:
        return bool(self._client.get_load_state(self._name)["state"].name == "Loaded")

    def drop(self) -> None:
        self._client.drop_collection(self._name)
        self._client.close()


class TheirQdrant:
    """As LangChain fills it: the text and the metadata within the payload, ids of its own."""

    def __init__(self, server: QdrantServer, name: str, table: Table) -> None:
        self.uri, self._name, self._server = f"{server.uri}/{name}", name, server
        self._client = QdrantClient(url=f"http://127.0.0.1:{server.port}", check_compatibility=False)
        self._client.create_collection(name, VectorParams(size=D, distance=Distance.COSINE))
        self._client.upsert(name, qdrant_points(table), wait=True)

    def ids(self, table: Table) -> Sequence[str]:
        return [qdrant_id(id_) for id_ in table.ids]

    def read(self) -> dict[str, Row]:
        found, _ = self._client.scroll(self._name, limit=1_000, with_payload=True, with_vectors=True)
        rows = {str(one.id): ({**(one.payload or {})}, np.asarray(one.vector).tolist()) for one in found}
        return {id_: (said.pop("page_content"), said, vector) for id_, (said, vector) in rows.items()}

    def about(self) -> Any:
        """With all requests to it that do not only read."""
        reading = ("/points", "/points/scroll", "/points/query", "/points/count")
        asked = [(one.method, one.path) for one in self._server.asked]
        wrote = [one for one in asked if one[0] != "GET" and not (one[0] == "POST" and one[1].endswith(reading))]
        return str(self._client.get_collections()), str(self._client.get_collection(self._name)), wrote

    def delete(self, ids: Sequence[str]) -> None:
        self._client.delete(self._name, list(ids), wait=True)

    def drop(self) -> None:
        self._client.delete_collection(self._name)
        self._client.close()


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    made = ChromaServer(tmp_path_factory.mktemp("chroma") / "data")
    made.start()
    yield made
    made.kill()


@pytest.fixture
def qdrant() -> Iterator[QdrantServer]:
    made = QdrantServer()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def table() -> Table:
    return sightings(ROWS)


@pytest.fixture(params=["chroma", "milvus", "qdrant"])
def theirs(request: pytest.FixtureRequest, table: Table) -> Iterator[Theirs]:
    name = f"sightings{next(_NUMBERS)}"
    made: Theirs
    if request.param == "chroma":
        made = TheirChroma(request.getfixturevalue("chroma"), name, table)
    elif request.param == "milvus":
        made = TheirMilvus(request.getfixturevalue("milvus_server"), name, table)
    else:
        made = TheirQdrant(request.getfixturevalue("qdrant"), name, table)
    yield made
    made.drop()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: made)
    monkeypatch.setattr(switching, "NOTICE_S", 0.3)
    return made


@pytest.fixture
def home(tmp_path: Path, toy: Toy, theirs: Theirs) -> Iterator[Whimbrel]:
    """Closed before their collection goes."""
    with Whimbrel(home=tmp_path / "home", embedder="toy") as whimbrel:
        yield whimbrel


def best(home: Whimbrel, number: int, mode: str) -> str:
    """The text found first for the text of a row, by a search that lacks nothing."""
    found = home.search(text_of(number), "birds", mode=mode)
    assert not found.degraded
    return found.hits[0].text


def held(home: Whimbrel) -> tuple[dict[str, bytes], dict[str, list[float]]]:
    """The hashes of the texts that the catalog has, and the vectors of record, by the ids of the source."""
    with home.catalog.read() as connection:
        (one,) = adoptions.every(connection)
        pairs = adoptions.each_vector(connection, collections.view(connection, one.view_id))
        vectors = {key: vector.tolist() for keys, some in pairs for key, vector in zip(keys, some, strict=True)}
        chunks = select(t.chunks.c.source_id, t.chunks.c.public_id, t.texts.c.hash)
        rows = list(connection.execute(chunks.join_from(t.chunks, t.texts, t.texts.c.id == t.chunks.c.text_id)))
    return {row.source_id: row.hash for row in rows}, {row.source_id: vectors[row.public_id.hex()] for row in rows}


def is_as_before(theirs: Theirs, rows: Mapping[str, Row], about: Any) -> None:
    """Its vectors but for their last bit: what keeps the rows of the stand-in for Qdrant divides them by their length
    anew at each search."""
    now = theirs.read()
    assert now.keys() == rows.keys()
    for id_, (text, metadata, vector) in rows.items():
        assert now[id_][:2] == (text, metadata)
        assert now[id_][2] == pytest.approx(vector, abs=1e-6)
    assert theirs.about() == about


def test_every_row_of_a_server_is_in_the_catalog_and_found(
    home: Whimbrel, toy: Toy, theirs: Theirs, table: Table
) -> None:
    before = theirs.read(), theirs.about()
    assert len(before[0]) == ROWS
    (seen,) = home.inspect(theirs.uri)["collections"]
    assert (seen["count"], seen["dimensions"]) == (ROWS, D)
    assert seen["text"] == ("page_content" if isinstance(theirs, TheirQdrant) else "text")
    told = home.adopt(theirs.uri, "birds")
    assert (told["rows"], told["adopted"], told["rejected"]) == (ROWS, ROWS, 0)
    said = {key: told["fields"][key] for key in ("uri", "title", "order")}
    assert said == {"uri": "source", "title": "title", "order": "chunk_index"}
    texts, vectors = held(home)
    assert texts == {id_: text_hash(text) for id_, (text, _, _) in before[0].items()}
    for id_, vector in zip(theirs.ids(table), table.vectors, strict=True):
        assert vectors[id_] == pytest.approx(before[0][id_][2], abs=1e-6)
        assert vectors[id_] == pytest.approx(vector.tolist(), abs=1e-6)
    toy.given.clear()
    for number in range(0, ROWS, 7):
        assert best(home, number, "dense") == best(home, number, "hybrid") == text_of(number)
    found = home.search(text_of(33), "birds", filter={"year": {"$gte": 2010}}, mode="dense", top_k=20)
    assert {hit.metadata["year"] for hit in found.hits} == {2010, 2011}
    assert not toy.given, "a text was embedded that has its vector"
    listed = {one["uri"] for one in home.documents("birds", limit=100)}
    assert listed == {f"https://birds.example/log/{number}" for number in range(12)}
    is_as_before(theirs, *before)


def test_what_is_deleted_in_a_server_is_found_no_more_and_noticed(
    home: Whimbrel, theirs: Theirs, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sameness, "LISTING_S", 0.0)
    home.adopt(theirs.uri, "birds")
    assert [drift for _, drift in asyncio.run(home.watch.drifts())] == [{}]
    theirs.delete(theirs.ids(table)[6:8])
    ((_, drift),) = asyncio.run(home.watch.drifts())
    assert "2 rows fewer" in drift["said"]
    asyncio.run(home.watch.look())
    found = home.search(text_of(6), "birds", mode="dense", top_k=ROWS)
    assert {text_of(6), text_of(7)}.isdisjoint(hit.text for hit in found.hits)
    assert any("2 rows fewer" in said for said in found.degraded)
    (status,) = home.status()["collections"]
    assert "2 rows fewer" in status["views"][0]["error"]


def test_a_move_takes_every_row_of_a_server_to_lancedb(home: Whimbrel, toy: Toy, theirs: Theirs) -> None:
    before = theirs.read(), theirs.about()
    home.adopt(theirs.uri, "birds")
    toy.given.clear()
    home.finish(home.start_move("birds", to="lancedb:ours")[1], timeout_s=DEADLINE_S)
    move = home.move("birds")
    assert move.state is MoveState.READY, move.error
    (compared,) = move.checks["views"]
    assert (compared["equal"], compared["expected"], compared["rows"]) == (True, ROWS, ROWS)
    assert move.checks["search"]["source"]["recall@10"] >= 0.9
    home.finish(home.switch_move(move), timeout_s=DEADLINE_S)
    assert home.move("birds").state is MoveState.SWITCHED
    for number in range(0, ROWS, 7):
        assert best(home, number, "dense") == best(home, number, "hybrid") == text_of(number)
    home.finalise_move(home.move("birds"))
    assert not toy.given, "a text was embedded that has its vector"
    is_as_before(theirs, *before)


@pytest.mark.parametrize("theirs", ["milvus"], indirect=True)
def test_what_was_read_in_a_milvus_server_stays_in_its_memory(tmp_path: Path, toy: Toy, theirs: TheirMilvus) -> None:
    """Its program may have come to search it meanwhile, which a server does not tell."""
    stays = "it was not in the server's memory: it was loaded to be read, and stays there"
    (found,) = look_into(theirs.uri, Home(tmp_path / "home"), tmp_path)["collections"]
    assert stays not in found["notes"]
    theirs.release()
    (found,) = look_into(theirs.uri, Home(tmp_path / "home"), tmp_path)["collections"]
    assert (found["count"], stays in found["notes"], theirs.is_loaded()) == (ROWS, True, True)
    theirs.release()
    (copied,) = Shell(tmp_path / "home").several(["copy", theirs.uri, f"lancedb:{tmp_path / 'to'}/log", "--json"])
    (report,) = copied.json["collections"]
    assert (copied.status, stays in report["notes"], theirs.is_loaded()) == (0, True, True)
    theirs.release()
    with Whimbrel(home=tmp_path / "home", embedder="toy") as home:
        assert stays in home.adopt(theirs.uri, "birds")["notes"]
        assert theirs.is_loaded()
        assert best(home, 7, "dense") == text_of(7)
        assert [drift for _, drift in asyncio.run(home.watch.drifts())] == [{}]
    assert theirs.is_loaded()
    assert len(theirs.read()) == ROWS
