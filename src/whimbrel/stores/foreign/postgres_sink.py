"""A table of Postgres with pgvector, as a program would make it by hand.

| column | type |
|---|---|
| `id` | `text`, `bigint` or `uuid`, the primary key |
| `text` | `text`; not there where the source has none |
| `vector` | `vector(d)`, with an HNSW index of the source's metric up to 2,000 dimensions, as `halfvec` up to 4,000 |
| each column that the source declares | its own type, or the nearest |
| `metadata` | `jsonb`: all metadata of a source without declared columns |
| `whimbrel_more` | what the columns before cannot say; null in most rows |
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.json import Jsonb

from whimbrel.errors import BadInput, Conflict
from whimbrel.stores.foreign.base import MORE, Chosen, Id, IdKind, Limits, Mark, Rows, Sink, Table
from whimbrel.stores.foreign.pg_types import base_type, fits, is_text, keeps, sql_type
from whimbrel.stores.foreign.postgres import COPY_MARK, PostgresDatabase, PostgresSource
from whimbrel.stores.foreign.values import as_text, dumps
from whimbrel.stores.metrics import Metric
from whimbrel.stores.postgres.pool import Link, VectorBytes
from whimbrel.stores.postgres.rows import pack_vector
from whimbrel.stores.postgres.table import (
    MAX_DIMENSIONS,
    MAX_HALF_DIMENSIONS,
    MAX_HNSW_DIMENSIONS,
    make_extension,
    quoted,
)

_ID_TYPES = {IdKind.STR: 'text COLLATE "C"', IdKind.INT: "bigint", IdKind.UUID: "uuid"}
_OPERATORS = {Metric.COSINE: "cosine", Metric.L2: "l2", Metric.DOT: "ip"}
_FIXED = ("id", "text", "vector", MORE)
_MAX_NAME_BYTES = 63
_MAX_COLUMNS = 1_000
_INDEX_MEMORY = "256MB"


class PostgresSink(Sink):
    limits = Limits(rows=5_000, bytes=16 << 20, max_dimensions=MAX_DIMENSIONS)

    def __init__(self, database: PostgresDatabase, name: str) -> None:
        self._database = database
        self._name = name
        self._table: Table | None = None
        self._columns: dict[str, str] = {}
        """Types of the columns of metadata, by name; `metadata` alone where the source declares none."""
        self._typed = False

    async def mark(self) -> Mark | None:
        async with self._database.reading(self._cannot("read")) as link:
            found = await link.fetch(
                "SELECT coalesce(obj_description(c.oid, 'pg_class'), '') FROM pg_class c JOIN pg_namespace n "
                "ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
                [self._database.address.schema, self._name],
            )
        if not found:
            return None
        mark = Mark.read(found[0][0].removeprefix(COPY_MARK)) if found[0][0].startswith(COPY_MARK) else None
        if mark is None:
            raise self._taken()
        return mark

    async def create(self, table: Table, mark: Mark) -> None:
        if not re.fullmatch(r"[^%\0]+", self._name) or len(self._name.encode()) > _MAX_NAME_BYTES:
            raise BadInput(
                f"Postgres does not take {self._name!r} as the name of a table. Nothing was written.",
                f"Names have 1 to {_MAX_NAME_BYTES} bytes, without `%`.",
            )
        self._shape(table)
        async with self._database.link(self._cannot("made")) as link:
            if link.pgvector is None:
                await make_extension(link, self._database.shown)
                await link.greet(600)
            columns = [
                f"id {_ID_TYPES[table.ids]} PRIMARY KEY",
                *(["text text"] if table.has_text else []),
                f"vector vector({table.dimensions}) NOT NULL",
                *(f"{quoted(name)} {kind}" for name, kind in self._columns.items()),
                f"{MORE} text",
            ]
            async with link.connection.transaction():
                try:
                    await link.execute(f"CREATE TABLE {self._quoted} ({', '.join(columns)})")
                except psycopg.errors.DuplicateTable:
                    raise self._taken() from None
                said = f"{COPY_MARK}{mark.written()}".replace("'", "''")
                await link.execute(f"COMMENT ON TABLE {self._quoted} IS '{said}'")

    async def open(self, table: Table, mark: Mark) -> None:
        self._table = table
        async with self._database.reading(self._cannot("read")) as link:
            found = await link.fetch(
                "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute "
                "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                [self._quoted],
            )
        self._columns = {name: kind for name, kind in found if name not in _FIXED}
        self._typed = table.declared

    def refused(self, rows: Rows) -> Mapping[int, str]:
        finite = np.isfinite(rows.vectors).all(axis=1)
        found = {int(row): "its vector has a component that is no finite number" for row in np.flatnonzero(~finite)}
        for row, (id_, text) in enumerate(zip(rows.ids, rows.texts, strict=True)):
            if isinstance(id_, int) and not -(2**63) <= id_ < 2**63:
                found[row] = "its id is past 64 bits"
            elif isinstance(id_, str) and (not is_text(id_) or len(id_.encode()) > 2_600):
                found[row] = "its id has a NUL character, no valid Unicode, or more than 2,600 bytes"
            elif text is not None and not is_text(text):
                found[row] = "its text has a NUL character, or is no valid Unicode"
        return found

    async def write(self, rows: Rows, *, fresh: bool) -> None:
        async with self._database.link(self._cannot("written")) as link, link.connection.transaction():
            await link.execute("SET LOCAL statement_timeout = '600s'")
            if not fresh:
                await self._delete(link, rows.ids)
            await self._copy(link, rows)

    async def delete(self, ids: Sequence[Id]) -> None:
        async with self._database.link(self._cannot("written")) as link:
            await self._delete(link, ids)

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        async for some in self._source().ids():
            yield some

    async def fetch(self, ids: Sequence[Id]) -> Rows:
        return (await self._source().fetch(ids)).rows

    async def finish(self) -> None:
        """The index of the source's metric, where it has one and the index can hold vectors of these dimensions."""
        table = self._known()
        if table.metric is None or table.dimensions > MAX_HALF_DIMENSIONS:
            return
        half = table.dimensions > MAX_HNSW_DIMENSIONS
        kind = "halfvec" if half else "vector"
        column = f"(vector::halfvec({table.dimensions}))" if half else "vector"
        name = f"{self._name.encode()[:50].decode(errors='ignore')}_vector"
        async with self._database.link(self._cannot("indexed")) as link:
            there = await link.fetch(
                "SELECT FROM pg_index i WHERE i.indrelid = %s::regclass AND NOT i.indisprimary", [self._quoted]
            )
            if there:
                return
            async with link.connection.transaction():
                await link.execute("SET LOCAL statement_timeout = 0")
                await link.execute(f"SET LOCAL maintenance_work_mem = '{_INDEX_MEMORY}'")
                await link.execute(
                    f"CREATE INDEX {quoted(name)} ON {self._quoted} USING hnsw ({column} "
                    f"{kind}_{_OPERATORS[table.metric]}_ops)"
                )

    async def close(self) -> None: ...

    # --- inside ------------------------------------------------------------------------------------------------------

    def _shape(self, table: Table) -> None:
        self._table = table
        self._typed = table.declared
        if not table.declared:
            self._columns = {"metadata": "jsonb"}
            return
        self._columns = {
            name: kind
            for name, field in table.fields.items()
            if name not in _FIXED and _is_name(name) and (kind := sql_type(field)) is not None
        }
        if len(self._columns) > _MAX_COLUMNS:
            self._columns = dict(list(self._columns.items())[:_MAX_COLUMNS])

    async def _copy(self, link: Link, rows: Rows) -> None:
        table = self._known()
        columns = ["id", *(["text"] if table.has_text else []), "vector", *map(quoted, self._columns), MORE]
        kinds = [_ID_TYPES[table.ids].partition(" ")[0], *(["text"] if table.has_text else []), "vector"]
        kinds += [*self._columns.values(), "text"]
        numbers = await link.fetch("SELECT kind::regtype::oid::bigint FROM unnest(%s::text[]) AS kind", [kinds])
        oids = [number for (number,) in numbers]
        link.connection.adapters.register_dumper(VectorBytes, _vector_dumper(oids[kinds.index("vector")]))
        statement = f"COPY {self._quoted} ({', '.join(columns)}) FROM STDIN (FORMAT binary)"
        async with link.connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            copy.set_types(oids)
            for id_, text, vector, metadata in zip(rows.ids, rows.texts, rows.vectors, rows.metadata, strict=True):
                head = (id_, text) if table.has_text else (id_,)
                await copy.write_row((*head, pack_vector(vector), *self._cells(metadata)))

    def _cells(self, metadata: Mapping[str, Any]) -> list[Any]:
        if not self._typed:
            plain = {key: value for key, value in metadata.items() if is_text(key) and keeps(value)}
            more = {key: value for key, value in metadata.items() if key not in plain}
            plain |= {key: text for key, value in more.items() if is_text(key) and (text := as_text(value))}
            return [_json(plain), dumps(more) if more else None]
        cells: list[Any] = []
        more = {key: value for key, value in metadata.items() if value is None or key not in self._columns}
        for name, kind in self._columns.items():
            value = metadata.get(name)
            if value is None or not fits(value, kind):
                if value is not None:
                    more[name] = value
                text = as_text(value) if kind == "text" else None
                cells.append(text)
            else:
                cells.append(_json(value) if base_type(kind) in ("json", "jsonb") else value)
        return [*cells, dumps(more) if more else None]

    async def _delete(self, link: Link, ids: Sequence[Id]) -> None:
        kind = _ID_TYPES[self._known().ids].partition(" ")[0]
        await link.execute(f"DELETE FROM {self._quoted} WHERE id = ANY(%s::{kind}[])", [list(ids)])

    def _source(self) -> PostgresSource:
        return PostgresSource(self._database, self._name, Chosen(id="id", vector="vector"))

    def _known(self) -> Table:
        assert self._table is not None, "neither made nor opened"
        return self._table

    @property
    def _quoted(self) -> str:
        return f"{quoted(self._database.address.schema)}.{quoted(self._name)}"

    def _taken(self) -> Conflict:
        return Conflict(
            f"There is a table {self._name!r} in {self._database.shown} already that this copy did not make. Nothing "
            "was changed.",
            "Name another collection, schema (`?schema=NAME`) or database for the target.",
        )

    def _cannot(self, done: str) -> str:
        return f"Table {self._name!r} in {self._database.shown} cannot be {done}"


def _is_name(name: str) -> bool:
    return bool(name) and len(name.encode("utf-8", "replace")) <= _MAX_NAME_BYTES and is_text(name) and "%" not in name


def _json(value: Any) -> Jsonb:
    return Jsonb(value, dumps=lambda one: json.dumps(one, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def _vector_dumper(number: int) -> type[Dumper]:
    """Of vectors as pgvector sends them, under the number that the type has in this database."""

    class VectorDumper(Dumper):
        format = Format.BINARY
        oid = number

        def dump(self, obj: VectorBytes) -> bytes:
            return obj

    return VectorDumper
