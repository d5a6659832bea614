"""The catalog's schema, made by the migrations once in a process, and by the same statements again for each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, inspect

from whimbrel.catalog import migrate

_through_migrations = migrate.upgrade
_made: dict[str, list[tuple[str, Any]]] = {}
"""By the database's dialect: what the migrations send to an empty one, with its values."""


def upgrade(connection: Connection, revision: str, versions: Path | None = None) -> None:
    """As the program's. All but the first empty database of a process get their tables without Alembic, which takes
    most of the time of opening a home."""
    if versions is not None or revision != migrate.REVISIONS[-1] or inspect(connection).get_table_names():
        _through_migrations(connection, revision, versions)
        return
    dialect = connection.dialect.name
    if dialect not in _made:
        with _sent(connection) as statements:
            _through_migrations(connection, revision)
        _made[dialect] = [(sql, values) for sql, values in statements if _changes(sql)]
        return
    for sql, values in _made[dialect]:
        connection.exec_driver_sql(sql, values).close()


@contextmanager
def through_migrations() -> Iterator[None]:
    """For tests of the migrations."""
    migrate.upgrade = _through_migrations
    try:
        yield
    finally:
        migrate.upgrade = upgrade


@contextmanager
def _sent(connection: Connection) -> Iterator[list[tuple[str, Any]]]:
    statements: list[tuple[str, Any]] = []

    def keep(_connection: Any, _cursor: Any, sql: str, values: Any, _context: Any, many: bool) -> None:
        statements.append((sql, list(values) if many else values or None))

    event.listen(connection, "before_cursor_execute", keep)
    try:
        yield statements
    finally:
        event.remove(connection, "before_cursor_execute", keep)


def _changes(sql: str) -> bool:
    return sql.split(None, 1)[0].upper() not in ("SELECT", "PRAGMA", "SHOW")
