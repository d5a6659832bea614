"""Make deleted rows leave the database's files.

Postgres overwrites nothing: a row that VACUUM has removed can be read from its page until another is put there. So the
rows that are left are written anew, beside the table, and take its name: searches go on until that moment. `VACUUM
FULL` would make them wait for the whole of it, the building of the index included.
"""

from __future__ import annotations

import time

import psycopg

from whimbrel.errors import StoreUnavailable
from whimbrel.stores.postgres import index
from whimbrel.stores.postgres.pool import Link
from whimbrel.stores.postgres.rows import COLUMNS
from whimbrel.stores.postgres.table import Table, make, quoted

PATIENCE_S = 60.0
LOCK_S = 2
"""Who comes after a request for a table of one's own waits behind it: so it is asked for a short time, and again."""


async def rewrite(link: Link, table: Table, rows: int) -> None:
    """The table anew, with the rows that it has. Raises `StoreUnavailable` when others read it without end."""
    new = table.beside("new")
    async with link.connection.transaction():
        await link.execute("SET LOCAL statement_timeout = 0")
        await link.execute(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE")
        indexed = await index.is_built(link, table)
        await make(link, new)
        await link.execute(f"INSERT INTO {new.name} ({COLUMNS}) SELECT {COLUMNS} FROM {table.name}")
        if indexed:
            await index.build(link, new, rows)
        await _take_alone(link, table)
        await link.execute(f"DROP TABLE {table.name}")
        await link.execute(f"ALTER TABLE {new.name} RENAME TO {quoted(table.bare)}")


async def forget_samples(link: Link, table: Table) -> None:
    """Write the planner's statistics anew, which hold values of rows; and unlink old files. As far as this user may:
    the database's owner may the first, a member of `pg_checkpoint` the second."""
    await link.vacuum(f"VACUUM (ANALYZE) {table.name}")
    for statement, allowed in (
        ("VACUUM (FULL) pg_catalog.pg_statistic", _MAY_VACUUM),
        ("CHECKPOINT", _MAY_CHECKPOINT),
    ):
        ((may,),) = await link.fetch(allowed)
        if may:
            await link.vacuum(statement)


_MAY_VACUUM = (
    "SELECT rolsuper OR pg_has_role(datdba, 'USAGE') FROM pg_roles, pg_database "
    "WHERE rolname = current_user AND datname = current_database()"
)
_MAY_CHECKPOINT = (
    "SELECT rolsuper OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'pg_checkpoint' "
    "AND pg_has_role(r.oid, 'USAGE')) FROM pg_roles WHERE rolname = current_user"
)


async def _take_alone(link: Link, table: Table) -> None:
    deadline = time.monotonic() + PATIENCE_S
    await link.execute(f"SET LOCAL lock_timeout = '{LOCK_S}s'")
    while True:
        try:
            async with link.connection.transaction():
                await link.execute(f"LOCK TABLE {table.name} IN ACCESS EXCLUSIVE MODE")
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() < deadline:
                continue
            raise StoreUnavailable(
                f"Table {table.name} stayed in use for {PATIENCE_S:.0f} s: what was deleted is still in its files.",
                "Nothing was lost. Look for long transactions in `pg_stat_activity`, then erase again.",
            ) from None
        return
