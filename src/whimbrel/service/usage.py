"""What models took: the ledger, summed."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Literal

from whimbrel.catalog import usage
from whimbrel.catalog.engine import Catalog, now
from whimbrel.errors import InvalidRequest
from whimbrel.guards.guard import Guards

By = Literal["model", "key", "day"]
BY: tuple[By, ...] = ("model", "key", "day")

_UNITS = {"h": 3_600, "d": 86_400, "w": 7 * 86_400}
_SUMS = ("calls", "failed", "stood_in", "input_tokens", "output_tokens", "usd", "unpriced")


def used(catalog: Catalog, guards: Guards, since: str | None, by: str) -> dict[str, Any]:
    """Raises `InvalidRequest`."""
    if by not in BY:
        raise InvalidRequest(f"`by` is {by!r:.40}, and usage is summed by {', '.join(BY)}.", "Choose one of these.")
    at = now()
    began = min(max(begin(since, at), 0.0), at)
    if guards.ledger is not None:
        guards.ledger.flush()
    with catalog.read() as connection:
        found = usage.summed(connection, by, began)
    rows = [_row(one, by) for one in found]
    total = {name: sum(row[name] for row in rows) for name in _SUMS}
    return {
        "since": datetime.fromtimestamp(began, UTC).isoformat(),
        "by": by,
        "rows": rows,
        "total": {**total, "usd": round(total["usd"], 6)},
        **guards.state(),
    }


def begin(since: str | None, at: float) -> float:
    """`24h`, `7d`, `2w`; a date or time in ISO 8601, in UTC unless it says; without one, the first of the month.

    Raises `InvalidRequest`.
    """
    said = (since or "").strip()
    if not said:
        return datetime.fromtimestamp(at, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
    if match := re.fullmatch(r"(\d{1,5})([hdw])", said):
        return at - int(match[1]) * _UNITS[match[2]]
    try:
        found = datetime.fromisoformat(said)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"`since` is {said!r:.40}, which is no time.", "Write `24h`, `7d`, or a date such as 2026-01-31."
        ) from None


def _row(found: dict[str, Any], by: str) -> dict[str, Any]:
    calls = int(found["calls"])
    row: dict[str, Any] = {name: found[name] for name in ("model", "kind", "key") if name in found}
    if by == "day":
        row["day"] = datetime.fromtimestamp(int(found["day"]) * usage.DAY_S, UTC).date().isoformat()
    row |= {name: int(found[name]) for name in _SUMS if name != "usd"}
    return {
        **row,
        "usd": round(float(found["usd"]), 6),
        "mean_s": round(float(found["seconds"]) / calls, 4) if calls else 0.0,
        "slowest_s": round(float(found["slowest_s"]), 4),
    }
