"""The catalog's schema: made, upgraded (a copy is saved first), or refused when it is newer than this program."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import Catalog
from whimbrel.errors import HomeError, NewerHome

if TYPE_CHECKING:
    from alembic.config import Config

REVISIONS: tuple[str, ...] = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008")
"""Every revision that this program knows, oldest first. The last one is the schema of `tables.py`."""

_UPGRADE_LOCK = 0x57484D42  # "WHMB": the key of the advisory lock that upgrades of one Postgres catalog queue on


def ensure_schema(
    catalog: Catalog, *, copies: Path, revisions: Sequence[str] = REVISIONS, versions: Path | None = None
) -> None:
    """Bring the catalog to the newest revision. A copy of an older one is saved in `copies` before anything changes.

    Raises `NewerHome` if the catalog was written by a newer version. `revisions`, and `versions`, the folder that holds
    them, are other than the program's own only in tests.
    """
    current = current_revision(catalog)
    if current == revisions[-1]:
        return
    with _one_at_a_time(catalog) as connection:
        current = _read_revision(connection)  # another process may have been quicker
        if current == revisions[-1]:
            return
        if current is not None and current not in revisions:
            raise NewerHome(
                f"This home was written by a newer version of Whimbrel (schema {current}; this program knows up to "
                f"{revisions[-1]}). Nothing was changed.",
                "Upgrade Whimbrel, or use another WHIMBREL_HOME.",
            )
        if current is not None:
            save_copy(catalog, connection, copies / f"before-{revisions[-1]}-{time.strftime('%Y%m%d-%H%M%S')}")
        upgrade(connection, revisions[-1], versions)
        if current is None:
            connection.execute(t.home.insert(), [{"key": "id", "value": secrets.token_hex(8)}])


def current_revision(catalog: Catalog) -> str | None:
    """The catalog's revision; None for an empty database."""
    with catalog.read() as connection:
        return _read_revision(connection)


def _read_revision(connection: Connection) -> str | None:
    names = inspect(connection).get_table_names()
    if "alembic_version" not in names:
        if "collections" in names and "changes" in names:
            raise HomeError(
                "The catalog has Whimbrel's tables but no schema version; it was not made by this program.",
                "Name an empty database, or restore a backup into one.",
            )
        return None
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if revision is None else str(revision)


@contextmanager
def _one_at_a_time(catalog: Catalog):  # type: ignore[no-untyped-def]
    """A writing transaction that only one upgrading process can be in."""
    with catalog.write() as connection:
        if not catalog.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        yield connection


def upgrade(connection: Connection, revision: str, versions: Path | None = None) -> None:
    """Run the migrations up to a revision, inside the connection's transaction."""
    from alembic import command

    config = alembic_config(versions)
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def alembic_config(versions: Path | None = None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", _escaped(Path(__file__).parent / "migrations"))
    if versions is not None:
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", _escaped(versions))
    return config


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")  # the file format that Alembic's options come from interpolates


def save_copy(catalog: Catalog, connection: Connection, target: Path) -> Path:
    """A copy of the catalog as it is now: an SQLite file, or for Postgres an archive of every table."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if catalog.path is not None:
        copy = target.with_suffix(".db")
        unfinished = target.with_suffix(".part")
        # Through a connection of its own: what a writer has not committed is not part of the copy.
        with closing(sqlite3.connect(catalog.path)) as source, closing(sqlite3.connect(unfinished)) as out:
            source.backup(out)
        return unfinished.replace(copy)
    from whimbrel.catalog.archive import dump_tables

    copy = target.with_suffix(".whimbrel")
    dump_tables(connection, copy)
    return copy
