"""The table of a view, and what is beside it in the schema.

| column | type | what |
|---|---|---|
| `id` | text, the primary key | the chunk's public id |
| `text` | text | the chunk's text |
| `metadata` | jsonb | the metadata, for other programs to read and filter by |
| `facts` | jsonb | the same, flattened: what our filters look at (`whimbrel.filters.facts`) |
| `envelope` | text | the keys that jsonb would change (`whimbrel.stores.envelope`); null where there are none |
| `vector` | vector(d) | |

The table `positions` holds each view's place in its log. A comment on a table marks it as ours: what does not bear it
is neither read, written nor dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b

import psycopg

from whimbrel.domain import Space
from whimbrel.errors import BadInput, Conflict, NewerHome, SpaceMismatch, StoreRefused, StoreUnsupported, ViewDamaged
from whimbrel.stores.base import OTHER_SPACE, REBUILD
from whimbrel.stores.postgres.pool import Link

FORMAT = 1
MAX_DIMENSIONS = 16_000
MAX_HNSW_DIMENSIONS = 2_000
MAX_HALF_DIMENSIONS = 4_000
"""Up to these many, an index holds the vectors in half precision; the table holds them whole, and the best candidates
are compared by those. Beyond, every search compares all rows."""
MAX_INLINE_DIMENSIONS = 1_000

_MARK = "whimbrel view"
_MAX_NAME_BYTES = 50
_LOCK_MAKING = f"SELECT pg_advisory_xact_lock({0x776869_6D627265})"
"""Until the transaction ends: two processes that make an extension or a schema at once would collide."""


@dataclass(frozen=True, slots=True)
class Table:
    """Names as they stand in statements: quoted."""

    schema: str
    bare: str
    """The table's name, not quoted."""
    space: Space

    @property
    def name(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.bare)}"

    @property
    def positions(self) -> str:
        return f"{quoted(self.schema)}.positions"

    @property
    def dimensions(self) -> int:
        return self.space.dimensions

    @property
    def mark(self) -> str:
        return f"{_MARK}, format {FORMAT}, space {self.space.key}"

    def beside(self, suffix: str) -> Table:
        return Table(self.schema, table_name(f"{self.bare}.{suffix}"), self.space)


def table_of(schema: str, view: str, space: Space) -> Table:
    if not 1 <= space.dimensions <= MAX_DIMENSIONS:
        raise BadInput(
            f"pgvector holds vectors of up to {MAX_DIMENSIONS:,} dimensions; the space has {space.dimensions:,}.",
            "Nothing was written. Name another store, or a model of fewer dimensions.",
        )
    return Table(schema, table_name(view), space)


def table_name(view: str) -> str:
    """Postgres cuts a name silently after 63 bytes: a long one ends in its hash here. So does one with a `%`, which the
    driver reads as the place of a parameter."""
    plain = re.sub("[\0%]", "", view)
    if plain == view and len(view.encode()) <= _MAX_NAME_BYTES and view not in ("", "positions"):
        return view
    start = plain.encode()[: _MAX_NAME_BYTES - 18].decode(errors="ignore")
    return f"{start}_{blake2b(view.encode(), digest_size=8).hexdigest()}"


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def create(link: Link, table: Table, where: str) -> None:
    """In one transaction: the schema where it is missing, and the table. Raises `Conflict`."""
    async with link.connection.transaction():
        await link.execute(_LOCK_MAKING)
        await check_free(link, table, where)
        if not await _has_schema(link, table.schema):
            await link.execute(f"CREATE SCHEMA {quoted(table.schema)}")
        await link.execute(
            f'CREATE TABLE IF NOT EXISTS {table.positions} (view text COLLATE "C" PRIMARY KEY, epoch text NOT NULL, '
            "position bigint NOT NULL, stamp text NOT NULL)"
        )
        await make(link, table)


async def make(link: Link, table: Table) -> None:
    """The table, empty and without its search indexes."""
    for statement in _definition(table):
        await link.execute(statement)


def _definition(table: Table) -> list[str]:
    name, dimensions = table.name, table.dimensions
    statements = [
        f'CREATE TABLE {name} (id text COLLATE "C" PRIMARY KEY, text text NOT NULL, metadata jsonb NOT NULL, '
        f"facts jsonb NOT NULL, envelope text, vector vector({dimensions}) NOT NULL)",
        f"COMMENT ON TABLE {name} IS '{table.mark}'",
    ]
    # The planner's statistics are samples of values: of the facts alone, which filters are planned by.
    statements += [
        f"ALTER TABLE {name} ALTER COLUMN {column} SET STATISTICS 0"
        for column in ("id", "text", "metadata", "envelope", "vector")
    ]
    if dimensions <= MAX_INLINE_DIMENSIONS:
        # Beside the rest of the row, not in a table of its own: written and read out in one go.
        statements += [
            f"ALTER TABLE {name} ALTER COLUMN vector SET STORAGE PLAIN",
            f"ALTER TABLE {name} SET (toast_tuple_target = {min(8_160, 4 * dimensions + 2_560)})",
        ]
    return statements


async def check_free(link: Link, table: Table, where: str) -> None:
    """Raises `Conflict` where anything bears the table's name."""
    if await _comment(link, table) is not None:
        raise Conflict(
            f"There is a table {table.name} in {where} already. Nothing was changed.",
            "Name another database or `schema`.",
        )


async def make_extension(link: Link, where: str) -> None:
    """Raises `StoreUnsupported` where the server lacks it, `StoreRefused` where this user may not."""
    ((available,),) = await link.fetch("SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector')")
    if not available:
        raise StoreUnsupported(
            f"{where}: pgvector is not installed on the server.",
            "Install it there (the package is named like `postgresql-18-pgvector`), then try again.",
        )
    try:
        async with link.connection.transaction():
            await link.execute(_LOCK_MAKING)
            await link.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
    except psycopg.errors.InsufficientPrivilege as error:
        raise StoreRefused(
            f"{where}: the database has no extension `vector`, and this user may not make it.",
            "Let the database's owner run `CREATE EXTENSION vector` in it.",
        ) from error


async def exists(link: Link, table: Table) -> bool:
    return _format_of(await _comment(link, table)) is not None


async def check(link: Link, table: Table, where: str) -> None:
    """Raises `ViewDamaged` where there is no table of ours, `SpaceMismatch` for one of another space."""
    comment = await _comment(link, table)
    if comment is None:
        raise ViewDamaged(f"There is no table {table.name} in {where}.", REBUILD)
    format_ = _format_of(comment)
    if format_ is None:
        raise ViewDamaged(f"The table {table.name} in {where} was not made by Whimbrel. It was not touched.", REBUILD)
    if format_ > FORMAT:
        raise NewerHome(
            f"The table {table.name} in {where} was written by a newer version of Whimbrel. Nothing was changed.",
            "Upgrade Whimbrel.",
        )
    ((held,),) = await link.fetch(
        "SELECT coalesce((SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = to_regclass(%s) AND attname = 'vector' AND NOT attisdropped), 'no column `vector`')",
        [table.name],
    )
    if held.rpartition(".")[2] != f"vector({table.dimensions})":
        raise SpaceMismatch(
            f"Table {table.name} in {where} holds {held}; its view's space has {table.dimensions} dimensions.",
            OTHER_SPACE,
        )
    if comment != table.mark:
        raise SpaceMismatch(
            f"Table {table.name} in {where} holds vectors of another space ({comment}); its view's is "
            f"{table.space.key}, of {table.space.model}.",
            OTHER_SPACE,
        )


async def drop(link: Link, table: Table) -> None:
    """The table, if it is ours, and its position."""
    async with link.connection.transaction():
        if await exists(link, table):
            await link.execute(f"DROP TABLE {table.name}")
            await link.execute(f"DELETE FROM {table.positions} WHERE view = %s", [table.bare])


async def _has_schema(link: Link, schema: str) -> bool:
    """Asked first: who may use a schema that is there may lack the right to make one."""
    ((there,),) = await link.fetch("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)", [schema])
    return bool(there)


async def _comment(link: Link, table: Table) -> str | None:
    """The comment of what bears the table's name, empty where it has none; None where nothing does."""
    found = await link.fetch(  # not by `to_regclass`, whose cache may not know yet what another has just made
        "SELECT coalesce(obj_description(c.oid, 'pg_class'), '') FROM pg_class c JOIN pg_namespace n "
        "ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
        [table.schema, table.bare],
    )
    return str(found[0][0]) if found else None


def _format_of(comment: str | None) -> int | None:
    mark, _, rest = (comment or "").partition(", format ")
    number = rest.partition(",")[0]
    return int(number) if mark == _MARK and number.isdigit() else None
