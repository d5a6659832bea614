"""A collection of Milvus, to be made by a copy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np

from whimbrel.errors import BadInput, Conflict, RowRefused
from whimbrel.stores.envelope import Dialect
from whimbrel.stores.foreign.base import MARK, MORE, Chosen, Id, IdKind, Limits, Mark, Rows, Sink, Table
from whimbrel.stores.foreign.milvus import READ_ROWS, MilvusDatabase, MilvusSource
from whimbrel.stores.foreign.milvus_collections import Made
from whimbrel.stores.foreign.milvus_layout import NO_TEXT, TEXT_REST, TO, Layout
from whimbrel.stores.foreign.values import as_text, dumps
from whimbrel.stores.milvus import rows as ours
from whimbrel.stores.milvus.backend import MAX_LENGTH
from whimbrel.stores.milvus.where import PLAIN

NAMES = ("id", "vector", "text")


class MilvusSink(Sink):
    limits = Limits(rows=1_000, bytes=8 << 20, needs_metric=True, max_dimensions=32_768)

    def __init__(self, database: MilvusDatabase, name: str) -> None:
        self._database = database
        self._name = name
        self._layout: Layout | None = None

    async def mark(self) -> Mark | None:
        shape = await self._database.do(lambda milvus: milvus.shape(self._name))
        if shape is None:
            return None
        said = shape.said()
        mark = Mark.read(said[MARK]) if isinstance(said.get(MARK), str) else None
        if mark is None:
            raise Conflict(
                f"There is a collection {self._name!r} in {self._database.shown} already that this copy did not make. "
                "Nothing was changed.",
                "Name another collection or database for the target.",
            )
        return mark

    async def create(self, table: Table, mark: Mark) -> None:
        assert table.metric is not None, "a collection of Milvus has a metric"
        if table.dimensions < 1:
            raise BadInput(f"The collection {table.name!r} has no vectors. Nothing was copied.", "")
        key = "INT64" if table.ids is IdKind.INT else "VARCHAR"
        description = dumps({MARK: mark.written()})
        metric = TO[table.metric]
        made = Made(self._name, key, table.dimensions, metric, NAMES, [TEXT_REST, MORE], description)
        await self._database.do(lambda milvus: milvus.make(made))
        await self.open(table, mark)

    async def open(self, table: Table, mark: Mark) -> None:
        shape = await self._database.do(lambda milvus: milvus.shape(self._name))
        assert shape is not None, "neither made nor opened"
        vector = next(one for one in shape.columns if one.name == NAMES[1])
        self._layout = Layout(shape, vector, NAMES[2], mark, view=False)

    def refused(self, rows: Rows) -> Mapping[int, str]:
        finite = np.isfinite(rows.vectors).all(axis=1)
        found = {int(row): "its vector has a component that is no finite number" for row in np.flatnonzero(~finite)}
        for row, (id_, text) in enumerate(zip(rows.ids, rows.texts, strict=True)):
            try:
                if len(str(id_).encode()) > MAX_LENGTH // 2:
                    found[row] = "its id is longer than Milvus takes"
                (text or "").encode()
            except UnicodeEncodeError:
                found[row] = "its id or text is no valid Unicode"
            if isinstance(id_, int) and not -(2**63) <= id_ < 2**63:
                found[row] = "its id is beyond 64 bits"
        return found

    async def write(self, rows: Rows, *, fresh: bool) -> None:
        layout = self._known()
        written = await asyncio.to_thread(_written, layout, rows)
        await self._database.do(lambda milvus: milvus.put(layout.shape, written))

    async def delete(self, ids: Sequence[Id]) -> None:
        layout = self._known()
        keys = [layout.key_of(one) for one in ids]
        for start in range(0, len(keys), READ_ROWS):
            some = keys[start : start + READ_ROWS]
            await self._database.do(lambda milvus, some=some: milvus.delete(layout.shape, some))  # type: ignore[misc]

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        async for some in self._source().ids():
            yield some

    async def fetch(self, ids: Sequence[Id]) -> Rows:
        return (await self._source().fetch(ids)).rows

    async def finish(self) -> None:
        layout = self._known()
        await self._database.do(lambda milvus: milvus.finish(layout.shape))

    async def close(self) -> None:
        self._layout = None

    def _source(self) -> MilvusSource:
        return MilvusSource(self._database, self._name, Chosen(), self._known())

    def _known(self) -> Layout:
        assert self._layout is not None, "neither made nor opened"
        return self._layout


def _takes_key(key: str) -> bool:
    taken = (*NAMES, TEXT_REST, MORE, NO_TEXT)
    return PLAIN.fullmatch(key) is not None and len(key) <= 200 and key not in taken


DIALECT = Dialect(takes_key=_takes_key, takes_text=lambda text: len(text) <= 1_000 and "\0" not in text)


def _written(layout: Layout, rows: Rows) -> list[dict[str, Any]]:
    found = []
    for id_, vector, text, metadata in zip(rows.ids, rows.vectors.tolist(), rows.texts, rows.metadata, strict=True):
        plain = {key: value for key, value in metadata.items() if DIALECT.takes_key(key) and DIALECT.takes(value)}
        if plain and len(dumps(plain)) > ours.MAX_DYNAMIC:
            plain = {}
        odd = {key: value for key, value in metadata.items() if key not in plain}
        shown = {key: said for key, value in odd.items() if DIALECT.takes_key(key) and (said := as_text(value))}
        first, *rest = ours.pieces(text or "") or [""]
        more = ours.pieces(dumps(odd)) if odd else []
        if len(more) > 4_096 or len(rest) > 4_096:
            raise RowRefused.of(str(id_), f"The row {id_!r} is larger than Milvus takes. Rows before it are there.")
        row = {NAMES[0]: layout.key_of(id_), NAMES[1]: vector, NAMES[2]: first, TEXT_REST: rest, MORE: more}
        found.append({**shown, **plain, **row, **({NO_TEXT: True} if text is None else {})})
    return found
