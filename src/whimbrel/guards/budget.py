"""Budgets: what may be spent in a day or a month, checked before a call, by a part that each process holds.

A process takes a twentieth of a budget at a time (or what one call may take, where that is more) and spends it without
asking; what it holds and does not spend is free again when it stops, or a minute after it was last heard of.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from whimbrel.catalog import guarding, usage
from whimbrel.catalog.engine import Catalog
from whimbrel.errors import BudgetSpent
from whimbrel.guards.calls import Clock
from whimbrel.guards.limits import Limit

logger = logging.getLogger("whimbrel.guards")

SHARE = 0.05
LEASE_S = 60.0


@dataclass(frozen=True, slots=True)
class Alert:
    """A share of a budget is spent."""

    limit: Limit
    period: str
    share: float
    spent: float

    @property
    def said(self) -> str:
        return f"{self.spent:,.4g} of {self.limit.said} is spent ({self.period})"

    def as_dict(self) -> dict[str, object]:
        return {
            "alert": "budget",
            "message": self.said,
            "scope": self.limit.scope,
            "unit": self.limit.unit,
            "period": self.period,
            "share": self.share,
            "limit": self.limit.amount,
            "spent": self.spent,
        }


@dataclass(slots=True)
class _Part:
    """What this process has of one budget in one period."""

    limit: Limit
    name: str
    begun: float
    free: float = 0.0
    promised: float = 0.0
    """To calls under way."""
    untold: float = 0.0
    """Spent, and not told to the others yet."""
    leased_at: float = float("-inf")
    known_spent: float = 0.0
    """By all, when it was last told."""


Estimate = tuple[float | None, int]
"""USD (None: not known) and tokens."""


class Budgets:
    def __init__(
        self,
        limits: Sequence[Limit],
        catalog: Catalog | None,
        *,
        alert_at: Sequence[float] = (0.8, 1.0),
        on_alert: Callable[[Alert], None] = lambda alert: None,
        clock: Clock | None = None,
    ) -> None:
        self.limits = list(limits)
        self._catalog = catalog
        self._alert_at = alert_at
        self._on_alert = on_alert
        self._clock = clock or Clock()
        self._holder = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._parts: dict[str, _Part] = {}
        self._alerted: set[tuple[str, float]] = set()

    async def promise(self, model: str, api_key: str, estimate: Estimate) -> list[tuple[_Part, float]]:
        """Raises `BudgetSpent`. What it returns is settled with `settle`, however the call ends."""
        held: list[tuple[_Part, float]] = []
        for limit in self.limits:
            amount = _of(limit, estimate)
            if amount is None or not limit.holds_for(model, api_key):
                continue
            part = self._part(limit)
            if limit.warns:
                held.append((part, 0.0))
                continue
            if not self._take(part, amount) and not await asyncio.to_thread(self._lease, part, amount):
                self.settle(held, (0.0, 0))
                raise BudgetSpent(
                    f"{model}: the budget of {limit.said} is spent ({part.name}), or does not allow this call. "
                    "Nothing was sent.",
                    "Wait for the next period, raise it in `guards.budgets`, or name another model.",
                )
            held.append((part, amount))
        return held

    def settle(self, held: Sequence[tuple[_Part, float]], took: Estimate) -> None:
        with self._lock:
            for part, amount in held:
                spent = _of(part.limit, took) or 0.0
                part.promised -= amount
                part.free += 0.0 if part.limit.warns else amount - spent
                part.untold += spent

    def told(self) -> None:
        """Tell the others what was spent."""
        with self._lock:
            parts = [part for part in self._parts.values() if part.untold]
        for part in parts:
            self._renew(part, 0.0)
        self._forget_past()

    def close(self) -> None:
        """Give back what was not spent."""
        with self._lock:
            parts = [part for part in self._parts.values() if part.leased_at > float("-inf") or part.untold]
            for part in parts:
                part.free = 0.0
        for part in parts:
            self._renew(part, 0.0)

    def state(self) -> list[dict[str, object]]:
        """Each budget with what was spent of it in the period that it is now."""
        parts = [self._part(limit) for limit in self.limits]
        found: dict[str, float] = {}
        if self._catalog is not None and parts:
            with self._catalog.read() as connection:
                found = guarding.spent_of(connection, [self._key(part) for part in parts])
                for part in parts:
                    if self._key(part) not in found:
                        found[self._key(part)] = self._before(connection, part)
        return [
            {
                "scope": part.limit.scope,
                "unit": part.limit.unit,
                "per": part.limit.period,
                "period": part.name,
                "limit": part.limit.amount,
                "warns": part.limit.warns,
                "spent": round(found.get(self._key(part), 0.0) + part.untold, 6),
            }
            for part in parts
        ]

    # --- parts -------------------------------------------------------------------------------------------------------

    def _part(self, limit: Limit) -> _Part:
        name, begun = limit.begun(self._clock.wall())
        key = f"{limit.scope} {limit.unit} {limit.period} {name}"
        with self._lock:
            return self._parts.setdefault(key, _Part(limit, name, begun))

    def _key(self, part: _Part) -> str:
        return f"{part.limit.scope} {part.limit.unit} {part.limit.period} {part.name}"

    def _take(self, part: _Part, amount: float) -> bool:
        with self._lock:
            if self._clock.monotonic() - part.leased_at > LEASE_S or part.free < amount:
                return False
            part.free -= amount
            part.promised += amount
            return True

    def _lease(self, part: _Part, amount: float) -> bool:
        self._renew(part, max(amount, SHARE * part.limit.amount))
        return self._take(part, amount)

    def _renew(self, part: _Part, wanted: float) -> None:
        with self._lock:
            if self._clock.monotonic() - part.leased_at > LEASE_S:
                part.free = 0.0
            spent, held, missing = part.untold, max(part.free, 0.0) + part.promised, max(wanted - part.free, 0.0)
            part.untold = 0.0
        try:
            granted = self._shared(part, spent, held, missing)
        except BaseException:
            with self._lock:
                part.untold += spent
            raise
        with self._lock:
            part.free += granted.amount
            part.leased_at = self._clock.monotonic()
            before, part.known_spent = part.known_spent, granted.spent
        self._alert(part, before, granted.spent, spent)

    def _shared(self, part: _Part, spent: float, held: float, missing: float) -> guarding.Granted:
        if self._catalog is None:
            all_spent = part.known_spent + spent
            return guarding.Granted(min(missing, max(part.limit.amount - all_spent - held, 0.0)), all_spent, 0.0)
        with self._catalog.write() as connection:
            return guarding.lease_budget(
                connection, self._key(part), self._holder, limit=part.limit.amount, wanted=missing, spent=spent,
                held=held, before=lambda: self._before(connection, part), now=self._clock.wall(), lease_s=LEASE_S,
            )  # fmt: skip

    def _before(self, connection: Connection, part: _Part) -> float:
        scope = part.limit.scope
        return usage.spent_since(
            connection,
            part.limit.unit,
            part.begun,
            model="" if scope == "all" or scope.startswith("key:") else scope,
            api_key=scope.removeprefix("key:") if scope.startswith("key:") else "",
        )

    def _alert(self, part: _Part, before: float, now: float, own: float) -> None:
        """The process whose spending crosses a share tells it: one for each home."""
        crossed = max(now - own, 0.0)
        for share in self._alert_at:
            line = share * part.limit.amount
            if own and crossed < line <= now and (self._key(part), share) not in self._alerted:
                self._alerted.add((self._key(part), share))
                alert = Alert(part.limit, part.name, share, now)
                logger.warning("budget: %s", alert.said)
                self._on_alert(alert)

    def _forget_past(self) -> None:
        with self._lock:
            now = self._clock.wall()
            for key, part in list(self._parts.items()):
                if part.limit.begun(now)[0] != part.name and not (part.promised or part.untold):
                    del self._parts[key]


def _of(limit: Limit, estimate: Estimate) -> float | None:
    return estimate[0] if limit.unit == "usd" else float(estimate[1])
