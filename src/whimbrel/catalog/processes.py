"""The processes that search, as rows: written only while a move is under way, so that its switch can wait for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select, update

from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import now

GONE_S = 10.0
"""A process that has not been seen for so long has ended, or is no longer of this catalog."""


@dataclass(frozen=True, slots=True)
class Process:
    id: str
    info: Mapping[str, Any]
    """`host`, `pid`."""
    prepared: Sequence[int]
    """The views that it has open and warm."""
    error: str
    """Why it has not all of them."""


def seen(connection: Connection, process: str, info: Mapping[str, Any], prepared: Sequence[int], error: str) -> None:
    values = {"info": dict(info), "prepared": list(prepared), "error": error, "seen_at": now()}
    changed = connection.execute(update(t.processes).where(t.processes.c.id == process).values(**values)).rowcount
    if not changed:
        connection.execute(delete(t.processes).where(t.processes.c.seen_at < now() - 60 * GONE_S))
        connection.execute(t.processes.insert(), {"id": process, **values})


def leave(connection: Connection, process: str) -> None:
    connection.execute(delete(t.processes).where(t.processes.c.id == process))


def present(connection: Connection) -> list[Process]:
    columns = t.processes.c
    query = select(columns.id, columns.info, columns.prepared, columns.error).where(columns.seen_at > now() - GONE_S)
    return [Process(*row) for row in connection.execute(query)]
