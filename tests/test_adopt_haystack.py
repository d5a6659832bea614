"""Adopting what Haystack 2 has written: the layouts of its document stores, of documents that its splitter has cut."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import psycopg
import pytest
from psycopg.types.json import Jsonb
from qdrant_client import QdrantClient, models

from adopting import D, text_of
from copying import at, chroma_client, libpq
from running import Toy
from whimbrel.adopt.fields import OWN
from whimbrel.app import Whimbrel
from whimbrel.models.embedders import resolve

pytestmark = pytest.mark.timeout(180)

_IDS = UUID("3896d314-1e95-4a3a-b45a-945f9f0b541d")
"""Of the ids that Haystack gives to points of Qdrant."""
PARTS = 5
"""Chunks of each document."""


@dataclass(frozen=True)
class Document:
    """As Haystack's, with its embedding."""

    content: str
    meta: Mapping[str, Any]
    embedding: Sequence[float]

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.content}{dict(self.meta)}".encode()).hexdigest()


def split(documents: int = 4) -> list[Document]:
    """As DocumentSplitter cuts documents of a PDF converter, with an overlap; in another order than they had."""
    toy, made = Toy(), []
    for number in range(documents):
        source = hashlib.sha256(f"document {number}".encode()).hexdigest()
        meta = {"file_path": f"log-{number}.pdf", "title": f"Log {number}", "year": 2000 + number, "source_id": source}
        for part in range(PARTS):
            text = text_of(PARTS * number + part)
            shared = [{"doc_id": hashlib.sha256(text.encode()).hexdigest(), "range": [90, 100]}] if part else []
            place = {"page_number": 1 + part // 2, "split_id": part, "split_idx_start": 90 * part}
            about = {**meta, **place, "_split_overlap": shared}
            made.append(Document(text, about, toy._vector(text).tolist()))
    return [made[row] for row in np.random.default_rng(2).permutation(len(made)).tolist()]


# --- what its stores write -------------------------------------------------------------------------------------------


def fill_qdrant(folder: Path, documents: Sequence[Document], *, sparse: bool = False) -> str:
    """QdrantDocumentStore: the whole document is the payload. `sparse`: with `use_sparse_embeddings`."""
    client = QdrantClient(path=str(folder))
    dense = models.VectorParams(size=D, distance=models.Distance.COSINE)
    if sparse:
        client.create_collection(
            "Document", {"text-dense": dense}, sparse_vectors_config={"text-sparse": models.SparseVectorParams()}
        )
    else:
        client.create_collection("Document", dense)
    points = []
    for one in documents:
        payload = {"id": one.id, "content": one.content, "blob": None, "meta": dict(one.meta), "score": None}
        words = models.SparseVector(indices=[1], values=[0.5])
        vector: Any = {"text-dense": list(one.embedding), "text-sparse": words} if sparse else list(one.embedding)
        said = payload if sparse else {**payload, "sparse_embedding": None}
        points.append(models.PointStruct(id=uuid5(_IDS, one.id).hex, vector=vector, payload=said))
    client.upsert("Document", points)
    client.close()
    return f"qdrant:{folder}/Document"


def fill_chroma(folder: Path, documents: Sequence[Document]) -> str:
    """ChromaDocumentStore: row by row; of the metadata, what Chroma takes."""
    client = chroma_client(folder)
    made = client.create_collection("documents", metadata={"hnsw:space": "l2"}, embedding_function=None)
    for one in documents:
        made.add(
            ids=[one.id],
            documents=[one.content],
            metadatas=[{key: value for key, value in one.meta.items() if not isinstance(value, list)}],
            embeddings=[list(one.embedding)],
        )
    client.close()
    return f"chroma:{folder}/documents"


def fill_postgres(url: str, documents: Sequence[Document]) -> str:
    """PgvectorDocumentStore."""
    columns = "id, embedding, content, blob_data, blob_meta, blob_mime_type, meta"
    with psycopg.connect(libpq(url), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(
            f"CREATE TABLE haystack_documents (id VARCHAR(128) PRIMARY KEY, embedding VECTOR({D}), content TEXT, "
            "blob_data BYTEA, blob_meta JSONB, blob_mime_type VARCHAR(255), meta JSONB)".encode()
        )
        with connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO haystack_documents ({columns}) VALUES (%s, %s::vector, %s, %s, %s, %s, %s)".encode(),
                [
                    (one.id, str(list(one.embedding)), one.content, None, None, None, Jsonb(dict(one.meta)))
                    for one in documents
                ],
            )
    return at(url, "haystack_documents")


def fill_milvus(folder: Path, documents: Sequence[Document]) -> str:
    """MilvusDocumentStore: the metadata as dynamic fields, but for lists of objects."""
    import milvus_lite

    kinds, field = milvus_lite.DataType, milvus_lite.FieldSchema
    folder.mkdir(parents=True)
    with milvus_lite.MilvusLite(str(folder / "their.db")) as database:
        columns = [
            field("text", kinds.VARCHAR, max_length=65_535),
            field("id", kinds.VARCHAR, is_primary=True, max_length=65_535),
            field("vector", kinds.FLOAT_VECTOR, dim=D),
        ]
        schema = milvus_lite.CollectionSchema(columns, enable_dynamic_field=True)
        made = database.create_collection("HaystackCollection", schema)
        made.create_index("vector", {"index_type": "FLAT", "metric_type": "L2", "params": {}})
        made.load()
        made.insert(
            [
                {
                    **{key: value for key, value in one.meta.items() if not isinstance(value, list)},
                    "text": one.content,
                    "vector": list(one.embedding),
                    "id": one.id,
                }
                for one in documents
            ]
        )
        made.flush()
    return f"milvus:{folder / 'their.db'}/HaystackCollection"


# --- and what is taken of it -----------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Whimbrel]:
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: Toy())
    with Whimbrel(home=tmp_path / "home", embedder="toy") as whimbrel:
        yield whimbrel


Fill = Callable[[Sequence[Document]], str]


@pytest.fixture(params=["qdrant", "qdrant with sparse vectors", "chroma", "postgres", "milvus"])
def fill(request: pytest.FixtureRequest, tmp_path: Path) -> Fill:
    folder = tmp_path / "theirs"
    match request.param:
        case "qdrant":
            return lambda documents: fill_qdrant(folder, documents)
        case "chroma":
            return lambda documents: fill_chroma(folder, documents)
        case "postgres":
            url = str(request.getfixturevalue("fresh_postgres"))
            return lambda documents: fill_postgres(url, documents)
        case "milvus":
            return lambda documents: fill_milvus(folder, documents)
    return lambda documents: fill_qdrant(folder, documents, sparse=True)


def test_documents_of_haystack_are_put_together_from_their_splits(home: Whimbrel, fill: Fill) -> None:
    told = home.adopt(fill(split()), "birds")
    assert (told["rows"], told["adopted"], told["rejected"]) == (20, 20, 0)
    assert told["fields"] | {"guessed": []} == {
        "text": OWN,
        "title": "title",
        "uri": "file_path",
        "document": "source_id",
        "order": "split_id",
        "page": "page_number",
        "pages_from": 1,
        "guessed": [],
    }
    listed = home.documents("birds")
    assert sorted(one["uri"] for one in listed) == [f"log-{number}.pdf" for number in range(4)]
    for one in listed:
        first = PARTS * int(one["title"].removeprefix("Log "))
        whole = home.document(one["document_id"], "birds")["text"]
        assert whole == "\n\n".join(text_of(row) for row in range(first, first + PARTS))
    for number in (0, 7, 13, 19):
        hit = home.search(text_of(number), "birds", mode="dense").hits[0]
        assert (hit.text, hit.title, hit.page) == (text_of(number), f"Log {number // 5}", 1 + number % 5 // 2)
        assert hit.metadata.keys() == {"file_path", "title", "year", "source_id"}
        assert hit.metadata["year"] == 2000 + number // 5


def test_each_split_is_a_document_where_that_is_wished(home: Whimbrel, fill: Fill) -> None:
    """The id is not among the fields that are looked at, unless it is named."""
    told = home.adopt(fill(split()), "birds", document_field="id")
    assert (told["rows"], told["adopted"], told["rejected"]) == (20, 20, 0)
    assert len(home.documents("birds")) == 20
    hit = home.search(text_of(7), "birds", mode="dense").hits[0]
    assert (hit.text, hit.title, hit.page) == (text_of(7), "Log 1", 2)
    assert hit.metadata.keys() == {"file_path", "title", "year", "source_id"}
    whole = home.document(hit.document_id, "birds")
    assert (whole["text"], whole["uri"]) == (text_of(7), "log-1.pdf")


def test_metadata_that_is_called_as_haystack_calls_its_own_is_kept(home: Whimbrel, tmp_path: Path) -> None:
    """A payload that has an id, and an object with another."""
    some = [Document(one.content, {"id": f"mine {n}", "score": n}, one.embedding) for n, one in enumerate(split())]
    home.adopt(fill_qdrant(tmp_path / "theirs", some), "birds")
    for number, one in enumerate(some):
        hit = home.search(one.content, "birds", mode="dense").hits[0]
        assert (hit.text, hit.metadata) == (one.content, {"id": f"mine {number}", "score": number})
