"""A collection of Chroma, to be made by a copy."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np

from whimbrel.errors import Conflict, DiskFull, ViewDamaged
from whimbrel.stores.chroma.backend import Collection
from whimbrel.stores.chroma.rows import get
from whimbrel.stores.foreign.base import MARK, Id, IdKind, Limits, Mark, Rows, Sink, Table
from whimbrel.stores.foreign.chroma import ChromaDatabase, ChromaSource
from whimbrel.stores.foreign.chroma_backends import Whole
from whimbrel.stores.foreign.chroma_rows import TO, is_utf8, key_of, sayable, write_metadata
from whimbrel.stores.metrics import Metric

TOLERANCE = 1e-6
"""Of a vector under the metric cosine: Chroma keeps its direction and its length apart, and multiplies them again."""

_ROOM = 4 << 20


class ChromaSink(Sink):
    def __init__(self, database: ChromaDatabase, name: str) -> None:
        self._database = database
        self._backend = database.backend
        self._name = name
        self._collection: Collection | None = None
        self._kind = IdKind.STR
        self.limits = Limits(rows=1_000, bytes=8 << 20, needs_metric=True)

    async def mark(self) -> Mark | None:
        found = await self._backend.find(self._name)
        if found is None:
            return None
        mark = Mark.read(found.metadata.get(MARK))
        if mark is None:
            raise Conflict(
                f"There is a collection {self._name!r} in {self._database.shown} already that this copy did not make. "
                "Nothing was changed.",
                "Name another collection or database for the target.",
            )
        self._collection = found
        return mark

    async def create(self, table: Table, mark: Mark) -> None:
        assert table.metric is not None, "a collection of Chroma has a metric"
        about = {key: value for key, value in table.about.items() if sayable(key, value)}
        self._collection = await self._backend.make(self._name, TO[table.metric], {**about, MARK: mark.written()})
        self._kind = mark.ids

    async def open(self, table: Table, mark: Mark) -> None:
        self._kind = mark.ids

    def refused(self, rows: Rows) -> Mapping[int, str]:
        finite = np.isfinite(rows.vectors).all(axis=1)
        found = {int(row): "its vector has a component that is no finite number" for row in np.flatnonzero(~finite)}
        for row, (id_, text) in enumerate(zip(rows.ids, rows.texts, strict=True)):
            if not is_utf8(str(id_)) or not is_utf8(text or ""):
                found[row] = "its id or text is no valid Unicode"
        return found

    async def write(self, rows: Rows, *, fresh: bool) -> None:
        collection = self._known()
        ids = [key_of(self._kind, id_) for id_ in rows.ids]
        written = [write_metadata(one) for one in rows.metadata]
        if not fresh:  # keys that a row had before would stay
            await self._backend.delete(collection, ids)
        most = await self._backend.max_rows()
        for start in range(0, len(ids), most):
            end = start + most
            part = Whole(
                ids[start:end],
                rows.texts[start:end],
                [one or None for one, _ in written[start:end]],
                [uri for _, uri in written[start:end]],
                rows.vectors[start:end],
            )
            try:
                await self._backend.put(collection, part)
                await self._remove_stale_keys(collection, part)
            except ViewDamaged as error:  # what Chroma says does not name a full disk
                if self._database.folder is not None and shutil.disk_usage(self._database.folder).free < _ROOM:
                    raise DiskFull(
                        f"No space left for {self._database.shown}. What was written before is safe.",
                        "Free some space.",
                    ) from error
                raise

    async def delete(self, ids: Sequence[Id]) -> None:
        await self._backend.delete(self._known(), [key_of(self._kind, id_) for id_ in ids])

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        async for some in self._source().ids():
            yield some

    async def fetch(self, ids: Sequence[Id]) -> Rows:
        return (await self._source().fetch(ids)).rows

    def tolerance(self, table: Table) -> float:
        return TOLERANCE if table.metric is Metric.COSINE else 0.0

    async def close(self) -> None:
        self._collection = None

    async def _remove_stale_keys(self, collection: Collection, rows: Whole) -> None:
        """Arrays that a collection which was dropped has left behind turn up at new rows (chroma-core/chroma issue
        7594)."""
        there = await get(self._backend, collection, ids=rows.ids, include=["metadatas"])
        number = {id_: row for row, id_ in enumerate(rows.ids)}
        mended: dict[int, dict[str, Any]] = {}
        for id_, stored in zip(there.ids, there.metadata, strict=True):
            wanted = rows.metadata[number[id_]] or {}
            if stale := [key for key in stored or {} if key not in wanted]:
                mended[number[id_]] = {**wanted, **dict.fromkeys(stale)}
        if mended:
            places = list(mended)
            some = Whole(
                [rows.ids[row] for row in places],
                [rows.texts[row] for row in places],
                list(mended.values()),
                [rows.uris[row] for row in places],
                rows.vectors[places],
            )
            await self._backend.put(collection, some)

    def _source(self) -> ChromaSource:
        return ChromaSource(self._database, self._name)

    def _known(self) -> Collection:
        assert self._collection is not None, "neither made nor opened"
        return self._collection
