"""The owner's lease, with its fencing token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, update

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
        from sqlalchemy import text

        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"whimbrel-lease-{name}"})
    held = read(connection, name)
    if held is not None and held.alive and not force:
        return None
    token = held.token + 1 if held else 1
    values = {"holder": holder, "token": token, "expires_at": now() + seconds, "info": dict(info)}
    if held is None:
        connection.execute(t.leases.insert(), {"name": name, **values})
    else:
        connection.execute(update(t.leases).where(t.leases.c.name == name).values(**values))
    return token


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
