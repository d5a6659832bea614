"""Opening the catalog's database, and the two kinds of transaction on it."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, create_engine, event, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from whimbrel.catalog import tables as t
from whimbrel.errors import CatalogUnavailable, DiskFull, Fenced, HomeError, MissingExtra, WhimbrelError

AnyRow = Row[*tuple[Any, ...]]

BUSY_TIMEOUT_S = 60.0
READ_CACHE_KIB = 8_192
WRITE_CACHE_KIB = 65_536
PAUSE_S = 30.0
"""A process that stops in the middle of a writing transaction (its machine sleeps, or is cut off) keeps all other
writers waiting, and the lease from being taken over: after so long Postgres ends the transaction."""


class Catalog:
    """The record: one database, SQLite or Postgres.

    `read()` and `write()` give a connection inside a transaction. On SQLite a write begins IMMEDIATE: a read that turns
    into a write ignores the busy timeout and fails.
    """

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._write_lock = threading.Lock()
        self._readers = _sqlite_engine(self.url, READ_CACHE_KIB, pool_size) if self.is_sqlite else None
        self._writers = (
            _sqlite_engine(self.url, WRITE_CACHE_KIB, 1) if self.is_sqlite else _postgres_engine(self.url, pool_size)
        )

    @property
    def path(self) -> Path | None:
        """The file of an SQLite catalog."""
        return Path(self.url.database) if self.is_sqlite and self.url.database else None

    @property
    def engine(self) -> Engine:
        return self._writers

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One snapshot: REPEATABLE READ on Postgres; on SQLite, of the first statement."""
        engine = self._readers if self._readers is not None else self._writers
        with _translated(self), engine.connect() as connection:
            if not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextmanager
    def write(self, *, fence: int | None = None) -> Iterator[Connection]:
        """A short writing transaction: no model call, no file read inside it.

        With `fence`, the owner's token, raises `Fenced` when another owner has taken over.
        """
        if self.is_sqlite:
            with self._write_lock, _translated(self), self._writers.connect() as connection:
                connection.execution_options(whimbrel_write=True)
                with connection.begin():
                    _check_fence(connection, fence)
                    yield connection
        else:
            with _translated(self), self._writers.begin() as connection:
                connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {int(PAUSE_S * 1000)}")
                _check_fence(connection, fence)
                yield connection

    @contextmanager
    def bare(self) -> Iterator[Connection]:
        """A connection outside of any transaction, for VACUUM, checkpoints and the like.

        On SQLite it is one of its own, closed at the end: what takes minutes there keeps nobody in this process from
        the one connection that writes, and what is set on it (a smaller cache) ends with it.
        """
        engine = _sqlite_engine(self.url, READ_CACHE_KIB, 1) if self.is_sqlite else self._writers
        try:
            with _translated(self), engine.connect() as connection:
                yield connection.execution_options(isolation_level="AUTOCOMMIT")
        finally:
            if self.is_sqlite:
                engine.dispose()

    def ping(self) -> None:
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        if self._readers is not None:
            self._readers.dispose()
        self._writers.dispose()


def _check_fence(connection: Connection, fence: int | None) -> None:
    if fence is None:
        return
    query = select(t.leases.c.token).where(t.leases.c.name == "owner").with_for_update(read=True)
    if connection.execute(query).scalar() != fence:
        raise Fenced(
            "Another process has become the owner of this home; this one may no longer change it.",
            "Nothing was lost: the new owner goes on from the same cursors. Restart this process.",
        )


def _sqlite_engine(url: Any, cache_kib: int, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=24 if pool_size > 1 else 0,
        pool_timeout=BUSY_TIMEOUT_S,
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S, "cached_statements": 256},
    )

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing on its own; "begin" below does
        cursor = connection.cursor()
        cursor.execute("PRAGMA page_size = 16384")
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA secure_delete = ON")  # what is erased leaves the free pages too
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA temp_store = MEMORY")
        cursor.execute(f"PRAGMA cache_size = -{cache_kib}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("whimbrel_write") else "BEGIN")

    return engine


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Several processes that open a new file at once want to change its mode at once, and SQLite lets none of them
    wait: the busy timeout does not hold for this."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _postgres_engine(url: Any, pool_size: int) -> Engine:
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            "The catalog is on Postgres, and its driver is not installed.",
            "Install the extra: pip install 'whimbrel[postgres]'",
        ) from error
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=24,
        pool_pre_ping=True,
        connect_args={"connect_timeout": 10, "application_name": "whimbrel"},
    )


@contextmanager
def _translated(catalog: Catalog) -> Iterator[None]:
    try:
        yield
    except WhimbrelError:
        raise
    except DBAPIError as error:
        raise translate(error, catalog) from error
    except SQLAlchemyError as error:
        raise CatalogUnavailable(f"The catalog did not answer: {type(error).__name__}.", _RETRY) from error


_RETRY = "What was committed is safe. Check the database, then run the command again; `whimbrel doctor` explains more."


def translate(error: DBAPIError, catalog: Catalog) -> WhimbrelError:
    """The named error for what the database said. Never carries statement parameters, which hold documents' text."""
    said = str(error.orig).strip().splitlines()[0] if error.orig is not None and str(error.orig).strip() else ""
    where = str(catalog.path) if catalog.is_sqlite else f"Postgres at {catalog.url.host or 'its socket'}"
    if re.search(r"disk is full|No space left|could not extend file", said):
        return DiskFull(
            f"No space left for the catalog ({where}). The last change was not written; all before it is safe.",
            "Free some space and run the command again: it goes on where it stopped.",
        )
    if "readonly database" in said or "attempt to write" in said:
        return HomeError(
            f"The catalog ({where}) is read-only. Nothing was changed.",
            "Give this user write permission on the home, or set WHIMBREL_HOME to another folder.",
        )
    if "unable to open database file" in said:
        return HomeError(
            f"The catalog ({where}) cannot be opened or created.",
            "Check that the folder exists and that this user may write to it, or set WHIMBREL_HOME.",
        )
    if "malformed" in said or "not a database" in said or "disk I/O error" in said:
        return HomeError(
            f"The catalog ({where}) is damaged: {said}.",
            "Run `whimbrel doctor`; restore the last backup with `whimbrel restore FILE` into a new home.",
        )
    if "locked" in said:
        return CatalogUnavailable(
            f"The catalog ({where}) stayed locked by another process for {BUSY_TIMEOUT_S:.0f} s. Nothing was written.",
            "Find the process that holds it (`whimbrel doctor`), then try again.",
        )
    # Integrity errors name values; keep only the first words, which name the constraint.
    said = re.sub(r"\(.*\)|DETAIL.*", "", said)[:200]
    return CatalogUnavailable(f"The catalog ({where}) refused: {type(error.orig).__name__}: {said}", _RETRY)


def take_keys(connection: Connection, name: str, count: int) -> int:
    """`count` new integer keys for table `name`; returns the first. The row stays locked until the commit."""
    last = connection.execute(
        t.counters.update()
        .where(t.counters.c.name == name)
        .values(value=t.counters.c.value + count)
        .returning(t.counters.c.value)
    ).scalar_one()
    return int(last) - count + 1


def now() -> float:
    """Seconds since the Unix epoch."""
    return time.time()
