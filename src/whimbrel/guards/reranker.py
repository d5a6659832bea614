"""A reranker behind its guards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whimbrel.guards.calls import Taken
from whimbrel.guards.generator import estimated
from whimbrel.guards.guard import Guard, Patience
from whimbrel.models.rerankers.base import Reranker


class GuardedReranker(Reranker):
    def __init__(self, inner: Reranker, guard: Guard, patience: Patience) -> None:
        self.inner = inner
        self.guard = guard
        self._patience = patience

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
        return await self.inner.identity()

    async def close(self) -> None:
        await self.inner.close()
