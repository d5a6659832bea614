"""A Chroma folder by chromadb's own client, with the same index: a folder for each side."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import numpy.typing as npt
from chromadb.config import Settings

from bench.stores.chroma import PAGE
from bench.stores.rows import DIMENSIONS
from bench.stores.sides import SPACE, Database, Side
from whimbrel.stores.base import DENSE, Records
from whimbrel.stores.chroma import ChromaStore
from whimbrel.stores.chroma.backend import HNSW


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[Database]:
    for name in ("ours", "direct"):
        shutil.rmtree(folder / name, ignore_errors=True)
    store = ChromaStore(f"chroma:{folder / 'ours'}", "bench", SPACE, base=folder)
    direct = Direct(folder / "direct")
    yield Database(store, direct)
    await store.close()
    direct.close()


class Direct(Side):
    """Called without a thread between, as a program of one task does."""

    def __init__(self, folder: Path) -> None:
        self._client = chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False))

    def close(self) -> None:
        self._client.close()

    async def create(self) -> None:
        self._collection = self._client.create_collection(
            "direct", configuration={"hnsw": dict(HNSW)}, embedding_function=None
        )

    async def write(self, rows: Records) -> None:
        self._collection.upsert(
            ids=list(rows.ids),
            embeddings=rows.vectors[DENSE],
            documents=list(rows.texts),
            metadatas=[dict(one) for one in rows.metadata],
        )

    async def index(self) -> None:
        """It is built with each write."""

    async def upsert(self, rows: Records) -> None:
        await self.write(rows)

    async def search(
        self, query: npt.NDArray[np.float32], k: int, *, site: str | None = None, year: int | None = None
    ) -> list[str]:
        where: dict[str, Any] | None = None
        if site is not None:
            where = {"site": site}
        elif year is not None:
            where = {"year": {"$gte": year}}
        found = self._collection.query(query_embeddings=[query], n_results=k, where=where, include=["distances"])
        return found["ids"][0]

    async def read_out(self) -> int:
        ids = self._collection.get(include=[])["ids"]
        count = 0
        for start in range(0, len(ids), PAGE):
            rows = self._collection.get(ids=ids[start : start + PAGE], include=["documents", "metadatas", "embeddings"])
            count += len(np.asarray(rows["embeddings"], np.float32).reshape(-1, DIMENSIONS))
        return count
