"""The ledger of calls of models, summed by minute: who asked which model, how it went, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from whimbrel.catalog import tables as t
from whimbrel.catalog.guarding import inserting

KEPT_DAYS = 400
"""Older minutes are forgotten."""
DAY_S = 86_400
OK = "ok"


@dataclass(frozen=True, slots=True)
class CallKey:
    """What calls of one minute are summed by."""

    minute: int
    """Since the epoch."""
    kind: str
    """`embed`, `rerank` or `generate`."""
    model: str
    """`provider:model`."""
    api_key: str
    """The name of the API key; empty where none came with the request."""
    outcome: str
    """`ok`, or the name of an error."""
    instead_of: str
    """The model that this one stood in for."""


@dataclass(slots=True)
class Calls:
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    unpriced: int = 0
    """Calls whose price is not known."""
    seconds: float = 0.0
    slowest_s: float = 0.0

    def add(self, other: Calls) -> None:
        self.calls += other.calls
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.usd += other.usd
        self.unpriced += other.unpriced
        self.seconds += other.seconds
        self.slowest_s = max(self.slowest_s, other.slowest_s)


_SUMMED = ("calls", "input_tokens", "output_tokens", "usd", "unpriced", "seconds")


def add(connection: Connection, found: Mapping[CallKey, Calls]) -> None:
    column = t.model_calls.c
    for key, calls in found.items():
        values: dict[str, Any] = {name: getattr(key, name) for name in CallKey.__slots__}
        values |= {name: getattr(calls, name) for name in (*_SUMMED, "slowest_s")}
        insert: sqlite.Insert | postgresql.Insert = inserting(connection, t.model_calls).values(**values)
        changed: dict[str, Any] = {name: column[name] + insert.excluded[name] for name in _SUMMED}
        slower = column.slowest_s < insert.excluded["slowest_s"]
        changed["slowest_s"] = case((slower, insert.excluded["slowest_s"]), else_=column.slowest_s)
        connection.execute(insert.on_conflict_do_update(index_elements=list(CallKey.__slots__), set_=changed))


def forget_old(connection: Connection, now: float) -> None:
    connection.execute(delete(t.model_calls).where(t.model_calls.c.minute < (now - KEPT_DAYS * DAY_S) // 60))


def summed(connection: Connection, by: str, since: float, until: float | None = None) -> list[dict[str, Any]]:
    """One object for each `by` (`model`, `key` or `day`, in UTC), and kind where it is by model; the dearest first,
    days in their order. `since` and `until` are seconds since the epoch."""
    column = t.model_calls.c
    day = column.minute // 1440
    groups: dict[str, list[ColumnElement[Any]]] = {
        "model": [column.model, column.kind],
        "key": [column.api_key.label("key")],
        "day": [day.label("day")],
    }
    failed = func.sum(case((column.outcome == OK, 0), else_=column.calls))
    stood_in = func.sum(case((and_(column.instead_of != "", column.outcome == OK), column.calls), else_=0))
    sums = [func.sum(column[name]).label(name) for name in _SUMMED]
    query = select(
        *groups[by],
        *sums,
        func.max(column.slowest_s).label("slowest_s"),
        failed.label("failed"),
        stood_in.label("stood_in"),
    )
    query = query.where(column.minute >= since // 60)
    if until is not None:
        query = query.where(column.minute < until // 60)
    query = query.group_by(*groups[by])
    query = query.order_by(day) if by == "day" else query.order_by(func.sum(column.usd).desc(), *groups[by])
    return [dict(row) for row in connection.execute(query).mappings()]


def spent_since(connection: Connection, unit: str, since: float, *, model: str = "", api_key: str = "") -> float:
    """USD or tokens of calls since then, of all or of one model or key: where a budget begins to count."""
    column = t.model_calls.c
    what = func.sum(column.usd) if unit == "usd" else func.sum(column.input_tokens + column.output_tokens)
    query = select(what).where(column.minute >= since // 60)
    if model:
        query = query.where(column.model == model)
    if api_key:
        query = query.where(column.api_key == api_key)
    return float(connection.execute(query).scalar() or 0.0)
