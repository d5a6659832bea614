"""What the processes of a home share about models that are in trouble, their rates, and budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from sqlalchemy import Connection, Table, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from whimbrel.catalog import tables as t

FARTHEST_S = 120.0
"""A time further ahead than this was written before a clock was set back: it counts for nothing."""


@dataclass(frozen=True, slots=True)
class BreakerRow:
    """Times are seconds of the wall clock, which may jump: who reads them bounds what they lead to."""

    name: str
    failures: int = 0
    failed_at: float = 0.0
    opened: int = 0
    open_until: float = 0.0
    probe_until: float = 0.0
    reason: str = ""
    trying: int = 0
    trying_at: float = 0.0

    @property
    def is_open(self) -> bool:
        return self.open_until > 0

    def is_suspect(self, now: float, window_s: float) -> bool:
        """The last that was heard of it is a failure, and that not long ago."""
        return self.failures > 0 and not self.is_open and abs(now - self.failed_at) <= window_s

    def failed(
        self, now: float, reason: str, *, threshold: int, window_s: float, pause_s: float, tried: bool = False
    ) -> BreakerRow:
        """After one more failure (`tried`: of a call that `try_` let pass). One that began before the breaker
        opened changes nothing any more."""
        if self.is_open and not self.probe_until:
            return self
        near = abs(now - self.failed_at) <= window_s
        failures = self.failures + 1 if near else 1
        row = replace(self.tried() if tried else self, failures=failures, failed_at=now, reason=reason, probe_until=0.0)
        if self.is_open or failures >= threshold:
            return replace(row, opened=self.opened + 1, open_until=now + pause_s, trying=0)
        return row

    def try_(self, now: float, *, threshold: int, window_s: float, hold_s: float) -> BreakerRow | None:
        """With one more call under way; None where those that are would, if they failed as well, make the threshold."""
        row = self.under_way(0, now, hold_s)
        if not row.is_suspect(now, window_s) or row.failures + row.trying >= threshold:
            return None
        return row.under_way(1, now, hold_s)

    def under_way(self, more: int, now: float, hold_s: float) -> BreakerRow:
        """With so many calls more. Those of a process that died count for no longer than `hold_s` after the last."""
        trying = self.trying if abs(now - self.trying_at) <= hold_s else 0
        return replace(self, trying=trying + more, trying_at=now if more else self.trying_at)

    def tried(self) -> BreakerRow:
        return replace(self, trying=max(self.trying - 1, 0))

    def worked(self) -> BreakerRow:
        """Closed; how often it was open is kept, so that no process takes the next opening for the last."""
        return BreakerRow(self.name, opened=self.opened)

    def claimed(self, opened: int, now: float, hold_s: float) -> BreakerRow | None:
        """With a probe under way, before which nobody else may ask for `hold_s`; None where there is one, or where it
        is not open for the `opened`th time any more."""
        if not self.is_open or self.opened != opened or now <= self.probe_until <= now + 2 * hold_s:
            return None  # further ahead: the clock was set back
        return replace(self, probe_until=now + hold_s)


def breakers(connection: Connection) -> dict[str, BreakerRow]:
    """Those that have anything to tell, by name."""
    return {row.name: BreakerRow(*row) for row in connection.execute(select(t.breakers))}


def change_breaker(
    connection: Connection, name: str, change: Callable[[BreakerRow], BreakerRow | None]
) -> tuple[BreakerRow, bool]:
    """What it is after that, and whether it was changed: `change` gives None to leave it as it is."""
    _have(connection, t.breakers, asdict(BreakerRow(name)))
    query = select(t.breakers).where(t.breakers.c.name == name).with_for_update()
    before = BreakerRow(*connection.execute(query).one())
    row = change(before)
    if row is None:
        return before, False
    connection.execute(update(t.breakers).where(t.breakers.c.name == name).values(**asdict(row)))
    return row, True


# --- rates -----------------------------------------------------------------------------------------------------------


def due(ready_at: float, now: float, seconds: float, burst_s: float) -> tuple[float, float]:
    """When what is taken now is due, and how long to wait for it: `seconds` of a rate, of which `burst_s` are lent."""
    ready_at = max(ready_at, now) if ready_at < now + FARTHEST_S else now
    return ready_at + seconds, max(ready_at - now - burst_s, 0.0)


def take_rate(
    connection: Connection, name: str, now: float, seconds: float, *, burst_s: float, longest_s: float
) -> float:
    """Seconds to wait; where that is more than `longest_s`, nothing was taken."""
    _have(connection, t.rates, {"name": name, "ready_at": 0.0})
    known = t.rates.c.name == name
    ready_at = connection.execute(select(t.rates.c.ready_at).where(known).with_for_update()).scalar_one()
    ready_at, wait = due(ready_at, now, seconds, burst_s)
    if wait <= longest_s:
        connection.execute(update(t.rates).where(known).values(ready_at=ready_at))
    return wait


# --- budgets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Granted:
    amount: float
    """More that may be spent."""
    spent: float
    """By all processes."""
    held: float
    """By other processes, to be spent."""


def lease_budget(
    connection: Connection,
    budget: str,
    holder: str,
    *,
    limit: float,
    wanted: float,
    spent: float,
    held: float,
    before: Callable[[], float],
    now: float,
    lease_s: float,
) -> Granted:
    """Tell what was `spent` since the last time and what is `held` now, and take up to `wanted` more.

    `before`: what was spent of it where nobody has counted yet. What processes held that are gone is free again.
    """
    row = t.spending.c
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"whimbrel-budget-{budget}"))))
    if not connection.execute(select(row.budget).where(row.budget == budget).limit(1)).first():
        _add_spending(connection, budget, "", before(), 0.0, now)
    _fold(connection, budget, holder, now, lease_s)
    others = connection.execute(
        select(func.sum(row.spent), func.sum(row.held)).where(row.budget == budget, row.holder != holder)
    ).one()
    own = connection.execute(select(row.spent).where(row.budget == budget, row.holder == holder)).scalar() or 0.0
    all_spent, others_held = (others[0] or 0.0) + own + spent, others[1] or 0.0
    amount = min(wanted, max(limit - all_spent - others_held - held, 0.0))
    _add_spending(connection, budget, holder, spent, held + amount, now + lease_s)
    return Granted(amount, all_spent, others_held)


def spent_of(connection: Connection, budgets: list[str]) -> dict[str, float]:
    row = t.spending.c
    query = select(row.budget, func.sum(row.spent)).where(row.budget.in_(budgets)).group_by(row.budget)
    return {str(found.budget): float(found[1]) for found in connection.execute(query)}


def _fold(connection: Connection, budget: str, holder: str, now: float, lease_s: float) -> None:
    row = t.spending.c
    gone = or_(row.expires_at < now, row.expires_at > now + 2 * lease_s)
    gone_rows = (row.budget == budget, row.holder != "", row.holder != holder, gone)
    spent = connection.execute(select(func.sum(row.spent)).where(*gone_rows)).scalar()
    if spent is not None:
        connection.execute(delete(t.spending).where(*gone_rows))
        _add_spending(connection, budget, "", spent, 0.0, now)


def _add_spending(
    connection: Connection, budget: str, holder: str, spent: float, held: float, expires_at: float
) -> None:
    values = {"budget": budget, "holder": holder, "spent": spent, "held": held, "expires_at": expires_at}
    insert = inserting(connection, t.spending).values(**values)
    changed = {"spent": t.spending.c.spent + spent, "held": held, "expires_at": expires_at}
    connection.execute(insert.on_conflict_do_update(index_elements=["budget", "holder"], set_=changed))


# --- stand-ins -------------------------------------------------------------------------------------------------------


def stand_in(connection: Connection, space: str, other: str, embedder: str) -> float | None:
    """The lowest cosine that was measured; None where it was not. `other` may be empty: any space of that embedder."""
    row = t.stand_ins.c
    query = select(row.cosine).where(row.space == space, row.embedder == embedder)
    query = query.where(row.other == other) if other else query
    return connection.execute(query.order_by(row.checked_at.desc()).limit(1)).scalar()


def put_stand_in(
    connection: Connection, space: str, other: str, embedder: str, cosine: float, checked_at: float
) -> None:
    values = {"space": space, "other": other, "embedder": embedder, "cosine": cosine, "checked_at": checked_at}
    insert = inserting(connection, t.stand_ins).values(**values)
    changed = {"cosine": cosine, "checked_at": checked_at}
    connection.execute(insert.on_conflict_do_update(index_elements=["space", "other", "embedder"], set_=changed))


def inserting(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _have(connection: Connection, table: Table, values: Mapping[str, object]) -> None:
    connection.execute(inserting(connection, table).values(**values).on_conflict_do_nothing())
