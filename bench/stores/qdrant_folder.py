"""A folder of Qdrant's local mode by qdrant-client itself: a folder for each side."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient, models

from bench.stores.rows import DIMENSIONS
from bench.stores.sides import SPACE, Database, Side
from whimbrel.stores.base import DENSE, Records
from whimbrel.stores.qdrant import QdrantStore

PAGE = 1_000
"""Rows of a read."""


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[Database]:
    for name in ("ours", "direct"):
        shutil.rmtree(folder / name, ignore_errors=True)
    store = QdrantStore(f"qdrant:{folder / 'ours'}", "bench", SPACE, base=folder)
    client = QdrantClient(path=str(folder / "direct"))
    yield Database(store, Direct(client))
    await store.close()
    client.close()


class Direct(Side):
    """As its documentation has it: points in batches, everything else in the payload; read by scrolling."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def create(self) -> None:
        params = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
        self._client.create_collection("direct", params)

    async def write(self, rows: Records) -> None:
        points = models.Batch(
            ids=[str(UUID(id_)) for id_ in rows.ids],
            vectors=rows.vectors[DENSE].tolist(),
            payloads=[
                {"id": id_, "text": text, **one}
                for id_, text, one in zip(rows.ids, rows.texts, rows.metadata, strict=True)
            ],
        )
        self._client.upsert("direct", points)

    async def index(self) -> None:
        """There is none."""

    async def upsert(self, rows: Records) -> None:
        await self.write(rows)

    async def search(
        self, query: npt.NDArray[np.float32], k: int, *, site: str | None = None, year: int | None = None
    ) -> list[str]:
        where = None
        if site is not None:
            where = models.FieldCondition(key="site", match=models.MatchValue(value=site))
        elif year is not None:
            where = models.FieldCondition(key="year", range=models.Range(gte=year))
        found = self._client.query_points(
            "direct",
            query=query.tolist(),
            limit=k,
            query_filter=models.Filter(must=[where]) if where is not None else None,
            with_payload=["id"],
        )
        return [point.payload["id"] for point in found.points]

    async def read_out(self) -> int:
        count, offset = 0, None
        while True:
            points, offset = self._client.scroll(
                "direct", limit=PAGE, offset=offset, with_payload=True, with_vectors=True
            )
            count += len(np.array([point.vector for point in points], np.float32).reshape(-1, DIMENSIONS))
            if offset is None:
                return count
