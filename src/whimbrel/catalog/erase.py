"""After an erasure: make what was deleted leave the database's files.

SQLite overwrites what it deletes (`secure_delete`), but not the copies that moving rows between pages has left in the
gaps of pages: after 4 of 12 runs of random writes and deletions a deleted text could still be read from the file.
Postgres overwrites nothing. So the files are written anew.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import Catalog

_HOLDING_TEXT = (
    *(t.documents, t.segments, t.chunks, t.texts, t.vectors, t.changes, t.uploads, t.jobs),
    *(t.turns, t.turn_documents, t.feedback),
)
_LOCK_TIMEOUT_MS = 2_000
"""Readers that come after a request for an exclusive lock queue behind it: so ask for a short time, and ask again."""


_MAY_VACUUM_STATISTICS = text(
    "SELECT rolsuper OR pg_has_role(datdba, 'USAGE') FROM pg_roles, pg_database "
    "WHERE rolname = current_user AND datname = current_database()"
)


@dataclass(frozen=True, slots=True)
class ScrubReport:
    done: bool
    """Nothing that was deleted before the call is left in the database's files."""
    held_by: Sequence[str]
    """What stood in the way, in words; empty when done. Call again later."""
    notes: Sequence[str]
    """What this cannot reach, in words."""
    seconds: float


def scrub(catalog: Catalog, *, patience_s: float = 30.0) -> ScrubReport:
    """Rewrite the files so that deleted data leaves them. Waits up to `patience_s` for old readers to end.

    SQLite: `VACUUM`, then the write-ahead log is emptied; reads go on, writes wait. Postgres: `VACUUM FULL` of each
    table that holds text or derives from it; reads of a table wait while it is rewritten.
    """
    begun = time.monotonic()
    deadline = begun + patience_s
    notes: list[str] = []
    held = _scrub_sqlite(catalog, deadline) if catalog.is_sqlite else _scrub_postgres(catalog, deadline, notes)
    return ScrubReport(not held, held, notes, time.monotonic() - begun)


def _scrub_sqlite(catalog: Catalog, deadline: float) -> list[str]:
    # VACUUM makes a copy as large as the catalog: in a file, and with a small cache (with the writer's, a catalog of
    # 270 MB took 330 MB of memory; so it takes 55 MB). The checkpoint must not wait as long as the busy timeout.
    with catalog.bare() as connection:
        connection.execute(text("PRAGMA temp_store = FILE"))
        connection.execute(text("VACUUM"))
        connection.execute(text("PRAGMA busy_timeout = 500"))
        while connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).one()[0]:
            if time.monotonic() > deadline:
                return ["A process is still reading from before the deletion; the write-ahead log holds old pages."]
            time.sleep(0.1)
    return []


def _scrub_postgres(catalog: Catalog, deadline: float, notes: list[str]) -> list[str]:
    with catalog.bare() as connection:
        held = _older_snapshots(connection, deadline)
        if held:
            return held
        connection.execute(text(f"SET lock_timeout = {_LOCK_TIMEOUT_MS}"))
        try:
            for table in _HOLDING_TEXT:
                if not _vacuum(connection, table.name, deadline):
                    return [f"Table {table.name} stayed in use."]
            # The planner's statistics hold values of columns, titles and short texts among them.
            connection.execute(text(f"ANALYZE {', '.join(table.name for table in _HOLDING_TEXT)}"))
            if not connection.execute(_MAY_VACUUM_STATISTICS).scalar():  # it would be skipped with a mere warning
                notes.append(
                    "The planner's statistics may hold single values until the database's owner runs "
                    "VACUUM FULL pg_catalog.pg_statistic."
                )
            elif not _vacuum(connection, "pg_catalog.pg_statistic", deadline):
                return ["Postgres's table of statistics stayed in use."]
        finally:
            connection.execute(text("RESET lock_timeout"))
        try:
            connection.execute(text("CHECKPOINT"))  # the old files are unlinked by it
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "42501":  # insufficient_privilege
                raise
            notes.append("This user may not run CHECKPOINT: the old files go at the server's next one.")
    notes.append(
        "Postgres's write-ahead log keeps old changes until the server recycles it; archives of it and backups of the "
        "server keep theirs."
    )
    return []


def _older_snapshots(connection: Connection, deadline: float) -> list[str]:
    """Wait for everything that could still see the deleted rows: VACUUM FULL keeps what an old snapshot sees."""
    now = connection.execute(text("SELECT pg_snapshot_xmax(pg_current_snapshot())::xid::text")).scalar_one()
    query = text(
        """
        SELECT 'process ' || pid || ' (' || coalesce(application_name, '') || ')' FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND (datname = current_database() OR datname IS NULL)
          AND greatest(age(backend_xmin), age(backend_xid)) > age(CAST(:now AS xid))
        UNION ALL SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts
        WHERE database = current_database() AND age(transaction) > age(CAST(:now AS xid))
        UNION ALL SELECT 'replication slot ' || slot_name FROM pg_replication_slots
        WHERE age(xmin) > age(CAST(:now AS xid))
        """
    )
    while True:
        held = list(connection.execute(query, {"now": now}).scalars())
        if not held or time.monotonic() > deadline:
            return [f"Postgres {name} still sees what was deleted." for name in held]
        time.sleep(0.1)


def _vacuum(connection: Connection, table: str, deadline: float) -> bool:
    while True:
        try:
            connection.execute(text(f"VACUUM (FULL) {table}"))
            return True
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
                raise
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
