"""A Chroma server by chromadb's own async client, with the same index: one real `chroma run` for both sides."""

from __future__ import annotations

import asyncio
import inspect
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import chromadb
import httpx
import numpy as np
import numpy.typing as npt
from chromadb.config import Settings

from bench.stores.rows import DIMENSIONS
from bench.stores.sides import SPACE, Database, Side
from whimbrel.stores.base import DENSE, Records
from whimbrel.stores.chroma import ChromaStore
from whimbrel.stores.chroma.backend import HNSW

PAGE = 2_000
"""Rows of a read."""


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[Database]:
    with server(folder) as port:
        store = ChromaStore(f"chroma+http://127.0.0.1:{port}", "bench", SPACE, base=folder)
        client = await connected(port)
        for name in ("bench", "direct"):
            with suppress(chromadb.errors.NotFoundError):
                await client.delete_collection(name)
        yield Database(store, Direct(client))
        await store.close()


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """A `chroma run` on a folder; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    code = "import sys; from chromadb.cli.cli import app; sys.exit(app())"
    command = [sys.executable, "-c", code, "run", "--path", str(folder), "--port", str(port), "--host", "127.0.0.1"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        running.terminate()
        running.wait()


async def connected(port: int) -> Any:
    deadline = time.monotonic() + 60
    while True:
        try:
            return await chromadb.AsyncHttpClient("127.0.0.1", port, settings=Settings(anonymized_telemetry=False))
        except (httpx.HTTPError, ValueError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


class Direct(Side):
    """By its rules: the largest batches that it takes; read by a list of ids, as offsets shift. A client of a folder is
    called without a thread between, as a program of one task does."""

    def __init__(self, client: Any) -> None:
        """`client`: an async one of a server, or one of a folder."""
        self._client = client

    async def create(self) -> None:
        self._collection = await _answer(
            self._client.create_collection("direct", configuration={"hnsw": dict(HNSW)}, embedding_function=None)
        )

    async def write(self, rows: Records) -> None:
        await _answer(
            self._collection.upsert(
                ids=list(rows.ids),
                embeddings=rows.vectors[DENSE],
                documents=list(rows.texts),
                metadatas=[dict(one) for one in rows.metadata],
            )
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
        found = await _answer(
            self._collection.query(query_embeddings=[query], n_results=k, where=where, include=["distances"])
        )
        ids: list[str] = found["ids"][0]
        return ids

    async def read_out(self) -> int:
        ids = (await _answer(self._collection.get(include=[])))["ids"]
        count = 0
        for start in range(0, len(ids), PAGE):
            rows = await _answer(
                self._collection.get(ids=ids[start : start + PAGE], include=["documents", "metadatas", "embeddings"])
            )
            count += len(np.asarray(rows["embeddings"], np.float32).reshape(-1, DIMENSIONS))
        return count


async def _answer(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given
