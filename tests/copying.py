"""Databases as other programs fill them, and copies between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import chromadb
import lancedb
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from qdrant_client import QdrantClient, models

from whimbrel.move.copy import CopyReport, Options, Told, copy_all
from whimbrel.stores.base import Reach
from whimbrel.stores.foreign.base import Chosen, Rows, Source, Table
from whimbrel.stores.foreign.resolve import open_database, parse

D = 8


@dataclass(frozen=True)
class Copies:
    """Copies of one home."""

    folder: Path

    async def run(self, source: str, target: str, on_step: Any = None, **options: Any) -> list[CopyReport]:
        """Copies that all went."""
        told = await self.told(source, target, on_step, **options)
        assert all(isinstance(one, CopyReport) for one in told), told
        return [one for one in told if isinstance(one, CopyReport)]

    async def told(self, source: str, target: str, on_step: Any = None, **options: Any) -> list[Told]:
        return await copy_all(
            parse(source),
            parse(target),
            Options(**{"retries_s": (), **options}),
            base=self.folder,
            states=self.folder / "copying",
            on_step=on_step or (lambda what, done, total: None),
        )

    async def one(self, source: str, target: str, **options: Any) -> CopyReport:
        (report,) = await self.run(source, target, **options)
        return report

    async def read(self, uri: str, **chosen: Any) -> tuple[Table, Rows]:
        """All of a collection, as a copy reads it, in the order of its ids."""
        address = parse(uri)
        scratch = self.folder / "read"
        database = open_database(address, base=self.folder, scratch=scratch, reach=Reach())
        source: Source = database.source(address.collection, Chosen(**chosen))
        try:
            table = await source.describe()
            ids = sorted([id_ async for some in source.ids() for id_ in some])
            rows = (await source.fetch(ids)).rows
        finally:
            await source.close()
            await database.close()
        return table, rows.taken(sorted(range(len(rows)), key=lambda row: rows.ids[row]))


def vectors(rows: int, dimensions: int = D, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dimensions)).astype(np.float32)


def fill_lance(folder: Path, name: str = "notes", rows: int = 300) -> str:
    flat = pa.array(vectors(rows).reshape(-1))
    columns = {
        "doc_id": pa.array(range(10, 10 + rows), pa.int64()),
        "content": [None if row == 3 else f"text {row}" for row in range(rows)],
        "emb": pa.FixedSizeListArray.from_arrays(flat, D),
        "year": pa.array([2000 + row % 30 for row in range(rows)], pa.int32()),
        "tags": [["a", f"t{row}"] if row % 2 else [] for row in range(rows)],
        "seen": pa.array([datetime(2024, 1, 1, 0, 0, row % 60) for row in range(rows)], pa.timestamp("us")),
        "score": pa.array([None if row % 5 == 0 else row / 3 for row in range(rows)], pa.float64()),
        "metadata": [{"site": f"s{row % 3}", "depth": row} for row in range(rows)],
        "raw": pa.array([bytes([row % 256]) for row in range(rows)], pa.binary()),
    }
    lancedb.connect(folder).create_table(name, pa.table(columns))
    return f"lancedb:{folder}/{name}"


def fill_parquet(folder: Path, name: str = "notes", rows: int = 300) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    doubles = [list(map(float, row)) for row in vectors(rows)]
    columns = {
        "uuid": [f"id-{row}" for row in range(rows)],
        "document": [f"text {row}" for row in range(rows)],
        "embedding": pa.array(doubles, pa.list_(pa.float64())),
        "price": pa.array([Decimal(row) / 100 for row in range(rows)], pa.decimal128(12, 2)),
        "on": pa.array([date(2024, 1, 1 + row % 28) for row in range(rows)], pa.date32()),
        "at": pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * rows, pa.timestamp("us", "UTC")),
        "kind": pa.array([f"k{row % 3}" for row in range(rows)]).dictionary_encode(),
        "flag": [row % 2 == 0 for row in range(rows)],
        "nested": [{"a": {"b": row}, "c": [1.5, row / 7]} for row in range(rows)],
    }
    pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=100)
    return f"parquet:{folder}/{name}"


ODD: Mapping[int, dict[str, Any]] = {
    0: {},
    1: {"n": 1, "f": 1.0, "b": True, "s": ""},
    2: {"n": -(2**63), "f": 0.1 + 0.2},
    3: {"n": "of another type", "list": [1, 2, 3], "words": ["b", "a"]},
    4: {"key with blanks": "x", "UPPER": 1, "upper": 2, "id": "my own", "text": "t", "vector": "v"},
    5: {"unicode é 日本": "値\n\t\"'\\"},
    6: {"whimbrel_more": "taken", "metadata": "m"},
}


def chroma_client(folder: Path) -> Any:
    return chromadb.PersistentClient(str(folder), settings=chromadb.config.Settings(anonymized_telemetry=False))


def fill_chroma(client: Any, name: str = "notes", rows: int = 300, metric: str = "l2") -> None:
    made = client.create_collection(
        name,
        configuration={"hnsw": {"space": metric}},
        embedding_function=None,
        metadata={"made by": "another program"},
    )
    made.add(
        ids=[f"id '{row}\" \\ é" for row in range(rows)],
        embeddings=3 * vectors(rows),
        documents=[None if row == 7 else "" if row == 8 else f"text {row}" for row in range(rows)],
        metadatas=[ODD.get(row, {"n": row, "site": f"s{row % 3}"}) or None for row in range(rows)],
        uris=[f"file:{row}" if row % 10 == 0 else None for row in range(rows)],
    )


def fill_chroma_folder(folder: Path, name: str = "notes", rows: int = 300, metric: str = "l2") -> str:
    client = chroma_client(folder)
    fill_chroma(client, name, rows, metric)
    client.close()
    return f"chroma:{folder}/{name}"


def fill_qdrant_folder(folder: Path, name: str = "notes", rows: int = 300) -> str:
    """As a plain client does it: no name for the vector, and the text in the payload."""
    client = QdrantClient(path=str(folder))
    client.create_collection(name, models.VectorParams(size=D, distance=models.Distance.EUCLID))
    payloads: list[dict[str, Any]] = [
        ODD.get(row, {"n": row, "site": f"s{row % 3}", "deep": {"a": [row, None, {"b": 1.5}]}, "none": None})
        for row in range(rows)
    ]
    payloads = [{**one, "content": f"text {row}"} if row != 9 else one for row, one in enumerate(payloads)]
    given = vectors(rows).tolist()
    points = [models.PointStruct(id=10 + row, vector=given[row], payload=payloads[row]) for row in range(rows)]
    client.upsert(name, points)
    client.close()
    return f"qdrant:{folder}/{name}"


def milvus_rows(rows: int) -> list[dict[str, Any]]:
    """Of another program: rows with declared fields and dynamic ones, their keys any strings."""
    about = [{key: value for key, value in ODD.get(row, {"n": row}).items() if key not in TAKEN} for row in range(rows)]
    return [
        {
            "pk": f"id '{row}\" \\\\ é",
            "emb": (3 * vectors(rows)[row]).tolist(),
            "content": f"text {row}" if row != 8 else "",
            "site": f"s{row % 3}",
            "small": row % 100,
            "ratio": row / 4,
            "flag": row % 2 == 0,
            "facts": {"page": row, "deep": [1, "a", None]},
            "tags": ["a", f"t{row}"] if row % 2 else [],
            **about[row],
        }
        for row in range(rows)
    ]


TAKEN = ("id", "text", "vector", "unicode é 日本", "key with blanks", "metadata")


def fill_milvus_server(server: Any, name: str = "notes", rows: int = 300, metric: str = "L2") -> str:
    import pymilvus

    client, kinds = pymilvus.MilvusClient(server.url, dedicated=True), pymilvus.DataType
    if client.has_collection(name):
        client.drop_collection(name)
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("pk", kinds.VARCHAR, is_primary=True, max_length=100)
    schema.add_field("emb", kinds.FLOAT_VECTOR, dim=D)
    for field, kind in (("content", kinds.VARCHAR), ("site", kinds.VARCHAR)):
        schema.add_field(field, kind, max_length=1000)
    for field, kind in (("small", kinds.INT8), ("ratio", kinds.FLOAT), ("flag", kinds.BOOL), ("facts", kinds.JSON)):
        schema.add_field(field, kind)
    schema.add_field("tags", kinds.ARRAY, element_type=kinds.VARCHAR, max_length=50, max_capacity=10)
    client.create_collection(name, schema=schema, consistency_level="Strong")
    index = client.prepare_index_params()
    index.add_index("emb", index_type="HNSW", metric_type=metric, params={"M": 8, "efConstruction": 64})
    client.create_index(name, index)
    client.insert(name, milvus_rows(rows))
    client.close()
    return f"{server.uri}/{name}"


def fill_milvus_lite(folder: Path, name: str = "notes", rows: int = 300, metric: str = "L2") -> str:
    import milvus_lite

    kinds, field = milvus_lite.DataType, milvus_lite.FieldSchema
    folder.mkdir(parents=True, exist_ok=True)
    with milvus_lite.MilvusLite(str(folder / "other.db")) as database:
        schema = milvus_lite.CollectionSchema(
            [
                field("pk", kinds.VARCHAR, is_primary=True, max_length=100),
                field("emb", kinds.FLOAT_VECTOR, dim=D),
                field("content", kinds.VARCHAR, max_length=1000),
                field("site", kinds.VARCHAR, max_length=1000),
                *(field(one, kind) for one, kind in (("small", kinds.INT8), ("ratio", kinds.FLOAT))),
                *(field(one, kind) for one, kind in (("flag", kinds.BOOL), ("facts", kinds.JSON))),
                field("tags", kinds.ARRAY, element_type=kinds.VARCHAR, max_length=50, max_capacity=10),
            ],
            enable_dynamic_field=True,
        )
        made = database.create_collection(name, schema)
        made.create_index("emb", {"index_type": "HNSW", "metric_type": metric})
        made.insert(milvus_rows(rows))
    return f"milvus:{folder}/other.db/{name}"


PG_TABLE = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TYPE mood AS ENUM ('fine', 'odd');
CREATE TABLE {name} (
    id uuid PRIMARY KEY, content text, embedding vector(8), n smallint, big bigint, amount numeric(12,2), free numeric,
    r real, d double precision, ok boolean, at timestamptz, plain_at timestamp, "on" date, t time, raw bytea,
    cmetadata jsonb, tags text[], numbers int[], feeling mood, host inet, "odd % name" varchar(20), long interval
);
INSERT INTO {name} SELECT
    ('00000000-0000-0000-0000-' || lpad(to_hex(i), 12, '0'))::uuid, 'text ' || i,
    (SELECT array_agg(sin(i * 10 + j))::vector FROM generate_series(1, 8) j), i % 100, i::bigint << 40, i / 100.0,
    i * 1.000000000000000000001, i / 3.0, i / 7.0, i % 2 = 0,
    '2024-05-01 12:00:00.123456+02'::timestamptz + i * interval '1 day',
    CASE WHEN i = 5 THEN 'infinity' ELSE '2024-05-01 12:00'::timestamp END, '2024-02-29'::date - i, '12:34:56.789',
    decode(lpad(to_hex(i), 4, '0'), 'hex'),
    jsonb_build_object('page', i, 'none', null, 'f', 0.1, 'deep', jsonb_build_array(1, 'a')),
    ARRAY['a', 'b''"' || i], CASE WHEN i % 3 = 0 THEN NULL ELSE ARRAY[i, NULL] END, 'odd', '10.0.0.1', 'x%s',
    interval '1 day'
FROM generate_series(1, {rows}) i;
CREATE INDEX ON {name} USING hnsw (embedding vector_ip_ops);
"""


def libpq(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def at(url: str, name: str) -> str:
    """The URI of a collection of a Postgres: before the `?` of its URL."""
    head, mark, query = libpq(url).partition("?")
    return f"{head}/{name}{mark}{query}"


def fill_postgres(url: str, name: str = "notes", rows: int = 300) -> str:
    with psycopg.connect(libpq(url), autocommit=True) as connection:
        for statement in PG_TABLE.replace("{name}", name).replace("{rows}", str(rows)).split(";\n"):
            if statement.strip():
                connection.execute(statement.encode())
    return at(url, name)


def files(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything of a folder that a write to it would change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


FIRST_PG_ID = UUID("00000000-0000-0000-0000-000000000001")
