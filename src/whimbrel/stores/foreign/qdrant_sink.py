"""Making a collection of Qdrant out of rows of another database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from whimbrel.errors import BadInput, Conflict, StoreUnsupported
from whimbrel.stores.foreign.base import MARK, Chosen, Id, IdKind, Limits, Mark, Rows, Sink, Table
from whimbrel.stores.foreign.qdrant_points import TEXT_KEY, TOLERANCE, config_of, point_of, write_rows
from whimbrel.stores.foreign.qdrant_reading import ServerReader
from whimbrel.stores.metrics import Metric
from whimbrel.stores.qdrant import indexes
from whimbrel.stores.qdrant import rows as view_rows
from whimbrel.stores.qdrant.backend import SAYS_METADATA, Backend
from whimbrel.stores.qdrant.payload import is_exact
from whimbrel.stores.qdrant.rules import MAX_DIMENSIONS, MAX_REQUEST_BYTES, check_name, point_id

_JSON = 3.5
"""Bytes of JSON for each of a vector, at most."""


class QdrantSink(Sink):
    limits = Limits(rows=1_000, bytes=6 << 20, needs_metric=True, max_dimensions=MAX_DIMENSIONS, several=True)

    def __init__(self, backend: Backend, name: str) -> None:
        self._backend = backend
        self._reader = ServerReader(backend)
        self._name = name
        self._table: Table | None = None
        self._kind = IdKind.STR

    async def mark(self) -> Mark | None:
        check_name(self._name)
        config = await self._reader.config(self._name)
        if config is None:
            return None
        mark = Mark.read(config.metadata.get(MARK))
        if mark is None:
            raise Conflict(
                f"There is a collection {self._name!r} in Qdrant at {self._backend.shown} already that this "
                "copy did not make. Nothing was changed.",
                "Name another collection or database for the target.",
            )
        return mark

    async def create(self, table: Table, mark: Mark) -> None:
        from qdrant_client import models

        if await self._backend.version() < SAYS_METADATA:
            raise StoreUnsupported(
                f"The Qdrant server at {self._backend.shown} is older than 1.16, whose collections say who made them. "
                "Nothing was copied.",
                "Update the server.",
            )
        large = [name for name, one in table.vectors.items() if one.dimensions > MAX_DIMENSIONS]
        if large:
            raise BadInput(f"The vector {large[0]!r} has more than {MAX_DIMENSIONS:,} dimensions. Nothing was copied.")
        self._know(table, mark)
        vectors, sparse = config_of(table)
        about = {key: value for key, value in table.about.items() if isinstance(value, str | bool) or _number(value)}
        said = {**about, MARK: mark.written(), TEXT_KEY: table.names.text}
        await self._backend.do(
            lambda client: client.create_collection(
                self._name,
                vectors_config=vectors,
                sparse_vectors_config=sparse or None,
                metadata=said,
                **(
                    {}
                    if self._backend.single_process
                    else {"optimizers_config": models.OptimizersConfigDiff(indexing_threshold=0)}
                ),
            )
        )

    async def open(self, table: Table, mark: Mark) -> None:
        config = await self._reader.config(self._name)
        text = config.metadata.get(TEXT_KEY) if config is not None else None
        self._know(replace(table, names=replace(table.names, text=str(text or table.names.text))), mark)

    def refused(self, rows: Rows) -> Mapping[int, str]:
        finite = np.isfinite(rows.vectors).all(axis=1)
        found = {int(row): "its vector has a component that is no finite number" for row in np.flatnonzero(~finite)}
        for name, values in rows.more.items():
            for row, vector in enumerate(values):
                part = vector[1] if isinstance(vector, tuple) else vector
                if part is not None and not np.isfinite(part).all():
                    found[row] = f"its vector {name!r} has a component that is no finite number"
        for row, (id_, text) in enumerate(zip(rows.ids, rows.texts, strict=True)):
            if not _is_utf8(str(id_)) or not _is_utf8(text or ""):
                found[row] = "its id or text is no valid Unicode"
            elif self._kind is IdKind.INT:
                try:
                    point_id(id_)
                except ValueError as error:
                    found[row] = f"its id is none that Qdrant takes: {error}"
        return found

    async def write(self, rows: Rows, *, fresh: bool) -> None:
        from qdrant_client import models

        table = self._known()
        points = [models.PointStruct(**_as_point(one, table)) for one in write_rows(rows, table, self._kind)]
        if self._backend.single_process:
            self._check_size(rows)
        await self._backend.do(lambda client: client.upsert(self._name, points=points, wait=True))

    async def delete(self, ids: Sequence[Id]) -> None:
        points = [point_of(self._kind, id_, native=False) for id_ in ids]
        await view_rows.delete(self._backend, self._name, points)

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        async for some in self._source().ids():
            yield some

    async def fetch(self, ids: Sequence[Id]) -> Rows:
        found: Rows = (await self._source().fetch(ids)).rows
        return found

    def tolerance(self, table: Table) -> float:
        metrics = {table.metric, *(one.metric for one in table.vectors.values())}
        return TOLERANCE if Metric.COSINE in metrics else 0.0

    async def finish(self) -> None:
        """The index, which a server was told to leave until now."""
        if self._backend.single_process:
            return
        if await indexes.threshold(self._backend, self._name) == 0:
            await indexes.set_threshold(self._backend, self._name, None)
        await indexes.ready(self._backend, self._name)

    async def close(self) -> None:
        self._table = None

    # --- inside ------------------------------------------------------------------------------------------------------

    def _know(self, table: Table, mark: Mark) -> None:
        self._table, self._kind = table, mark.ids

    def _known(self) -> Table:
        assert self._table is not None, "neither made nor opened"
        return self._table

    def _check_size(self, rows: Rows) -> None:
        """A server takes so many bytes; local mode is held to it."""
        from whimbrel.stores.batches import Refused
        from whimbrel.stores.foreign.values import contents, sizes_of_more

        more = sizes_of_more(rows) if rows.more else [0] * len(rows)
        vectors = 4 * rows.vectors.shape[1]
        size = sum(len(one) + _JSON * (extra + vectors) for one, extra in zip(contents(rows), more, strict=True))
        if size > MAX_REQUEST_BYTES:
            raise Refused("a Qdrant server takes no request of more than 32 MiB")

    def _source(self) -> Any:
        from whimbrel.stores.foreign.qdrant import QdrantSource

        return QdrantSource(self._reader, self._backend, self._name, Chosen())


def _as_point(said: dict[str, Any], table: Table) -> dict[str, Any]:
    from qdrant_client import models

    vector = {
        name: models.SparseVector(**one) if isinstance(one, dict) else one for name, one in said["vector"].items()
    }
    alone = set(vector) == {""} and not table.vectors
    return {**said, "vector": vector[""] if alone else vector}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and is_exact(value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
