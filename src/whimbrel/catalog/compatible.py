"""Spaces that another embedder serves: a person has declared it, by what was measured.

The vectors of record stay those of the space; what is embedded from then on, queries and new texts, comes from the
declared model. The decision holds for every collection whose vectors are of the space.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, select, update

from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import AnyRow, now
from whimbrel.domain import Space
from whimbrel.errors import Conflict


class CompatibleState(StrEnum):
    SERVING = "serving"
    """The declared model serves the space; the way back is open."""
    FINALISED = "finalised"
    """It serves for good, or until another is declared."""
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True)
class Compatible:
    id: str
    space_id: int
    collection: str
    """By whose chunks it was measured."""
    embedder: str
    """`provider:model` of what serves the space."""
    space: Space
    """The model's own."""
    checks: Mapping[str, Any]
    """What was measured."""
    state: CompatibleState
    created_at: float
    updated_at: float

    def as_dict(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "id": self.id,
            "collection": self.collection,
            "state": self.state.value,
            "embedder": self.embedder,
            "model": self.space.model,
            "numeric": self.space.numeric,
            "checks": dict(self.checks),
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }


_OF = select(t.compatible).order_by(t.compatible.c.created_at.desc(), t.compatible.c.id)


def declare(
    connection: Connection, space_id: int, collection: str, embedder: str, space: Space, checks: Mapping[str, Any]
) -> Compatible:
    """From now on `embedder` serves the space. Raises `Conflict` while another declaration has a way back."""
    check_open(latest(connection, space_id))
    row = {
        "id": secrets.token_hex(4),
        "space_id": space_id,
        "collection": collection,
        "embedder": embedder,
        "definition": asdict(space),
        "checks": dict(checks),
        "state": CompatibleState.SERVING,
        "created_at": now(),
        "updated_at": now(),
    }
    connection.execute(t.compatible.insert(), row)
    return get(connection, str(row["id"]))


def check_open(current: Compatible | None) -> None:
    """Raises `Conflict` where the last declaration of a space has a way back still."""
    if current is not None and current.state is CompatibleState.SERVING:
        raise Conflict(
            f"{current.embedder!r} was declared compatible already, and can still be taken back. Nothing was changed.",
            f"`whimbrel move finalise {current.collection}` or `move rollback {current.collection}` first.",
        )


def get(connection: Connection, key: str) -> Compatible:
    return _read(connection.execute(select(t.compatible).where(t.compatible.c.id == key)).one())


def latest(connection: Connection, space_id: int) -> Compatible | None:
    """The last declaration of a space, whatever became of it."""
    row = connection.execute(_OF.where(t.compatible.c.space_id == space_id).limit(1)).first()
    return _read(row) if row else None


def serving(connection: Connection, space_id: int) -> Compatible | None:
    """The declaration that holds now; None where the space's own model serves it."""
    holds = t.compatible.c.state != CompatibleState.ROLLED_BACK
    row = connection.execute(_OF.where(t.compatible.c.space_id == space_id, holds).limit(1)).first()
    return _read(row) if row else None


def is_declared(connection: Connection, space: str, other: str) -> bool:
    """Whether a model of the space `other` was declared to serve `space` (their keys), and that was not taken back."""
    joined = t.compatible.join(t.spaces, t.spaces.c.id == t.compatible.c.space_id)
    query = select(t.compatible.c.definition).select_from(joined).where(t.spaces.c.key == space)
    held = connection.execute(query.where(t.compatible.c.state != CompatibleState.ROLLED_BACK)).scalars()
    return any(Space(**definition).key == other for definition in held)


def change(connection: Connection, found: Compatible, state: CompatibleState) -> Compatible:
    """Raises `Conflict` where it has no way back any more, or was taken back."""
    current = get(connection, found.id)
    if current.state is not CompatibleState.SERVING:
        said = current.state.replace("_", " ")
        raise Conflict(f"The declaration of {current.embedder!r} is {said} already. Nothing was changed.")
    connection.execute(update(t.compatible).where(t.compatible.c.id == found.id).values(state=state, updated_at=now()))
    return get(connection, found.id)


def _read(row: AnyRow) -> Compatible:
    return Compatible(
        row.id,
        row.space_id,
        row.collection,
        row.embedder,
        Space(**row.definition),
        row.checks,
        CompatibleState(row.state),
        row.created_at,
        row.updated_at,
    )
