"""A Chroma folder by chromadb's own client, with the same index: a folder for each side."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import chromadb
from chromadb.config import Settings

from bench.stores.chroma import Direct
from bench.stores.sides import SPACE, Database
from whimbrel.stores.chroma import ChromaStore


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[Database]:
    for name in ("ours", "direct"):
        shutil.rmtree(folder / name, ignore_errors=True)
    store = ChromaStore(f"chroma:{folder / 'ours'}", "bench", SPACE, base=folder)
    client = chromadb.PersistentClient(folder / "direct", settings=Settings(anonymized_telemetry=False))
    yield Database(store, Direct(client))
    await store.close()
    client.close()
