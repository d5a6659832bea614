"""The store: one table of a Postgres database with pgvector, holding one view."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import psycopg

from whimbrel.domain import Matches, Position, Space
from whimbrel.errors import Forbidden
from whimbrel.filters import OPERATORS, Filter
from whimbrel.stores.base import Metric, Reach, Records, Store, StoreInfo
from whimbrel.stores.postgres import erase, index, table
from whimbrel.stores.postgres.address import parse_address
from whimbrel.stores.postgres.faults import postgres_errors
from whimbrel.stores.postgres.nearest import nearest
from whimbrel.stores.postgres.pool import Link, Pool, bounded, leave, pool_of
from whimbrel.stores.postgres.rows import COLUMNS, READ, copy_rows, pack_vector, records
from whimbrel.stores.postgres.where import Condition, compile_filter
from whimbrel.stores.records import checked_query, writable

T = TypeVar("T")

ESTIMATE_S = 60.0
"""How long a number of rows is taken for what it was."""
WRITE_S = 600
"""A statement that writes is ended by the server after so long: a batch of thousands may wait for an index."""


class PostgresStore(Store):
    """A table for the view `name` in the schema `whimbrel` of the database at `uri`.

    Data and position are one transaction. Any number of processes read, and see each commit at once; one may write.
    Raises `StoreUnavailable` while the server is away, `StoreRefused` and `StoreUnsupported` until its operator acts,
    `ViewDamaged`, `SpaceMismatch`, `DiskFull`.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        space: Space,
        *,
        base: Path | None = None,  # of relative paths: there are none
        read_only: bool = False,
        reach: Reach | None = None,
    ) -> None:
        self._address = parse_address(uri)
        self._table = table.table_of(self._address.schema, name, space)
        self._space = space
        self._read_only = read_only
        self._reach = reach or Reach()
        self._pool: Pool | None = None
        self._checked = False
        self._writing = asyncio.Lock()
        self._in_bulk = False
        self._estimate = 0
        self._estimated_at = -math.inf

    # --- the table itself --------------------------------------------------------------------------------------------

    async def create(self) -> None:
        self._check_writable()
        where = self._address.shown
        async with self._link("be made") as link:
            await table.check_free(link, self._table, where)
            if link.pgvector is None:
                await table.make_extension(link, where)
                await link.greet(self._reach.timeout_s)
            link.check(where)
            await table.create(link, self._table, where)
        self._checked = True

    async def exists(self) -> bool:
        return await self._ask("be looked for", lambda link: table.exists(link, self._table))

    async def drop(self) -> None:
        self._check_writable()
        self._checked = False
        async with self._link("be dropped") as link:
            await table.drop(link, self._table)

    async def close(self) -> None:
        self._checked = False
        pool, self._pool = self._pool, None
        if pool is not None:
            await leave(pool)

    def describe(self) -> StoreInfo:
        return StoreInfo(
            name="postgresql",
            metric=Metric.COSINE,
            dimensions=self._space.dimensions,
            filter_operators=OPERATORS,
            max_dimensions=table.MAX_DIMENSIONS,
            atomic=True,
            snapshots=True,
            cannot=[
                f"an index of vectors of more than {table.MAX_HALF_DIMENSIONS:,} dimensions: all rows are compared"
            ],
        )

    async def count(self) -> int:
        return await self._read("count", lambda link: self._count(link))

    # --- writing -----------------------------------------------------------------------------------------------------

    async def upsert(self, records: Records, *, new: bool = False) -> None:
        await self._write(records, (), None, new=new)

    async def delete(self, ids: Sequence[str]) -> None:
        await self._write(None, ids, None, new=False)

    async def set_position(self, position: Position) -> None:
        await self._write(None, (), position, new=False)

    async def apply(
        self, upserts: Records | None, deletes: Sequence[str], position: Position, *, new: bool = False
    ) -> None:
        """All of it in one transaction."""
        await self._write(upserts, deletes, position, new=new)

    async def position(self) -> Position | None:
        query = f"SELECT epoch, position, stamp FROM {self._table.positions} WHERE view = %s"
        found = await self._read("read", lambda link: link.fetch(query, [self._table.bare]))
        return Position(*found[0]) if found else None

    async def begin_bulk(self) -> None:
        self._check_writable()
        self._in_bulk = True

    async def end_bulk(self) -> None:
        self._check_writable()
        self._in_bulk = False
        await self._build_index(min_rows=index.MIN_ROWS)

    async def maintain(self, *, full: bool = False) -> None:
        """Build the indexes where there are none. They keep themselves after that, with Postgres's own autovacuum;
        `full` removes deleted rows from them now."""
        self._check_writable()
        if full or not self._in_bulk:
            await self._build_index(min_rows=1 if full else index.MIN_ROWS)
        if full:
            async with self._opened("be maintained") as link:
                await link.vacuum(f"VACUUM (ANALYZE) {self._table.name}")

    async def erase(self, *, grace_s: float) -> None:
        """Writes the rows that are left anew, and drops the old table's files. There are no old versions to wait for.

        Out of reach: the write-ahead log until the server recycles it, its archives, replicas that lag, base backups.
        """
        self._check_writable()
        async with self._writing, self._opened("be erased from") as link:
            await erase.rewrite(link, self._table, await self._count(link))
            await erase.forget_samples(link, self._table)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def fetch(self, ids: Sequence[str]) -> Records:
        query = f"SELECT {READ} FROM {self._table.name} WHERE id = ANY(%s::text[])"
        found = await self._read("read", lambda link: link.fetch(query, [_storable(ids)]))
        return records(found, self._space.dimensions)

    async def scan(self, batch: int = 5_000) -> AsyncIterator[Records]:
        query = f"SELECT {READ} FROM {self._table.name}"
        async with (
            self._opened("read") as link,
            link.connection.transaction(),
            link.connection.cursor("scan", binary=True) as cursor,
        ):
            await cursor.execute(query.encode())
            while rows := await cursor.fetchmany(batch):
                yield records(rows, self._space.dimensions)

    async def ids(self) -> list[str]:
        query = f"SELECT id FROM {self._table.name}"
        return [id_ for (id_,) in await self._read("read", lambda link: link.fetch(query))]

    async def search(
        self, vector: npt.NDArray[np.float32], k: int, where: Filter | None = None, *, ids: Sequence[str] | None = None
    ) -> Matches:
        packed = pack_vector(checked_query(vector, self._space.dimensions))
        if k <= 0 or (ids is not None and not ids):
            return Matches([], np.zeros(0, np.float32))
        condition = _condition(where, ids)

        async def search(link: Link) -> Matches:
            return await nearest(link, self._table, packed, k, condition, await self._about(link))

        return await self._read("search", search)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _write(
        self, upserts: Records | None, deletes: Sequence[str], position: Position | None, *, new: bool
    ) -> None:
        self._check_writable()
        rows = 0 if upserts is None else len(upserts)
        if not rows and not deletes and position is None:
            return
        upserts = writable(upserts, self._space.dimensions) if upserts is not None and rows else None
        async with (
            self._writing,
            bounded(WRITE_S + 30, self._cannot("write")),
            self._opened("write") as link,
            link.connection.transaction(),
        ):
            await link.execute(f"SET LOCAL statement_timeout = '{WRITE_S}s'")
            if deletes:
                query = f"DELETE FROM {self._table.name} WHERE id = ANY(%s::text[])"
                await link.execute(query, [_storable(deletes)])
            if upserts is not None:
                await self._put(link, upserts, new=new)
            if position is not None:
                await self._put_position(link, position)

    async def _put(self, link: Link, rows: Records, *, new: bool) -> None:
        if new and await self._put_new(link, rows):
            return
        staging = table.quoted(f"{self._table.bare} staging")
        like = f"(LIKE {self._table.name} INCLUDING STORAGE)"
        await link.execute(f"CREATE TEMP TABLE IF NOT EXISTS {staging} {like} ON COMMIT DELETE ROWS")
        await _copy(link, f"pg_temp.{staging}", rows)
        changes = ", ".join(f"{column} = excluded.{column}" for column in COLUMNS.split(", ") if column != "id")
        await link.execute(
            f"INSERT INTO {self._table.name} ({COLUMNS}) SELECT {COLUMNS} FROM pg_temp.{staging} "
            f"ON CONFLICT (id) DO UPDATE SET {changes}"
        )

    async def _put_new(self, link: Link, rows: Records) -> bool:
        """False, and nothing is written, where an id is there: a commit may have been done whose answer was lost."""
        try:
            async with link.connection.transaction():
                await _copy(link, self._table.name, rows)
        except psycopg.errors.UniqueViolation:
            return False
        return True

    async def _put_position(self, link: Link, position: Position) -> None:
        await link.execute(
            f"INSERT INTO {self._table.positions} (view, epoch, position, stamp) VALUES (%s, %s, %s, %s) ON CONFLICT "
            "(view) DO UPDATE SET epoch = excluded.epoch, position = excluded.position, stamp = excluded.stamp",
            [self._table.bare, position.epoch, position.position, position.stamp],
        )

    async def _build_index(self, *, min_rows: int) -> None:
        async with self._writing, self._opened("be indexed") as link:
            if await index.is_built(link, self._table):
                return
            rows = await self._count(link)
            if rows >= min_rows:
                await index.build(link, self._table, rows)
                await link.vacuum(f"VACUUM (ANALYZE) {self._table.name}")
                self._estimated_at = -math.inf

    async def _count(self, link: Link) -> int:
        ((rows,),) = await link.fetch(f"SELECT count(*) FROM {self._table.name}")
        return int(rows)

    async def _about(self, link: Link) -> int:
        """As many rows as Postgres thought lately that there are."""
        if time.monotonic() > self._estimated_at + ESTIMATE_S:
            found = await link.fetch("SELECT reltuples FROM pg_class WHERE oid = to_regclass(%s)", [self._table.name])
            self._estimate = max(0, int(found[0][0])) if found else 0
            self._estimated_at = time.monotonic()
        return self._estimate

    async def _read(self, verb: str, work: Callable[[Link], Awaitable[T]]) -> T:
        """What `work` reads from the table, which is ours and of this space."""

        async def checked(link: Link) -> T:
            await self._check(link)
            return await work(link)

        return await self._ask(verb, checked)

    async def _ask(self, verb: str, work: Callable[[Link], Awaitable[T]]) -> T:
        return await self._known_pool().read(self._cannot(verb), work)

    @asynccontextmanager
    async def _opened(self, verb: str) -> AsyncIterator[Link]:
        """A connection to a table that is ours and of this space."""
        async with self._link(verb) as link:
            await self._check(link)
            yield link

    @asynccontextmanager
    async def _link(self, verb: str) -> AsyncIterator[Link]:
        async with self._known_pool().link() as link:
            with postgres_errors(self._cannot(verb)):
                yield link

    async def _check(self, link: Link) -> None:
        if link.pgvector is None:
            await link.greet(self._reach.timeout_s)  # it may have been made since
        if not self._checked:
            link.check(self._address.shown)
            await table.check(link, self._table, self._address.shown)
            self._checked = True

    def _known_pool(self) -> Pool:
        if self._pool is None:
            self._pool = pool_of(self._address, self._reach)
        return self._pool

    def _check_writable(self) -> None:
        if self._read_only:
            raise Forbidden(f"Table {self._table.bare!r} was opened to be read only. Nothing was written.")

    def _cannot(self, verb: str) -> str:
        return f"Table {self._table.bare!r} in {self._address.shown}: cannot {verb}"


async def _copy(link: Link, name: str, rows: Records) -> None:
    statement = f"COPY {name} ({COLUMNS}) FROM STDIN (FORMAT binary)"
    async with link.connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        for buffer in copy_rows(rows):
            await copy.write(buffer)


def _condition(where: Filter | None, ids: Sequence[str] | None) -> Condition | None:
    if where is None and ids is None:
        return None
    condition = Condition("true") if where is None else compile_filter(where)
    if ids is not None:
        condition.sql += " AND id = ANY(%s::text[])"
        condition.parameters.append(_storable(ids))
    return condition


def _storable(ids: Sequence[str]) -> list[str]:
    """Without those that no row can have."""
    return [id_ for id_ in ids if "\0" not in id_]
