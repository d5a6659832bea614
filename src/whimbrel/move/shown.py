"""A move as people and programs see it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from whimbrel.catalog import collections, jobs, listing, moves
from whimbrel.catalog.moves import Move
from whimbrel.config import mask_url
from whimbrel.domain import MoveState
from whimbrel.errors import ViewNotFound

RECENT_S = 20.0
"""The rate is that of the last so many seconds."""


def as_dict(connection: Connection, move: Move) -> dict[str, Any]:
    """One JSON object: where the move stands, what was checked, what it waits for."""
    rate = _rate(move)
    done = int(move.samples[-1]["rows"]) if move.samples else 0
    total = int(move.plan.get("rows", 0))
    left = max(0, total - done)
    copying = move.state is MoveState.COPYING
    copied = any(state == MoveState.VERIFYING for state, _ in move.history)
    return {
        "id": move.id,
        "collection": move.collection,
        "state": move.state.value,
        "paused": move.paused,
        "busy": any(
            job.kind == "move" and job.args.get("move") == move.id
            for job in jobs.listing(connection, active=True, limit=1_000)
        ),
        "request": {**{name: getattr(move.request, name) for name in _REQUEST}, "uri": mask_url(move.request.uri)},
        "source": [one for key in move.sources if (one := _view(connection, key)) is not None],
        "target": [one for key in move.targets if (one := _view(connection, key)) is not None],
        "rows": {"done": total if copied else min(done, total), "total": total},
        "rows_per_s": round(rate, 1) if copying else None,
        "seconds_left": round(left / rate, 1) if copying and rate > 0 else None,
        "plan": dict(move.plan),
        "checks": dict(move.checks),
        "accepted": move.accepted,
        "rejects": len(moves.lost(connection, move)),
        "position": move.position,
        "history": [{"state": state, "at": iso(at)} for state, at in move.history],
        "error": move.error,
        "hint": move.hint,
        "created_at": iso(move.created_at),
        "updated_at": iso(move.updated_at),
    }


_REQUEST = ("embedder", "chunking", "rate", "auto_switch", "judged", "min_ndcg")


def _view(connection: Connection, key: int) -> dict[str, Any] | None:
    try:
        row = collections.view(connection, key)
    except ViewNotFound:  # dropped since
        return None
    collection = collections.by_id(connection, row.view.collection_id)
    return listing.view(connection, row, collection) if collection is not None else None


def _rate(move: Move) -> float:
    if len(move.samples) < 2:
        return 0.0
    last = move.samples[-1]
    first = next(one for one in move.samples if last["at"] - one["at"] <= RECENT_S)
    took = last["at"] - first["at"]
    return (last["rows"] - first["rows"]) / took if took > 0 else 0.0


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
