"""Milvus Lite by pymilvus, with the same index: a file for each side. pymilvus starts a server for its own."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pymilvus

from bench.stores.milvus import Direct
from bench.stores.sides import SPACE, Database
from whimbrel.stores.milvus import MilvusStore


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[Database]:
    for name in ("ours.db", "direct.db"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    store = MilvusStore(f"milvus:{folder / 'ours.db'}", "bench", SPACE, base=folder)
    client = pymilvus.MilvusClient(str(folder / "direct.db"))
    yield Database(store, Direct(client, server=False))
    await store.close()
    client.close()
