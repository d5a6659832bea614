"""Databases as other programs fill them with texts and their vectors, to be adopted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import lancedb
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

from copying import at, chroma_client, libpq
from running import Toy

TOWNS = ("Alnmouth", "Bamburgh", "Craster", "Dunstan", "Embleton", "Farne")
BIRDS = ("avocet", "bittern", "curlew", "dunlin", "eider", "fulmar", "gannet", "heron", "ibis", "jackdaw")
D = 32


def text_of(number: int) -> str:
    bird, town = BIRDS[number % 10], TOWNS[number % 6]
    return f"Sighting {number}: a {bird} was seen at {town} on the {number * 7}th tide."


@dataclass(frozen=True)
class Table:
    """Rows as a program has them, as columns."""

    ids: Sequence[Any]
    texts: Sequence[str | None]
    vectors: np.ndarray
    metadata: Sequence[Mapping[str, Any]]


def sightings(rows: int = 60, *, toy: Toy | None = None, per_source: int = 5) -> Table:
    """Rows of LangChain's kind: a few chunks a source, one after another."""
    toy = toy or Toy()
    texts = [text_of(row) for row in range(rows)]
    return Table(
        [f"row {row}" for row in range(rows)],
        texts,
        np.array([toy._vector(text) for text in texts], np.float32),
        [
            {
                "source": f"https://birds.example/log/{row // per_source}",
                "title": f"Log {row // per_source}",
                "chunk_index": row % per_source,
                "year": 2000 + row // per_source,
            }
            for row in range(rows)
        ],
    )


def fill_lance(folder: Path, table: Table, name: str = "log") -> str:
    lancedb.connect(folder).create_table(name, _arrow(table))
    return f"lancedb:{folder}/{name}"


def fill_parquet(folder: Path, table: Table, name: str = "log") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(_arrow(table), folder / f"{name}.parquet")
    return f"parquet:{folder}/{name}"


def fill_chroma(folder: Path, table: Table, name: str = "log", metric: str = "cosine") -> str:
    client = chroma_client(folder)
    made = client.create_collection(name, configuration={"hnsw": {"space": metric}}, embedding_function=None)
    if len(table.ids):
        made.add(
            ids=list(table.ids),
            embeddings=table.vectors,
            documents=list(table.texts),
            metadatas=[dict(one) for one in table.metadata],
        )
    client.close()
    return f"chroma:{folder}/{name}"


def fill_qdrant(folder: Path, table: Table, name: str = "log") -> str:
    """As LangChain does it: see `qdrant_points`."""
    client = QdrantClient(path=str(folder))
    client.create_collection(name, VectorParams(size=table.vectors.shape[1], distance=Distance.COSINE))
    client.upsert(name, qdrant_points(table))
    client.close()
    return f"qdrant:{folder}/{name}"


def qdrant_points(table: Table) -> list[PointStruct]:
    """As LangChain makes them: the text and the metadata within the payload, ids of its own."""
    return [
        PointStruct(id=qdrant_id(id_), vector=vector.tolist(), payload={"page_content": text, "metadata": dict(one)})
        for id_, text, vector, one in zip(table.ids, table.texts, table.vectors, table.metadata, strict=True)
    ]


def qdrant_id(id_: Any) -> str:
    return str(uuid5(NAMESPACE_URL, str(id_)))


def fill_milvus(folder: Path, table: Table, name: str = "log") -> str:
    """As LangChain does it: dynamic fields."""
    import milvus_lite

    kinds, field = milvus_lite.DataType, milvus_lite.FieldSchema
    folder.mkdir(parents=True, exist_ok=True)
    with milvus_lite.MilvusLite(str(folder / "their.db")) as database:
        columns = [
            field("pk", kinds.VARCHAR, is_primary=True, max_length=100),
            field("vector", kinds.FLOAT_VECTOR, dim=table.vectors.shape[1]),
        ]
        made = database.create_collection(name, milvus_lite.CollectionSchema(columns, enable_dynamic_field=True))
        made.create_index("vector", {"index_type": "FLAT", "metric_type": "COSINE", "params": {}})
        made.load()
        rows = zip(table.ids, table.texts, table.vectors, table.metadata, strict=True)
        made.insert(
            [
                {"pk": str(id_), "vector": vector.tolist(), **({"text": text} if text is not None else {}), **one}
                for id_, text, vector, one in rows
            ]
        )
        made.flush()
    return f"milvus:{folder / 'their.db'}/{name}"


def fill_postgres(url: str, table: Table, name: str = "log") -> str:
    with psycopg.connect(libpq(url), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        made = f"CREATE TABLE {name} (id text PRIMARY KEY, content text, embedding vector({D}), cmetadata jsonb)"
        connection.execute(made.encode())
        with connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO {name} VALUES (%s, %s, %s::vector, %s)".encode(),
                [
                    (id_, text, str(vector.tolist()), psycopg.types.json.Jsonb(dict(one)))
                    for id_, text, vector, one in zip(
                        table.ids, table.texts, table.vectors, table.metadata, strict=True
                    )
                ],
            )
        connection.execute(f"CREATE INDEX ON {name} USING hnsw (embedding vector_cosine_ops)".encode())
    return at(url, name)


def _arrow(table: Table) -> pa.Table:
    names = list(dict.fromkeys(key for one in table.metadata for key in one))
    flat = pa.array(np.ascontiguousarray(table.vectors, np.float32).reshape(-1))
    return pa.table(
        {
            "id": list(table.ids),
            "text": pa.array(list(table.texts), pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, table.vectors.shape[1]),
            **{name: [one.get(name) for one in table.metadata] for name in names},
        }
    )
