"""A Milvus server by pymilvus, with the same index: one real server, of the package `milvus`, for both sides."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pymilvus

from bench.stores.sides import SPACE, Database, Side
from whimbrel.stores.base import DENSE, Records
from whimbrel.stores.milvus import MilvusStore
from whimbrel.stores.milvus.backend import EF, HNSW

PAGE = 1_000
BATCH = 1_000


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[Database]:
    with server() as url:
        store = MilvusStore(f"milvus+{url}", "bench", SPACE, base=folder)
        client = pymilvus.MilvusClient(url, dedicated=True)
        yield Database(store, Direct(client), indexes_as_it_likes=True)
        await store.close()
        client.close()


@contextmanager
def server() -> Iterator[str]:
    """A server of its own; gives its URL."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from milvus_server import own_milvus

    with own_milvus(paced=False) as running:
        yield running.url


class Direct(Side):
    """By its rules: rows in batches, the metadata as dynamic fields, what this client wrote is seen by its reads."""

    def __init__(self, client: Any, *, server: bool = True) -> None:
        self._client = client
        self._is_server = server

    async def create(self) -> None:
        kinds = pymilvus.DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("id", kinds.VARCHAR, is_primary=True, max_length=200)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=SPACE.dimensions)
        schema.add_field("text", kinds.VARCHAR, max_length=65_535)
        self._client.create_collection("direct", schema=schema, consistency_level="Session")
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="HNSW", metric_type="COSINE", params=dict(HNSW))
        self._client.create_index("direct", index)
        self._client.load_collection("direct")

    async def write(self, rows: Records) -> None:
        columns = zip(rows.ids, rows.vectors[DENSE].tolist(), rows.texts, rows.metadata, strict=True)
        whole = [{**about, "id": id_, "vector": vector, "text": text} for id_, vector, text, about in columns]
        for start in range(0, len(whole), BATCH):
            self._client.upsert("direct", whole[start : start + BATCH])

    async def index(self) -> None:
        """Until searches use it: under the interim one, a filter that few rows pass gives fewer than k hits."""
        self._client.flush("direct")
        if not self._is_server:
            return
        written = sum(one.num_rows for one in self._client.list_persistent_segments("direct"))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            loaded = self._client.list_loaded_segments("direct")
            if sum(one.num_rows for one in loaded if one.index_name or one.num_rows < 1_024) >= written:
                return
            time.sleep(0.1)

    async def upsert(self, rows: Records) -> None:
        await self.write(rows)

    async def search(
        self, query: npt.NDArray[np.float32], k: int, *, site: str | None = None, year: int | None = None
    ) -> list[str]:
        where = f'site == "{site}"' if site is not None else f"year >= {year}" if year is not None else ""
        how = {"metric_type": "COSINE", "params": {"ef": EF}}
        (hits,) = self._client.search("direct", [query], where, k, search_params=how, consistency_level="Session")
        return [hit["id"] for hit in hits]

    async def read_out(self) -> int:
        count = 0
        pages = self._client.query_iterator("direct", PAGE, output_fields=["*"], consistency_level="Session")
        while rows := pages.next():
            count += len(np.asarray([row["vector"] for row in rows], np.float32))
        pages.close()
        return count
