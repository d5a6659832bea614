"""LanceDB by its own async client: Arrow tables with typed columns, IVF_RQ, merge-insert; two folders."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench.stores.rows import DIMENSIONS
from bench.stores.sides import SPACE, Database, Side
from whimbrel.stores.base import DENSE, Records
from whimbrel.stores.lancedb import LanceStore
from whimbrel.stores.lancedb.store import CANDIDATES, PROBES

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("vector", pa.list_(pa.float32(), DIMENSIONS)),
        ("site", pa.string()),
        ("year", pa.int64()),
        ("title", pa.string()),
        ("draft", pa.bool_()),
        ("weight", pa.float64()),
    ]
)


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[Database]:
    store = LanceStore(folder / "ours", "bench", SPACE)
    await store.drop()
    yield Database(store, Direct(folder / "direct"))
    await store.drop()
    await store.close()


class Direct(Side):
    """Handles that see each commit at once, as ours do: a search pays for the look, on both sides."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def create(self) -> None:
        connection = await lancedb.connect_async(self._folder, read_consistency_interval=timedelta(0))
        self._table = await connection.create_table("direct", schema=_SCHEMA, mode="overwrite")

    async def write(self, rows: Records) -> None:
        await self._table.add(_arrow(rows))

    async def index(self) -> None:
        bits = min(8, -(-1_536 // DIMENSIONS))
        await self._table.optimize()
        await self._table.create_index("id", config=lancedb.index.BTree())
        await self._table.create_index("vector", config=lancedb.index.IvfRq(distance_type="cosine", num_bits=bits))

    async def upsert(self, rows: Records) -> None:
        merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        await merge.execute(_arrow(rows))

    async def search(
        self, query: npt.NDArray[np.float32], k: int, *, site: str | None = None, year: int | None = None
    ) -> list[str]:
        asked = self._table.query().nearest_to(query).column("vector").distance_type("cosine").limit(k)
        asked = asked.refine_factor(max(2, math.ceil(CANDIDATES / k))).nprobes(PROBES)
        conditions = [] if site is None else [f"site = '{site}'"]
        conditions += [] if year is None else [f"year >= {year}"]
        if conditions:
            asked = asked.where(" AND ".join(conditions))
        found: list[str] = (await asked.select(["id", "_distance"]).to_arrow())["id"].to_pylist()
        return found

    async def read_out(self) -> int:
        """Arrow arrays, as LanceDB gives them; the vectors as one of NumPy."""
        count = 0
        async for batch in await self._table.query().to_batches(max_batch_length=5_000):
            columns: list[Any] = [batch[name] for name in _SCHEMA.names if name != "vector"]
            vectors = batch["vector"].flatten().to_numpy().reshape(-1, DIMENSIONS)
            assert all(len(column) == len(vectors) for column in columns)
            count += len(vectors)
        return count


def _arrow(rows: Records) -> pa.Table:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors[DENSE].reshape(-1)), DIMENSIONS)
    columns = {"id": rows.ids, "text": rows.texts, "vector": vectors}
    columns |= {name: [about[name] for about in rows.metadata] for name in _SCHEMA.names if name not in columns}
    return pa.table(columns, schema=_SCHEMA)
