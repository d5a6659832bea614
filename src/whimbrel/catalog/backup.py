"""Backup and restore: the record of a home as one archive, and back into an empty home.

What belongs to a place and not to the record stays out: views (they follow from the record), the change log, leases.
Restored collections begin a new epoch at the position where they were, so no index made before can be mistaken for one
that follows the restored record. The home that is restored into keeps its own id, since the one that was saved may
still be alive; `restored_from` in the `home` table names that.

Of a collection that was on its way to another chunking the chunks of the live one are saved: a move that is begun again
finds the vectors that were made for the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import URL, Connection, MetaData, delete, inspect, select, text, update

from whimbrel.catalog import bulk, log
from whimbrel.catalog import tables as t
from whimbrel.catalog.archive import RETIRED_TABLES, ArchiveReader, Progress, damaged, open_archive, write_archive
from whimbrel.catalog.chunkings import keep_one, live_chunks
from whimbrel.catalog.engine import Catalog, now
from whimbrel.catalog.jobs import ACTIVE
from whimbrel.catalog.migrate import REVISIONS, upgrade
from whimbrel.domain import JobState
from whimbrel.errors import BackupError, Conflict

LEFT_OUT = frozenset(
    {
        *("leases", "views", "adoptions", "changes", "commits", "moves", "rejects", "processes", "alembic_version"),
        *("breakers", "rates"),
    }
)


@dataclass(frozen=True, slots=True)
class BackupReport:
    path: Path
    bytes: int
    collections: int
    rows: Mapping[str, int]
    """By table."""


@dataclass(frozen=True, slots=True)
class RestoreReport:
    created_at: str
    """When the backup was made, ISO 8601."""
    whimbrel: str
    """The version that made it."""
    collections: Sequence[str]
    rows: Mapping[str, int]
    """By table."""
    requeued: int
    """Jobs that were running when the backup was made, and begin again from their cursors."""


def backup(
    catalog: Catalog, target: Path, *, version: str, overwrite: bool = False, progress: Progress | None = None
) -> BackupReport:
    """Save the catalog to `target` in one snapshot, while others go on writing.

    Raises `Conflict` if the file exists, `DiskFull`, or `BackupError` if it cannot be written or the catalog's own file
    is damaged: an archive of that would look sound.
    """
    with catalog.read() as connection:
        if catalog.is_sqlite:
            _refuse_if_damaged(connection)
        manifest = write_archive(
            connection,
            target,
            _saved(),
            version=version,
            overwrite=overwrite,
            progress=progress,
            only={"chunks": live_chunks(connection)},
        )
    rows = {name: entry.rows for name, entry in manifest.tables.items()}
    return BackupReport(target, target.stat().st_size, rows["collections"], rows)


def _refuse_if_damaged(connection: Connection) -> None:
    said = "\n".join(connection.execute(text("PRAGMA quick_check(3)")).scalars())
    if said != "ok":
        raise BackupError(
            f"The catalog's file is damaged ({said.splitlines()[-1]}). Nothing was saved.",
            "`whimbrel doctor` says more. Keep the backups that you have; copy the file itself before anything else.",
        )


def _saved() -> list[str]:
    """The tables of a backup, those that others refer to first."""
    return [table.name for table in t.metadata.sorted_tables if table.name not in LEFT_OUT]


def restore(
    path: Path,
    catalog: Catalog,
    *,
    progress: Progress | None = None,
    revisions: Sequence[str] = REVISIONS,
    versions: Path | None = None,
) -> RestoreReport:
    """Fill an empty catalog, on either database, from an archive: verified first, then in one transaction.

    The catalog has no views then; its collections' view pointers are null. Killed at any moment it leaves the catalog
    as it was. On SQLite the transaction needs about twice the archive's size on the disk until it ends. The home must
    be unowned. Raises `BackupError` for a damaged or newer archive, `Conflict` for a catalog that is not empty.
    """
    with open_archive(path) as archive:
        if archive.manifest.schema not in revisions:
            raise BackupError(
                f"The archive {path} was made by a newer version of Whimbrel (schema {archive.manifest.schema}; this "
                f"program knows up to {revisions[-1]}). Nothing was written.",
                "Upgrade Whimbrel, then restore it.",
            )
        archive.verify(progress)
        with _at(revisions[-1], archive, versions) as current, catalog.write() as connection:
            report = _fill(connection, current, progress)
    with catalog.bare() as connection:
        analyze = f"ANALYZE {', '.join(t.metadata.tables)}"
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)" if catalog.is_sqlite else analyze))
    return report


def _fill(connection: Connection, archive: ArchiveReader, progress: Progress | None) -> RestoreReport:
    _refuse_unless_empty(connection)
    given = dict(connection.execute(select(t.counters.c.name, t.counters.c.value)).all())
    own_id = connection.execute(select(t.home.c.value).where(t.home.c.key == "id")).scalar_one()
    for table in reversed(t.metadata.sorted_tables):
        if table.name != "leases":
            connection.execute(delete(table))
    _load(connection, archive, progress)
    keep_one(connection)  # a copy that was made before an upgrade holds all that there was

    for name, value in given.items():  # a key that this home has given out is not given out again
        counters = t.counters.c
        connection.execute(update(t.counters).where(counters.name == name, counters.value < value).values(value=value))
    connection.execute(delete(t.home).where(t.home.c.key.in_(("id", "restored_from", "restored_at"))))
    stated = {"id": own_id, "restored_from": archive.manifest.home}
    stated["restored_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    connection.execute(t.home.insert(), [{"key": key, "value": value} for key, value in stated.items()])
    # A job that was bound to the machine that it read files on may run here: what it cannot find, it says.
    connection.execute(update(t.jobs).where(t.jobs.c.state.in_(ACTIVE)).values(host=""))
    requeued = connection.execute(
        update(t.jobs).where(t.jobs.c.state == JobState.RUNNING).values(state=JobState.QUEUED)
    ).rowcount
    return RestoreReport(
        archive.manifest.created_at,
        archive.manifest.whimbrel,
        _begin_epochs(connection),
        {name: entry.rows for name, entry in archive.manifest.tables.items()},
        requeued,
    )


def _refuse_unless_empty(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # nobody may make a collection or a job between this look and the end
        connection.execute(text("LOCK TABLE collections, jobs IN SHARE ROW EXCLUSIVE MODE"))
    names = list(connection.execute(select(t.collections.c.name).order_by(t.collections.c.name).limit(5)).scalars())
    if names:
        raise Conflict(
            f"This home holds collections already ({', '.join(names)}). Nothing was written.",
            "Restore into an empty home: set WHIMBREL_HOME to a new folder, or name an empty Postgres database.",
        )
    if connection.execute(select(t.jobs.c.id).where(t.jobs.c.state.in_(ACTIVE)).limit(1)).first():
        raise Conflict(
            "This home has jobs that are not done. Nothing was written.",
            "Let them finish or cancel them (`whimbrel jobs list`), or restore into a new home.",
        )


def _load(connection: Connection, archive: ArchiveReader, progress: Progress | None = None) -> None:
    """Put the archive's rows into the tables, which are at the archive's revision and empty."""
    wanted = (set(inspect(connection).get_table_names()) & {*t.metadata.tables, *RETIRED_TABLES}) - LEFT_OUT
    for name in wanted ^ (set(archive.manifest.tables) - LEFT_OUT):
        raise damaged(archive.path, f"its table {name} is missing, or is none of its schema revision")
    tables = MetaData()
    tables.reflect(connection, only=sorted(wanted))
    total = sum(entry.rows for entry in archive.manifest.tables.values())
    done = 0
    for table in tables.sorted_tables:
        entry = archive.manifest.tables[table.name]
        if set(entry.columns) != set(table.columns.keys()):
            raise damaged(archive.path, f"its table {table.name} has other columns than its schema revision says")
        columns = list(entry.columns)
        for batch in archive.batches(table.name):
            bulk.insert_values(connection, table, columns, zip(*batch, strict=True))
            done += len(batch[0])
            if progress:
                progress(table.name, done, total)


def _begin_epochs(connection: Connection) -> list[str]:
    """Every collection begins a new epoch where it was, with an empty log. Returns their names.

    Positions go on from the old head: one that a client was given before means what it meant.
    """
    names = []
    for key, name, head in connection.execute(
        select(t.collections.c.id, t.collections.c.name, t.collections.c.head).order_by(t.collections.c.name)
    ).all():
        stamp = log.new_stamp()
        values = {"epoch": log.new_stamp(), "stamp": stamp, "floor": head}
        values |= {"store_view_id": None, "lexicon_view_id": None}
        connection.execute(update(t.collections).where(t.collections.c.id == key).values(values))
        commit = {"collection_id": key, "position": head, "stamp": stamp, "at": now()}
        connection.execute(t.commits.insert(), commit)
        names.append(name)
    return names


@contextmanager
def _at(revision: str, archive: ArchiveReader, versions: Path | None) -> Iterator[ArchiveReader]:
    """The archive at a revision: itself, or, for an older one, a copy that went through a scratch catalog."""
    if archive.manifest.schema == revision:
        yield archive
        return
    with tempfile.TemporaryDirectory(prefix="whimbrel-restore-") as folder:
        scratch = Catalog(URL.create("sqlite", database=str(Path(folder) / "scratch.db")).render_as_string())
        try:
            with scratch.write() as connection:
                upgrade(connection, archive.manifest.schema, versions)
                connection.execute(text("DELETE FROM counters"))  # the first migration fills it
                _load(connection, archive)
                upgrade(connection, revision, versions)
            upgraded = Path(folder) / "upgraded.whimbrel"
            with scratch.read() as connection:
                write_archive(connection, upgraded, _saved(), version=archive.manifest.whimbrel)
        finally:
            scratch.close()
        with open_archive(upgraded) as current:
            yield current
