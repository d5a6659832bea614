"""LanceDB: each table of a folder, or of a place on object storage.

A source is read at one version, which later commits do not change; rows are found by their place in it.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from whimbrel.errors import BadInput, Conflict, NotFound
from whimbrel.stores.foreign.absent import absent
from whimbrel.stores.foreign.arrow import Columns, Form, dimensions_of, schema_fingerprint
from whimbrel.stores.foreign.base import MARK, Chosen, Database, Fetched, Id, Limits, Mark, Rows, Sink, Source, Table
from whimbrel.stores.lancedb.library import checked, connect, lance_errors
from whimbrel.stores.metrics import Metric, scores

if TYPE_CHECKING:
    from lancedb.db import AsyncConnection
    from lancedb.table import AsyncTable

_SAMPLE_ROWS = 200
_READ_ROWS = 5_000
_CANDIDATES = 100
"""Rows whose vectors are compared as they are, where an index holds shortened ones."""
_METRICS = {"cosine": Metric.COSINE, "l2": Metric.L2, "dot": Metric.DOT}


class LanceFolder(Database):
    def __init__(self, folder: Path | str) -> None:
        self._folder = folder
        self._connection: AsyncConnection | None = None
        self.shown = f"LanceDB in {folder}"

    async def collections(self) -> Sequence[str]:
        if isinstance(self._folder, Path) and not self._folder.is_dir():
            raise NotFound(f"There is no folder {self._folder}.", "Check the path after `lancedb:`.")
        with lance_errors(f"{self.shown} cannot be read"):
            connection = await self.connection()
            with warnings.catch_warnings():  # its successor answers with a class of the client that is not imported
                warnings.simplefilter("ignore", DeprecationWarning)
                names: list[str] = []
                while page := list(await connection.table_names(start_after=names[-1] if names else None, limit=1_000)):
                    names += page
        return sorted(names)

    def source(self, name: str, chosen: Chosen) -> Source:
        return LanceSource(self, name, chosen)

    def sink(self, name: str) -> Sink:
        return LanceSink(self, name)

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()  # type: ignore[no-untyped-call]
            self._connection = None

    async def connection(self) -> AsyncConnection:
        self._connection = self._connection or await connect(self._folder)
        return self._connection

    async def open(self, name: str) -> AsyncTable | None:
        """None where there is no such table. Makes no folder."""
        if isinstance(self._folder, Path):
            versions = self._folder / f"{name}.lance" / "_versions"
            if not versions.is_dir() or not any(versions.iterdir()):
                return None
        with lance_errors(f"Table {name!r} in {self._folder} cannot be opened"):
            connection = await self.connection()
            try:
                return await connection.open_table(name)
            except ValueError as error:
                if "was not found" in str(error):
                    return None
                raise


class LanceSource(Source):
    def __init__(self, folder: LanceFolder, name: str, chosen: Chosen) -> None:
        self._folder = folder
        self._name = name
        self._chosen = chosen
        self._table: AsyncTable | None = None
        self._latest: AsyncTable | None = None
        """As others have left it; for searching."""
        self._columns: Columns | None = None
        self._dimensions = 0
        self._metric = Metric.COSINE

    async def describe(self) -> Table:
        table = await self._open()
        where = f"Table {self._name!r} in {self._folder.shown}"
        with lance_errors(f"{where} cannot be read"):
            schema = await table.schema()
            columns = Columns.of(schema, self._chosen, where)
            dimensions = columns.dimensions
            if not dimensions and columns.vector:
                sample = await table.query().select([columns.vector]).limit(_SAMPLE_ROWS).to_arrow()
                dimensions = dimensions_of(sample[columns.vector])
            metric = self._chosen.metric or (
                Metric.COSINE
                if columns.view
                else await _metric(table, columns.vector, where)
                if columns.vector
                else None
            )
            uri, version = await table.uri(), await table.version()
        self._columns, self._dimensions, self._metric = columns, dimensions, metric or Metric.COSINE
        identity = f"{uri} {schema_fingerprint(schema)}"
        return columns.table(self._name, dimensions, identity, str(version), metric)

    async def version(self) -> str | None:
        latest = await self._folder.open(self._name)
        if latest is None:
            raise NotFound(f"There is no table {self._name!r} in {self._folder.shown} any more.")
        try:
            return str(await latest.version())
        finally:
            latest.close()  # type: ignore[no-untyped-call]

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        table, columns = await self._open(), await self._known()
        what = f"Table {self._name!r} cannot be read"
        with lance_errors(what):
            stream = await table.query().select([columns.id]).to_batches(max_batch_length=50_000)
        async for batch in checked(what, stream):
            if batch.num_rows:
                yield columns.ids_of(pa.Table.from_batches([batch])[columns.id])

    async def fetch(self, ids: Sequence[Id], places: Sequence[int] | None = None) -> Fetched:
        table, columns = await self._open(), await self._known()
        with lance_errors(f"Table {self._name!r} cannot be read"):
            if places is not None:
                found = await table.take_offsets(list(places)).to_arrow()
            else:
                found = await table.query().where(ids_in(columns.id, ids)).to_arrow()
        return columns.rows(found, self._dimensions)

    async def nearest(
        self, vector: npt.NDArray[np.float32], k: int, among: Sequence[Id] | None = None
    ) -> Sequence[tuple[Id, float]]:
        """In the latest version: one that was read may have been cleaned away by the program that writes it."""
        columns = await self._known()
        if k <= 0 or (among is not None and not among):
            return []
        with lance_errors(f"Table {self._name!r} cannot be searched"):
            if self._latest is None:
                self._latest = await self._folder.open(self._name)
            if self._latest is None:
                raise NotFound(f"There is no table {self._name!r} in {self._folder.shown} any more.")
            query = self._latest.query().nearest_to(vector).column(columns.vector).distance_type(self._metric.value)
            query = query.limit(k).refine_factor(max(2, -(-_CANDIDATES // k)))
            if among is not None:
                query = query.where(ids_in(columns.id, among))
            found = await query.select([columns.id, "_distance"]).to_arrow()
        distances = np.asarray(found["_distance"].to_numpy(), np.float64)
        measured = np.sqrt(np.maximum(distances, 0.0)) if self._metric is Metric.L2 else 1.0 - distances
        return list(
            zip(
                columns.ids_of(found[columns.id]),
                scores(self._metric, measured, normalised=self.normalised).tolist(),
                strict=True,
            )
        )

    async def close(self) -> None:
        for table in (self._table, self._latest):
            if table is not None:
                table.close()  # type: ignore[no-untyped-call]
        self._table = self._latest = None

    async def _open(self) -> AsyncTable:
        if self._table is None:
            table = await self._folder.open(self._name)
            if table is None:
                raise absent("table", self._name, self._folder.shown, await self._folder.collections())
            with lance_errors(f"Table {self._name!r} cannot be read"):
                await table.checkout(await table.version())  # commits that come later do not move its rows
            self._table = table
        return self._table

    async def _known(self) -> Columns:
        if self._columns is None:
            await self.describe()
        assert self._columns is not None
        return self._columns


class LanceSink(Sink):
    limits = Limits(rows=5_000, bytes=16 << 20, several=True)

    def __init__(self, folder: LanceFolder, name: str) -> None:
        self._folder = folder
        self._name = name
        self._table: AsyncTable | None = None
        self._form: Form | None = None
        self._made: Mark | None = None

    async def mark(self) -> Mark | None:
        table = await self._folder.open(self._name)
        if table is None:
            return None
        mark = Mark.read(((await table.schema()).metadata or {}).get(MARK.encode()))
        if mark is None:
            raise self._taken()
        self._table = table
        return mark

    async def create(self, table: Table, mark: Mark) -> None:
        self._form, self._made = Form.of(table), mark
        with lance_errors(f"Table {self._name!r} could not be made in {self._folder.shown}"):
            connection = await self._folder.connection()
            try:
                self._table = await connection.create_table(self._name, schema=self._form.schema(mark))
            except ValueError as error:
                if "already exists" in str(error):
                    raise self._taken() from error
                if "name" in str(error).lower():
                    raise BadInput(
                        f"LanceDB does not take {self._name!r} as the name of a table. Nothing was written.",
                        "Names have letters, digits, `_`, `-` and `.`.",
                    ) from error
                raise

    async def open(self, table: Table, mark: Mark) -> None:
        with lance_errors(self._cannot("read")):
            self._form, self._made = Form.read(await self._opened().schema(), table), mark

    def refused(self, rows: Rows) -> Mapping[int, str]:
        return self._known().refused(rows)

    async def write(self, rows: Rows, *, fresh: bool) -> None:
        table, form, made = self._opened(), self._known(), self._made
        assert made is not None
        with lance_errors(self._cannot("written")):
            batch = form.table(rows, made)
            if fresh:
                await table.add(batch)
            else:
                merge = table.merge_insert(form.names.id).when_matched_update_all().when_not_matched_insert_all()
                await merge.execute(batch)

    async def delete(self, ids: Sequence[Id]) -> None:
        with lance_errors(self._cannot("written")):
            await self._opened().delete(ids_in(self._known().names.id, ids))

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        source = self._source()
        try:
            async for some in source.ids():
                yield some
        finally:
            await source.close()

    async def fetch(self, ids: Sequence[Id]) -> Rows:
        source = self._source()
        try:
            return (await source.fetch(ids)).rows
        finally:
            await source.close()

    async def finish(self) -> None:
        """Nothing: LanceDB searches without an index, and takes the metric with the query."""

    async def close(self) -> None:
        if self._table is not None:
            self._table.close()  # type: ignore[no-untyped-call]
            self._table = None

    def _source(self) -> LanceSource:
        names = self._known().names
        return LanceSource(self._folder, self._name, Chosen(id=names.id))

    def _opened(self) -> AsyncTable:
        assert self._table is not None, "neither made nor opened"
        return self._table

    def _known(self) -> Form:
        assert self._form is not None, "neither made nor opened"
        return self._form

    def _taken(self) -> Conflict:
        return Conflict(
            f"There is a table {self._name!r} in {self._folder.shown} already that this copy did not make. Nothing "
            "was changed.",
            "Name another collection or folder for the target.",
        )

    def _cannot(self, done: str) -> str:
        return f"Table {self._name!r} in {self._folder.shown} cannot be {done}"


def ids_in(column: str, ids: Sequence[Id]) -> str:
    """A condition in SQL; every id is escaped."""
    literals = (str(id_) if isinstance(id_, int) else "'" + _text(id_).replace("'", "''") + "'" for id_ in ids)
    return f"`{column}` IN ({', '.join(literals)})" if ids else "false"


def _text(id_: str | UUID) -> str:
    return str(id_)


async def _metric(table: AsyncTable, column: str, where: str) -> Metric | None:
    """Of the column's indexes. Raises `BadInput` where they differ."""
    found = set()
    for index in await table.list_indices():
        if index.columns == [column]:
            stats = await table.index_stats(index.name)
            if stats is not None and stats.distance_type in _METRICS:
                found.add(_METRICS[stats.distance_type])
    if len(found) > 1:
        raise BadInput(f"{where} has indexes of several metrics.", "Name the one to copy: `--metric`.")
    return found.pop() if found else None


def opener(rest: str, base: Path, **_: Any) -> LanceFolder:
    return LanceFolder(rest if "://" in rest else base / Path(rest or "views").expanduser())
