"""The one loop that asks again: the providers' clients make one attempt each."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from whimbrel.errors import (
    ModelBusy,
    ModelDown,
    ModelEndedEarly,
    ModelError,
    ModelMalformed,
    ModelPaused,
    ModelSlow,
)
from whimbrel.guards.calls import Call, Clock, T

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0


@dataclass(frozen=True, slots=True)
class Retry:
    """For what may pass: a provider that is busy, down or slow; an answer that is broken, once. Never for a key that is
    refused, a request that is, a budget, or a breaker that is open.

    A pause is at least what the provider asks for (`Retry-After`), else 0.25 s, doubled each time up to 8 s; and all of
    it is spread by chance, so that those who were turned away together do not come back together. Where the pause would
    reach beyond the deadline, the error is raised at once: waiting would not help.
    """

    attempts: int = 3
    deadline_s: float = 60.0
    """From the first attempt on; the last one may begin no later."""
    clock: Clock = field(default_factory=Clock)

    async def __call__(self, call: Call[T]) -> T:
        began = self.clock.monotonic()
        broken = False
        attempt = 1
        while True:
            try:
                return await call()
            except (ModelBusy, ModelDown, ModelSlow, ModelMalformed, ModelEndedEarly) as error:
                if attempt >= self.attempts or isinstance(error, ModelPaused) or broken:
                    raise
                broken = isinstance(error, ModelMalformed | ModelEndedEarly)
                pause = self._pause(attempt, error)
                if self.clock.monotonic() - began + pause > self.deadline_s:
                    raise
            await asyncio.sleep(pause)
            attempt += 1

    def _pause(self, attempt: int, error: ModelError) -> float:
        asked = error.retry_after_s if isinstance(error, ModelBusy | ModelDown) else None
        if asked is not None:
            return asked * random.uniform(1.0, 1.1) + random.uniform(0.0, 0.1)
        return min(FIRST_PAUSE_S * 2.0 ** (attempt - 1), LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)
