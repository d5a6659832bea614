"""A clock that is set by hand."""

from __future__ import annotations

from datetime import UTC, datetime

from whimbrel.guards.calls import Clock


class Hands:
    def __init__(self) -> None:
        self.ticked = 1_000.0
        self.shown = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.ticked, lambda: self.shown)

    def pass_(self, seconds: float) -> None:
        self.ticked += seconds
        self.shown += seconds
