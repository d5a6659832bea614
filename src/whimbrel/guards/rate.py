"""Rates: so many requests and tokens a minute, by all processes together."""

from __future__ import annotations

import asyncio
import threading

from whimbrel.errors import ModelBusy
from whimbrel.guards.calls import Clock
from whimbrel.guards.shared import Shared

BURST_S = 5.0
"""So much of a rate may be taken at once after a rest."""
LEASE_S = 1.0
"""Of a rate, each process takes so much at a time for itself."""
LONGEST_S = 30.0
"""A call that would have to wait longer is refused."""


class Rate:
    """Of one thing of one model."""

    def __init__(self, name: str, what: str, per_minute: float, shared: Shared, clock: Clock | None = None) -> None:
        self._name = name
        self._what = what
        self._each_s = 60.0 / per_minute
        self._shared = shared
        self._clock = clock or Clock()
        self._lock = threading.Lock()
        self._leased_s = 0.0
        self._leased_at = float("-inf")

    async def take(self, amount: float) -> None:
        """Wait for the turn of so many. Raises `ModelBusy` where that takes too long."""
        wanted = amount * self._each_s
        with self._lock:
            if self._clock.monotonic() - self._leased_at > 2 * LEASE_S:
                self._leased_s = 0.0
            if self._leased_s >= wanted:
                self._leased_s -= wanted
                return
        taken = max(wanted, LEASE_S)
        wait = await self._due(taken)
        if wait > LONGEST_S:
            raise ModelBusy(
                f"{self._name}: the rate of {self._what} that is set here is reached. Nothing was sent.",
                f"It has room in {wait:.0f} s; or raise it in `guards.rates`.",
                retry_after_s=wait,
            )
        if wait:
            await asyncio.sleep(wait)
        with self._lock:
            self._leased_s += taken - wanted
            self._leased_at = self._clock.monotonic()

    async def _due(self, seconds: float) -> float:
        return self._take(seconds) if self._shared.alone else await asyncio.to_thread(self._take, seconds)

    def _take(self, seconds: float) -> float:
        now = self._clock.wall()
        return self._shared.take(f"{self._name} {self._what}", now, seconds, burst_s=BURST_S, longest_s=LONGEST_S)
