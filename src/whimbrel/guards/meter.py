"""The meter: what this process asked of models since it began, for its metrics; and each call to the ledger."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from whimbrel.catalog.usage import OK, CallKey, Calls
from whimbrel.guards.calls import Clock, Kind, Taken, caller
from whimbrel.guards.ledger import Ledger

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RATE_S = 300.0
"""The error rate is that of so long."""
_RECENT = 1_000
CANCELLED = "cancelled"
"""Nobody waited for it any more: it tells nothing of the model."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One call."""

    at: float
    """When it ended, by a clock that does not jump."""
    outcome: str
    seconds: float
    """As its caller waited: in line, and from attempt to attempt."""


@dataclass(slots=True)
class ModelFigures:
    """Of one model."""

    outcomes: dict[str, int] = field(default_factory=dict)
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    """Calls that took at most so long, not added up."""
    seconds: float = 0.0
    usd: float = 0.0
    unpriced: int = 0
    stood_in: int = 0
    recent: deque[Seen] = field(default_factory=lambda: deque(maxlen=_RECENT))

    @property
    def calls(self) -> int:
        return sum(self.outcomes.values())


class Meter:
    """Thread-safe."""

    def __init__(self, ledger: Ledger | None, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self._ledger = ledger
        self._lock = threading.Lock()
        self._figures: dict[tuple[Kind, str], ModelFigures] = {}

    def saw(
        self, kind: Kind, model: str, outcome: str, seconds: float, taken: Taken, usd: float | None, *, paid: bool
    ) -> None:
        """`usd`: None where the price is not known. `paid`: the ledger has it too."""
        with self._lock:
            figures = self._figures.get((kind, model))
            if figures is None:
                figures = self._figures[kind, model] = ModelFigures()
            figures.outcomes[outcome] = figures.outcomes.get(outcome, 0) + 1
            figures.buckets[next((at for at, upto in enumerate(BUCKETS_S) if seconds <= upto), len(BUCKETS_S))] += 1
            figures.seconds += seconds
            figures.usd += usd or 0.0
            figures.unpriced += usd is None
            figures.stood_in += bool(taken.instead_of) and outcome == OK
            if outcome != CANCELLED:
                figures.recent.append(Seen(self.clock.monotonic(), outcome, seconds))
        if paid and self._ledger is not None:
            minute = int(self.clock.wall() // 60)
            key = CallKey(minute, kind, model, caller.get(), outcome, taken.instead_of)
            calls = Calls(1, taken.input_tokens, taken.output_tokens, usd or 0.0, int(usd is None), seconds, seconds)
            self._ledger.add(key, calls)

    def figures(self) -> Mapping[tuple[Kind, str], ModelFigures]:
        """By kind and model. What is in it may still grow."""
        with self._lock:
            return dict(self._figures)

    def recent(self, figures: ModelFigures) -> list[Seen]:
        """The calls of the last five minutes, the last 1,000 at most, without those that nobody waited for."""
        with self._lock:
            since = self.clock.monotonic() - RATE_S
            return [seen for seen in figures.recent if seen.at >= since]

    def error_rate(self, figures: ModelFigures) -> float:
        """Share of the recent calls that failed; 0 where there was none."""
        recent = self.recent(figures)
        return sum(seen.outcome != OK for seen in recent) / len(recent) if recent else 0.0
