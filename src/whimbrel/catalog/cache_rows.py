"""Where what is cached lies: a file of its own beside an SQLite catalog, or a table beside those of a Postgres one.

Nothing of it is the record: no backup holds it, no migration knows it, and a file that is damaged is begun anew. On
Postgres the table is unlogged, so that no text of an answer goes into the write-ahead log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    inspect,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from whimbrel.catalog.engine import Catalog

ROW_BYTES = 150
"""What a row takes beside its data."""
MOST_KEYS = 500
"""In one statement."""

_metadata = MetaData()
entries = Table(
    "model_cache",
    _metadata,
    Column("kind", Text, nullable=False),
    Column("key", LargeBinary(16), nullable=False),
    Column("scope", BigInteger, nullable=False),
    Column("state", LargeBinary(16), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("size", Integer, nullable=False),
    Column("made_at", Double, nullable=False),
    Column("used_at", Double, nullable=False),
    PrimaryKeyConstraint("kind", "key"),
    Index("ix_model_cache_kind_made_at", "kind", "made_at", "size"),
    Index("ix_model_cache_used_at", "used_at", "size"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    kind: str
    key: bytes
    data: bytes
    made_at: float
    """Unix time."""
    scope: int = 0
    """The collection's key, of what belongs to one."""
    state: bytes = b""
    """Of the collection, as a hash."""


class Rows:
    """Opened at first use. Raises SQLAlchemy's errors: what they mean is decided above."""

    def __init__(self, catalog: Catalog, file: Path) -> None:
        self._catalog = catalog
        self._file = file
        self._engine: Engine | None = None

    def read(self, kind: str, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        found: dict[bytes, Entry] = {}
        for start in range(0, len(keys), MOST_KEYS):
            query = select(entries.c.key, entries.c.data, entries.c.made_at, entries.c.scope).where(
                entries.c.kind == kind, entries.c.key.in_(keys[start : start + MOST_KEYS])
            )
            with self._begun() as connection:
                for row in connection.execute(query):
                    found[bytes(row.key)] = Entry(kind, bytes(row.key), bytes(row.data), row.made_at, row.scope)
        return found

    def write(self, new: Sequence[Entry], used: Sequence[tuple[str, bytes]]) -> None:
        """Put in `new`, in the place of what has their keys, and note that `used` were."""
        now = time.time()
        rows = [
            {**asdict(one), "used_at": now, "size": len(one.data) + ROW_BYTES}
            for one in {(one.kind, one.key): one for one in new}.values()
        ]
        with self._begun() as connection:
            if rows:
                put: Any = (sqlite if self._catalog.is_sqlite else postgresql).insert(entries)
                changed = {column.name: put.excluded[column.name] for column in entries.c if not column.primary_key}
                ordered = sorted(rows, key=lambda row: (row["kind"], row["key"]))  # others that write wait, never lock
                connection.execute(put.on_conflict_do_update(index_elements=["kind", "key"], set_=changed), ordered)
            for start in range(0, len(used), MOST_KEYS):
                some = sorted(used[start : start + MOST_KEYS])
                which = tuple_(entries.c.kind, entries.c.key).in_(some)
                connection.execute(update(entries).where(which).values(used_at=now))

    def forget(
        self,
        kind: str,
        scope: int | None = None,
        *,
        made_before: float | None = None,
        other_than: bytes | None = None,
    ) -> None:
        """`other_than`: only what was kept in another state."""
        where = [entries.c.kind == kind]
        if other_than is not None:
            where.append(entries.c.state != other_than)
        if scope is not None:
            where.append(entries.c.scope == scope)
        if made_before is not None:
            where.append(entries.c.made_at < made_before)
        with self._begun() as connection:
            connection.execute(delete(entries).where(*where))

    def bytes(self) -> int:
        with self._begun() as connection:
            return int(connection.execute(select(func.coalesce(func.sum(entries.c.size), 0))).scalar_one())

    def figures(self) -> Mapping[str, tuple[int, int]]:
        """Entries and bytes by kind."""
        query = select(entries.c.kind, func.count(), func.sum(entries.c.size)).group_by(entries.c.kind)
        with self._begun() as connection:
            return {kind: (int(count), int(size)) for kind, count, size in connection.execute(query)}

    def shrink(self, to_bytes: int) -> None:
        """Remove what was not used for longest, until the rest has at most `to_bytes`."""
        while (size := self.bytes()) > to_bytes:
            count = sum(found for found, _ in self.figures().values())
            most = max(1, count * (size - to_bytes) // size)
            with self._begun() as connection:
                oldest = select(entries.c.kind, entries.c.key).order_by(entries.c.used_at).limit(most)
                connection.execute(delete(entries).where(tuple_(entries.c.kind, entries.c.key).in_(oldest)))

    def scrub(self) -> None:
        """Have what was removed leave the files."""
        with self._opened().connect() as bare:
            connection = bare.execution_options(isolation_level="AUTOCOMMIT")
            if not self._catalog.is_sqlite:
                connection.execute(text(f"VACUUM (FULL) {entries.name}"))
                return
            connection.execute(text("VACUUM"))
            for _ in range(50):  # a reader of this moment keeps it from the log's end
                if not connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).one()[0]:
                    return
                time.sleep(0.1)
            raise TimeoutError("the cache's log stayed in use")

    def exists(self) -> bool:
        """Whether anything was ever kept."""
        if self._catalog.is_sqlite:
            return self._file.exists()
        with self._catalog.read() as connection:
            return bool(connection.execute(text(f"SELECT to_regclass('{entries.name}') IS NOT NULL")).scalar())

    def begin_anew(self) -> None:
        """A damaged file holds nothing that cannot be computed again."""
        self.close()
        if self._catalog.is_sqlite:
            for ending in ("", "-wal", "-shm"):
                self._file.with_name(self._file.name + ending).unlink(missing_ok=True)

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None and self._catalog.is_sqlite:
            engine.dispose()

    @contextmanager
    def _begun(self) -> Iterator[Connection]:
        with self._opened().begin() as connection:
            yield connection

    def _opened(self) -> Engine:
        if self._engine is None:
            engine = _sqlite_file(self._file) if self._catalog.is_sqlite else self._catalog.engine
            _make_table(engine, unlogged=not self._catalog.is_sqlite)
            self._engine = engine
        return self._engine


def _make_table(engine: Engine, *, unlogged: bool) -> None:
    if inspect(engine).has_table(entries.name):
        return
    try:
        with engine.begin() as connection:
            _metadata.create_all(connection)
            if unlogged:
                connection.execute(text(f"ALTER TABLE {entries.name} SET UNLOGGED"))
    except DBAPIError:
        if not inspect(engine).has_table(entries.name):  # else another process has made it in this moment
            raise


def _sqlite_file(file: Path) -> Engine:
    engine = create_engine(f"sqlite:///{file}", pool_size=4, connect_args={"check_same_thread": False, "timeout": 5.0})

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON", "temp_store = MEMORY",
                       "cache_size = -2048", "journal_size_limit = 8388608"):  # fmt: skip
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def is_damage(error: Exception) -> bool:
    said = str(error.orig) if isinstance(error, DBAPIError) else ""
    return "malformed" in said or "not a database" in said
