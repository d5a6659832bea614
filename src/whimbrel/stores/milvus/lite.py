"""Milvus Lite, opened by this process alone, by its own engine.

Not through pymilvus: that would start a server on a port of this machine which asks nobody for a key, and whose upsert
keeps the dynamic fields that a row had before. The engine is blocking: its calls run in threads.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from whimbrel.errors import Conflict, ViewDamaged
from whimbrel.stores.base import REBUILD
from whimbrel.stores.metrics import Metric, measure
from whimbrel.stores.milvus.backend import (
    ABOUT,
    EF,
    ELSEWHERE,
    FACTS,
    HNSW,
    ID,
    LOOSE,
    MAX_CAPACITY,
    MAX_LENGTH,
    METADATA,
    MORE,
    POSITION,
    ROWS,
    TEXT,
    VECTOR,
    Backend,
    Collection,
    Hit,
)
from whimbrel.stores.milvus.folder import Folder, import_lite, is_file_of_lite, lite_errors
from whimbrel.stores.milvus.where import TextFacts

T = TypeVar("T")

_CALLS = 8
"""At most at once, of one store."""
UNINDEXED_ROWS = 5_000
"""Rows in memory, which each search measures one by one, before they are written to files and indexed."""
FEW_ROWS = 250
"""That a condition lets pass, which are measured one by one: the graph leads to few of them."""
FILTERED_EF = 5_000
"""Rows that a search with a condition looks at."""
_ANY_LENGTH = 2**31 - 1


class LiteBackend(Backend):
    single_process = True
    writes_at_once = 1
    facts = TextFacts()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder: Folder | None = None
        self._opening = asyncio.Lock()
        self._turns = asyncio.Semaphore(_CALLS)

    @property
    def shown(self) -> str:
        return str(self._path)

    # --- collections -------------------------------------------------------------------------------------------------

    async def find(self, name: str) -> Collection | None:
        if self._folder is None and not await asyncio.to_thread(is_file_of_lite, self._path):
            return None  # opening it would make it

        def find(db: Any) -> Collection | None:
            return _described(db.get_collection(name)) if db.has_collection(name) else None

        return await self._do(find)

    async def create(self, name: str, dimensions: int, about: Mapping[str, Any]) -> None:
        def create(db: Any) -> None:
            if db.has_collection(name):
                raise Conflict(
                    f"There is a collection {name!r} in {self._path} already. Nothing was changed.", ELSEWHERE
                )
            made = db.create_collection(name, _schema(dimensions), properties={ABOUT: json.dumps(about)})
            made.create_partition(ABOUT)
            made.create_index(VECTOR, {"index_type": "HNSW", "metric_type": "COSINE", "params": dict(HNSW)})
            made.load()

        await self._do(create, alone=True)

    async def drop(self, name: str) -> None:
        await self._do(lambda db: db.drop_collection(name), alone=True)

    async def count(self, name: str) -> int:
        return await self._in(name, lambda found: int(found.partition_num_entities(ROWS)))

    # --- rows --------------------------------------------------------------------------------------------------------

    async def write(self, name: str, rows: Sequence[dict[str, Any]], *, more: bool) -> None:
        def write(found: Any) -> None:
            found.insert(list(rows), ROWS)  # of one key the last one counts, whole
            if not more and found.count() > UNINDEXED_ROWS:
                found.flush()

        await self._in(name, write, alone=True)

    async def delete(self, name: str, ids: Sequence[str]) -> None:
        await self._in(name, lambda found: found.delete(list(ids), ROWS), alone=True)

    async def get(self, name: str, ids: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
        return await self._in(name, lambda found: _rows(found.get(list(ids), [ROWS], output_fields=list(fields))))

    async def ids(self, name: str, where: str = "") -> list[str]:
        def ids(found: Any) -> list[str]:
            return [row[ID] for row in found.query(where or None, [ID], [ROWS])]

        return await self._in(name, ids)

    async def scan(self, name: str, page: int) -> AsyncIterator[list[dict[str, Any]]]:
        every = await self.ids(name)
        for start in range(0, len(every), page):
            rows = await self.get(name, every[start : start + page], ["*"])
            if rows:
                yield rows

    async def search(
        self, name: str, vector: npt.NDArray[np.float32], k: int, where: str, fields: Sequence[str]
    ) -> list[Hit]:
        def search(found: Any) -> list[Hit]:
            if where and "$meta" not in where:  # which takes as long again as the search
                few = found.query(where, [ID, VECTOR, *fields], [ROWS], limit=FEW_ROWS + 1)
                if len(few) <= FEW_ROWS:
                    return _measured(few, vector, k)
            (hits,) = found.search(
                [vector],
                k,
                "COSINE",
                [ROWS],
                where or None,
                output_fields=list(fields),
                search_params={"ef": max(FILTERED_EF if where else EF, k)},
            )
            return [Hit(hit["id"], hit["distance"], hit["entity"]) for hit in hits]

        return await self._in(name, search)

    # --- position ----------------------------------------------------------------------------------------------------

    async def read_position(self, name: str) -> str | None:
        rows = await self._in(name, lambda found: found.get([POSITION], [ABOUT], output_fields=[TEXT]))
        return str(rows[0][TEXT]) if rows else None

    async def write_position(self, name: str, dimensions: int, said: str, *, wait: bool) -> None:
        vector = [1.0, *[0.0] * (dimensions - 1)]
        row = {ID: POSITION, VECTOR: vector, TEXT: said, MORE: [], METADATA: [], FACTS: "", LOOSE: False}
        await self._in(name, lambda found: found.insert([row], ABOUT), alone=True)

    # --- upkeep ------------------------------------------------------------------------------------------------------

    async def settle(self, name: str, *, wait: bool) -> None:
        def settle(found: Any) -> None:
            if wait or found.count() > UNINDEXED_ROWS // 10:
                found.flush()

        await self._in(name, settle, alone=True)

    async def erase(self, name: str) -> None:
        """Milvus Lite has no call for it: files that hold deleted rows are merged when there are enough of them."""
        await self._in(name, lambda found: found.flush(), alone=True)

    async def close(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(folder.release)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _in(self, name: str, work: Callable[[Any], T], *, alone: bool = False) -> T:
        def within(db: Any) -> T:
            if not db.has_collection(name):
                raise ViewDamaged(f"There is no collection {name!r} in {self._path}.", REBUILD)
            found = db.get_collection(name)
            found.load()
            return work(found)

        return await self._do(within, alone=alone)

    async def _do(self, work: Callable[[Any], T], *, alone: bool = False) -> T:
        folder = await self._opened()

        def call() -> T:
            with folder.alone() if alone else folder.together() as db, lite_errors(folder.path):
                return work(db)

        async with self._turns:
            return await asyncio.to_thread(call)

    async def _opened(self) -> Folder:
        if self._folder is None:
            async with self._opening:
                if self._folder is None:
                    self._folder = await asyncio.to_thread(Folder.take, self._path)
        return self._folder


def _schema(dimensions: int) -> Any:
    lite = import_lite()
    kinds, field = lite.DataType, lite.FieldSchema
    pieces = {"element_type": kinds.VARCHAR, "max_length": MAX_LENGTH, "max_capacity": MAX_CAPACITY}
    return lite.CollectionSchema(
        [
            field(ID, kinds.VARCHAR, is_primary=True, max_length=MAX_LENGTH),
            field(VECTOR, kinds.FLOAT_VECTOR, dim=dimensions),
            field(TEXT, kinds.VARCHAR, max_length=MAX_LENGTH),
            field(MORE, kinds.ARRAY, **pieces),
            field(METADATA, kinds.ARRAY, **pieces),
            field(FACTS, kinds.VARCHAR, max_length=_ANY_LENGTH),
            field(LOOSE, kinds.BOOL),
        ],
        enable_dynamic_field=True,
    )


def _described(found: Any) -> Collection:
    index = found.get_index_info(VECTOR) or {}
    dimensions = next((one.dim for one in found.schema.fields if one.name == VECTOR), None)
    about = json.loads(found.schema.properties.get(ABOUT) or "{}")
    return Collection(found.name, str(index.get("metric_type") or ""), dimensions, about)


def _measured(rows: Sequence[Mapping[str, Any]], vector: npt.NDArray[np.float32], k: int) -> list[Hit]:
    if not rows:
        return []
    similar = measure(Metric.COSINE, np.asarray([row[VECTOR] for row in rows], np.float32), vector)
    best = np.argsort(-similar, kind="stable")[:k]
    return [Hit(rows[row][ID], float(similar[row]), rows[row]) for row in best]


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(("$", "_"))} for row in rows]
