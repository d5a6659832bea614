"""Postgres with pgvector: each table of a schema (`?schema=NAME`, else `public`) that has a column of vectors.

What is read, is read in transactions that cannot write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.errors import BadInput, StoreRefused
from whimbrel.stores.base import Reach
from whimbrel.stores.envelope import joined
from whimbrel.stores.foreign import layout
from whimbrel.stores.foreign.absent import absent
from whimbrel.stores.foreign.base import (
    MORE,
    Chosen,
    Database,
    Fetched,
    Id,
    IdKind,
    Mark,
    Names,
    Rows,
    Sink,
    Source,
    Table,
)
from whimbrel.stores.foreign.pg_types import Column, loads_exactly
from whimbrel.stores.foreign.values import loads
from whimbrel.stores.metrics import Metric, scores
from whimbrel.stores.postgres.address import Address, parse_address
from whimbrel.stores.postgres.faults import postgres_errors
from whimbrel.stores.postgres.pool import Link, Pool, leave, pool_of
from whimbrel.stores.postgres.rows import pack_vector
from whimbrel.stores.postgres.table import quoted

VIEW_MARK = "whimbrel view"
COPY_MARK = "whimbrel copy "
UNFOLDED = ("metadata", "metadata_", "cmetadata", "langchain_metadata", "payload")
"""A column of JSON objects of one of these names holds the metadata: its keys are the row's."""

_SAMPLE_ROWS = 200
_CURSOR_ROWS = 20_000
_IDS = {
    "smallint": IdKind.INT,
    "integer": IdKind.INT,
    "bigint": IdKind.INT,
    "text": IdKind.STR,
    "character varying": IdKind.STR,
    "uuid": IdKind.UUID,
}
_ARRAYS = {IdKind.INT: "bigint[]", IdKind.STR: "text[]", IdKind.UUID: "uuid[]"}
_METRICS = {"cosine": Metric.COSINE, "l2": Metric.L2, "ip": Metric.DOT}
_OPERATORS = {Metric.COSINE: "<=>", Metric.L2: "<->", Metric.DOT: "<#>"}


@dataclass(frozen=True, slots=True)
class Key:
    """How a row is named: by one column, or by several as the text of a JSON array."""

    columns: Sequence[tuple[str, str]]
    """(name, type as Postgres writes it)"""

    @property
    def kind(self) -> IdKind:
        return IdKind.STR if self.composed else _IDS[self.columns[0][1].partition("(")[0]]

    @property
    def composed(self) -> bool:
        return len(self.columns) > 1 or self.columns[0][1].partition("(")[0] not in _IDS

    @property
    def sql(self) -> str:
        names = [quoted(name) for name, _ in self.columns]
        return f"jsonb_build_array({', '.join(names)})::text" if self.composed else names[0]

    @property
    def condition(self) -> str:
        """That a row is among those of the parameter."""
        if not self.composed:
            return f"{self.sql.replace('%', '%%')} = ANY(%s::{_ARRAYS[self.kind]})"
        names = ", ".join(quoted(name).replace("%", "%%") for name, _ in self.columns)
        parts = ", ".join(f"(named ->> {at})::{kind}" for at, (_, kind) in enumerate(self.columns))
        return (
            f"({names}) IN (SELECT {parts} FROM (SELECT one::jsonb AS named FROM unnest(%s::text[]) AS one) AS wanted)"
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """What the columns of a table are."""

    oid: int
    rows_as: str
    """The table's name, quoted."""
    key: Key
    vector: str
    dimensions: int
    """0: the type does not say."""
    text: str | None
    columns: Sequence[Column]
    unfolded: str = ""
    vector_type: str = "vector"
    """Or `halfvec`."""
    view: bool = False
    mark: Mark | None = None
    notes: Sequence[str] = field(default_factory=list)

    @property
    def select(self) -> str:
        if self.view:
            more = ["text", "metadata::text", "envelope"]
        else:
            more = [quoted(self.text) if self.text else "NULL::text", *map(_selected, self.columns)]
            more += [f"{quoted(self.unfolded)}::text"] if self.unfolded else []
            more += [quoted(MORE)] if self.mark else []
        return f"SELECT {', '.join([self.key.sql, f'{quoted(self.vector)}::vector', *more])} FROM {self.rows_as}"

    def metadata(self, row: Sequence[Any]) -> dict[str, Any]:
        """Of what `select` gives after the text. Raises `ValueError` where two things have one name."""
        if self.view:
            return dict(joined(loads_exactly(row[0]), row[1]))
        found = {}
        for column, cell in zip(self.columns, row, strict=False):
            if cell is not None:
                found[column.name] = column.value(cell)
        rest = list(row[len(self.columns) :])
        if self.unfolded and (held := rest.pop(0)) is not None:
            inner = loads_exactly(held)
            if not isinstance(inner, dict):
                raise ValueError(f"`{self.unfolded}` holds no JSON object")
            if both := inner.keys() & found.keys():
                raise ValueError(f"`{min(both)}` is a column, and a key in `{self.unfolded}`")
            found |= inner
        if rest and rest[0] is not None:
            found |= loads(rest[0])
        return found


class PostgresDatabase(Database):
    def __init__(self, address: Address, reach: Reach) -> None:
        self.address = address
        self.shown = f"{address.shown}, schema {address.schema}"
        self._reach = reach
        self._pool: Pool | None = None

    async def collections(self) -> Sequence[str]:
        async with self.reading(f"{self.shown} cannot be read") as link:
            return await _tables(link, self.address.schema)

    def source(self, name: str, chosen: Chosen) -> Source:
        return PostgresSource(self, name, chosen)

    def sink(self, name: str) -> Sink:
        from whimbrel.stores.foreign.postgres_sink import PostgresSink

        return PostgresSink(self, name)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await leave(pool)

    @asynccontextmanager
    async def link(self, what: str) -> AsyncIterator[Link]:
        if self._pool is None:
            self._pool = pool_of(self.address, self._reach)
        async with self._pool.link() as link:
            with postgres_errors(what):
                yield link

    @asynccontextmanager
    async def reading(self, what: str) -> AsyncIterator[Link]:
        """One transaction that cannot write, in which times are told in UTC and in ISO's form."""
        async with self.link(what) as link, link.connection.transaction():
            await link.fetch(
                "SELECT set_config('transaction_read_only', 'on', true), set_config('timezone', 'UTC', true), "
                "set_config('datestyle', 'ISO, YMD', true), set_config('statement_timeout', '600s', true)"
            )
            yield link


class PostgresSource(Source):
    def __init__(self, database: PostgresDatabase, name: str, chosen: Chosen) -> None:
        self._database = database
        self._name = name
        self._chosen = chosen
        self._layout: Layout | None = None
        self._dimensions = 0
        self._by = Metric.COSINE

    async def describe(self) -> Table:
        async with self._database.reading(self._cannot) as link:
            found = self._layout = await read_layout(link, self._database, self._name, self._chosen)
            self._dimensions = found.dimensions or await self._sampled_dimensions(link, found)
            metric = self._chosen.metric or await self._metric(link, found)
            self._by = metric or (found.mark.metric if found.mark else None) or Metric.COSINE
            identity = await link.fetch("SELECT current_database()::text, inet_server_addr()::text, inet_server_port()")
        return Table(
            self._name,
            self._dimensions,
            metric or (found.mark.metric if found.mark else None),
            found.mark.ids if found.mark else found.key.kind,
            Names(found.key.columns[0][0], found.text or "text", found.vector),
            has_text=found.text is not None,
            fields={column.name: column.field for column in found.columns},
            declared=not found.view and not found.unfolded,
            about=found.mark.about if found.mark else {},
            notes=found.notes,
            identity=f"postgres {self._database.address.shown} {identity[0]} {found.oid}",
        )

    async def version(self) -> str | None:
        """Postgres does not tell in a way that can be relied on: its counters of changes come late."""
        return None

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        found = await self._known()
        async with (
            self._database.reading(self._cannot) as link,
            link.connection.cursor("copied", binary=True) as cursor,
        ):
            await cursor.execute(f"SELECT {found.key.sql} FROM {found.rows_as}".encode())
            while rows := await cursor.fetchmany(_CURSOR_ROWS):
                if any(id_ is None for (id_,) in rows):
                    raise BadInput(f"{self._cannot}: a row has no id.", "Name a column that is never null: `--id`.")
                yield [id_ for (id_,) in rows]

    async def fetch(self, ids: Sequence[Id], places: Sequence[int] | None = None) -> Fetched:
        found = await self._known()
        async with self._database.reading(self._cannot) as link:
            select = found.select.replace("%", "%%")
            rows = await link.fetch(f"{select} WHERE {found.key.condition}", [list(ids)])
        return _fetched(found, rows, self._dimensions)

    async def nearest(
        self, vector: npt.NDArray[np.float32], k: int, among: Sequence[Id] | None = None
    ) -> Sequence[tuple[Id, float]]:
        found = await self._known()
        if k <= 0 or (among is not None and not among):
            return []
        column = quoted(found.vector).replace("%", "%%")
        distance = f"{column} {_OPERATORS[self._by]} %b::vector"
        if found.vector_type == "halfvec":
            distance = f"{column} {_OPERATORS[self._by]} %b::vector::halfvec({self._dimensions})"
        where = f"WHERE {found.key.condition}" if among is not None else f"WHERE {column} IS NOT NULL"
        if not found.dimensions:  # a column of any dimensions: those of others cannot be compared
            where += f" AND vector_dims({column}::vector) = {self._dimensions}"
        key, table = found.key.sql.replace("%", "%%"), found.rows_as.replace("%", "%%")
        query = f"SELECT {key}, {distance} AS distance FROM {table} {where} ORDER BY distance LIMIT {int(k)}"
        given: list[Any] = [pack_vector(vector), *([list(among)] if among is not None else [])]
        async with self._database.reading(self._cannot) as link:
            await link.search_wide(2 * k)
            rows = await link.fetch(query, given, prepare=None if among is None else False)
        distances = np.array([float(distance) for _, distance in rows], np.float64)
        measured = distances if self._by is Metric.L2 else -distances if self._by is Metric.DOT else 1.0 - distances
        found_scores = scores(self._by, np.nan_to_num(measured), normalised=self.normalised)
        return list(zip([id_ for id_, _ in rows], found_scores.tolist(), strict=True))

    async def close(self) -> None:
        self._layout = None

    async def _known(self) -> Layout:
        if self._layout is None:
            await self.describe()
        assert self._layout is not None
        return self._layout

    async def _sampled_dimensions(self, link: Link, found: Layout) -> int:
        rows = await link.fetch(
            f"SELECT vector_dims({quoted(found.vector)}::vector) FROM (SELECT {quoted(found.vector)} FROM "
            f"{found.rows_as} WHERE {quoted(found.vector)} IS NOT NULL LIMIT {_SAMPLE_ROWS}) AS sample"
        )
        lengths = [length for (length,) in rows]
        return max(set(lengths), key=lengths.count) if lengths else 0

    async def _metric(self, link: Link, found: Layout) -> Metric | None:
        """Of the operators of the column's indexes."""
        if found.view:
            return Metric.COSINE
        rows = await link.fetch(
            "SELECT DISTINCT o.opcname::text FROM pg_index i JOIN pg_opclass o ON o.oid = ANY(i.indclass::oid[]) "
            "WHERE i.indrelid = %s AND i.indisvalid AND o.opcname ~ '^(vector|halfvec)_(cosine|l2|ip)_ops$'",
            [found.oid],
        )
        names = {name.split("_")[1] for (name,) in rows}
        if len(names) > 1:
            raise BadInput(f"{self._cannot}: it has indexes of several metrics.", "Name the one to copy: `--metric`.")
        return _METRICS[names.pop()] if names else None

    @property
    def _cannot(self) -> str:
        return f"Table {self._name!r} in {self._database.shown} cannot be read"


async def _tables(link: Link, schema: str) -> list[str]:
    """Those with vectors."""
    found = await link.fetch(
        "SELECT DISTINCT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid "
        "WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'm', 'v', 'f') "
        "AND t.typname IN ('vector', 'halfvec') AND a.attnum > 0 AND NOT a.attisdropped",
        [schema],
    )
    return sorted(name for (name,) in found)


async def read_layout(link: Link, database: PostgresDatabase, name: str, chosen: Chosen) -> Layout:
    """Raises `NotFound`, and `BadInput` where it cannot be told what is what."""
    where = f"Table {name!r} in {database.shown}"
    head = await link.fetch(
        "SELECT c.oid::bigint, coalesce(obj_description(c.oid, 'pg_class'), '') FROM pg_class c JOIN pg_namespace n "
        "ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
        [database.address.schema, name],
    )
    if not head:
        error = absent("table", name, database.shown, await _tables(link, database.address.schema))
        error.hint += " For another schema: `?schema=NAME`."
        raise error
    if "%" in name or "\0" in name:
        raise StoreRefused(f"{where}: a name with `%` cannot be read.", "Make a view of it that has another name.")
    ((oid, comment),) = head
    types = await link.fetch(
        "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a WHERE a.attrelid = %s "
        "AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        [oid],
    )
    sql = {column: kind.removeprefix("public.") for column, kind in types}
    keys = [
        column
        for (column,) in await link.fetch(
            "SELECT a.attname::text FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY k (attnum, at) "
            "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum "
            "WHERE i.indrelid = %s AND i.indisprimary ORDER BY k.at",
            [oid],
        )
    ]
    mark = Mark.read(comment.removeprefix(COPY_MARK)) if comment.startswith(COPY_MARK) else None
    return _layout(oid, f"{quoted(database.address.schema)}.{quoted(name)}", where, sql, keys, chosen, comment, mark)


def _layout(
    oid: int,
    rows_as: str,
    where: str,
    sql: Mapping[str, str],
    keys: Sequence[str],
    chosen: Chosen,
    comment: str,
    mark: Mark | None,
) -> Layout:
    vectors = [name for name, kind in sql.items() if _bare(kind) in ("vector", "halfvec")]
    vector = layout.vector_column(vectors, chosen, where)
    limit = sql[vector].partition("(")[2].rstrip(")")
    dimensions = int(limit) if limit else 0
    if comment.startswith(f"{VIEW_MARK}, "):
        key = Key([("id", "text")])
        return Layout(oid, rows_as, key, vector, dimensions, "text", [], view=True)
    if chosen.id or not keys:
        kinds = {name: _IDS[base] for name, kind in sql.items() if (base := kind.partition("(")[0]) in _IDS}
        keys = [layout.id_column(kinds, chosen, keys, where)]
    key = Key([(name, sql[name]) for name in keys])
    taken = {vector, MORE, *([] if key.composed else keys)}
    texts = [name for name, kind in sql.items() if kind.partition("(")[0] in ("text", "character varying")]
    candidates = [name for name in texts if name not in taken and name not in keys]
    text = ("text" if mark.text else None) if mark else layout.text_column(candidates, chosen, where)
    others = [name for name in sql if name not in taken and name != text and name not in vectors]
    left = [name for name in vectors if name != vector]
    unfolded = next((name for name in UNFOLDED if name in others and sql[name] in ("json", "jsonb")), "")
    columns = [Column(name, sql[name]) for name in others if name != unfolded]
    notes = [f"the vectors of the column {name!r} are left out" for name in left]
    notes += [f"the column {one.name!r} ({one.sql}) is copied as its text" for one in columns if not one.is_known]
    kind = _bare(sql[vector])
    return Layout(oid, rows_as, key, vector, dimensions, text, columns, unfolded, kind, mark=mark, notes=notes)


def _fetched(found: Layout, rows: Sequence[Sequence[Any]], dimensions: int) -> Fetched:
    ids, texts, metadata, packed = [], [], [], []
    unfit: dict[Id, str] = {}
    for id_, vector, text, *rest in rows:
        if vector is None:
            unfit[id_] = "it has no vector"
        elif len(vector) != 4 + 4 * dimensions:
            unfit[id_] = f"its vector has {(len(vector) - 4) // 4} dimensions"
        else:
            try:
                metadata.append(found.metadata(rest))
            except ValueError as error:
                unfit[id_] = str(error)
                continue
            ids.append(id_)
            texts.append(text)
            packed.append(vector)
    cells = np.frombuffer(b"".join(packed), np.dtype([("head", ">i4"), ("values", ">f4", (dimensions,))]))
    return Fetched(Rows(ids, cells["values"].astype(np.float32), texts, metadata), unfit)


def _selected(column: Column) -> str:
    name = quoted(column.name)
    return f"{name}::text" if column.as_text else name


def _bare(kind: str) -> str:
    return kind.rpartition(".")[2].partition("(")[0]


def opener(uri: str, reach: Reach) -> PostgresDatabase:
    head, _, query = uri.partition("?")
    if not any(part.startswith("schema=") for part in query.split("&")):
        query = f"{query}&schema=public" if query else "schema=public"
    return PostgresDatabase(parse_address(f"{head}?{query}"), reach)
