"""The owner's lease, with its fencing token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, text, update

from whimbrel.catalog import engine
from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import now


@dataclass(frozen=True, slots=True)
class Lease:
    holder: str
    token: int
    expires_at: float
    info: Mapping[str, Any]

    @property
    def alive(self) -> bool:
        return self.expires_at > now()


def read(connection: Connection, name: str) -> Lease | None:
    row = connection.execute(
        select(t.leases.c.holder, t.leases.c.token, t.leases.c.expires_at, t.leases.c.info).where(
            t.leases.c.name == name
        )
    ).first()
    return Lease(*row) if row else None


def take(
    connection: Connection, name: str, holder: str, seconds: float, info: Mapping[str, Any], *, force: bool = False
) -> int | None:
    """Take the lease if it is free, has run out, or (`force`) in any case; returns the new token, or None.

    `force` is for a home whose file lock has been won: its last owner is known to be dead.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"whimbrel-lease-{name}"})
    held = read(connection, name)
    if held is not None and not force and (held.alive or not _is_free(connection, name)):
        return None
    token = held.token + 1 if held else 1
    values = {"holder": holder, "token": token, "expires_at": now() + seconds, "info": dict(info)}
    if held is None:
        connection.execute(t.leases.insert(), {"name": name, **values})
    else:
        connection.execute(update(t.leases).where(t.leases.c.name == name).values(**values))
    return token


def _is_free(connection: Connection, name: str) -> bool:
    """Whether nobody is at the lease's row, which has run out. On Postgres its last holder may be, with a transaction
    that a pause of its process, or of its machine, has left open. Postgres ends one that waits for its next statement;
    not one that stopped within a statement, as in a COPY, so who comes next ends it."""
    if connection.dialect.name != "postgresql":
        return True
    row = select(t.leases.c.name).where(t.leases.c.name == name).with_for_update(skip_locked=True)
    if connection.execute(row).first() is not None:
        return True
    connection.execute(_END_PAUSED, {"seconds": engine.PAUSE_S})
    return False


_END_PAUSED = text("""
    SELECT pg_terminate_backend(held.pid)
    FROM pg_locks held JOIN pg_stat_activity session ON session.pid = held.pid
    WHERE held.locktype = 'relation' AND held.relation = 'leases'::regclass
      AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND held.mode IN ('RowShareLock', 'RowExclusiveLock') AND held.granted AND held.pid <> pg_backend_pid()
      AND session.usename = current_user
      AND clock_timestamp() - session.xact_start > make_interval(secs => :seconds)
""")
"""Of the sessions that have the lease's row, by their fence: others only read it."""


def renew(connection: Connection, name: str, token: int, seconds: float) -> bool:
    """False when the lease has gone to another."""
    changed = connection.execute(
        update(t.leases).where(t.leases.c.name == name, t.leases.c.token == token).values(expires_at=now() + seconds)
    ).rowcount
    return changed == 1


def release(connection: Connection, name: str, token: int) -> None:
    connection.execute(
        update(t.leases).where(t.leases.c.name == name, t.leases.c.token == token).values(expires_at=0.0)
    )
