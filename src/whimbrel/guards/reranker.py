"""A reranker behind its guards."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whimbrel.errors import ModelError
from whimbrel.guards.calls import Taken
from whimbrel.guards.generator import estimated
from whimbrel.guards.guard import Guard, Patience
from whimbrel.models.embedders.remote import LOOK_AGAIN_S
from whimbrel.models.rerankers.base import Reranker


class GuardedReranker(Reranker):
    def __init__(self, inner: Reranker, guard: Guard, patience: Patience) -> None:
        self.inner = inner
        self.guard = guard
        self._patience = patience
        self._identity = ""
        self._identified = 0.0

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def batch(self) -> int:
        return self.inner.batch

    async def rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """As the model's own; and raises `ModelPaused`, `BudgetSpent`, `ModelQueueFull`."""
        taken = Taken()
        if not self.guard.in_process:
            taken.input_tokens = len(texts) * estimated(query) + sum(map(estimated, texts))
        return await self.guard.call(lambda: self.inner.rerank(query, texts), taken, self._patience)

    async def identity(self) -> str:
        """A server is asked for it behind the guards, and again after a minute: it may have another model then. While
        it is out, it is what it was."""
        if not self._identity or time.monotonic() - self._identified > LOOK_AGAIN_S:
            try:
                self._identity = await self.guard.attempts(self.inner.identity, Taken(), self._patience)
                self._identified = time.monotonic()
            except ModelError:
                if not self._identity:
                    raise
        return self._identity

    async def close(self) -> None:
        await self.inner.close()
