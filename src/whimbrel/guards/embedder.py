"""An embedder behind its guards."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.domain import EmbedKind, Space
from whimbrel.guards.calls import Taken
from whimbrel.guards.guard import Guard, Patience
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.remote import PROBE, Look, RemoteEmbedder

BULK = 16
"""So many texts at once are bulk work, which gives way."""
BATCH = 64
"""Texts that the time of one attempt is meant for; more have as many times more."""


class GuardedEmbedder(Embedder):
    def __init__(self, inner: Embedder, guard: Guard, *, query: Patience, documents: Patience) -> None:
        """`query`: somebody waits for the answer."""
        self.inner = inner
        self.guard = guard
        self._patience = {EmbedKind.QUERY: query, EmbedKind.DOCUMENT: documents}

    @property
    def name(self) -> str:
        return self.guard.model

    @property
    def space(self) -> Space:
        """That of the model. A server that must be asked for it is asked behind the guards. Raises as `embed`."""
        return self.inner.learn(self._asked) if isinstance(self.inner, RemoteEmbedder) else self.inner.space

    @property
    def tokenizer(self) -> Path:
        return self.inner.tokenizer

    def count_tokens(self, text: str) -> int:
        return self.inner.count_tokens(text)

    def reads(self, text: str) -> float:
        return self.inner.reads(text)

    async def embed(self, texts: Sequence[str], kind: EmbedKind, *, instead_of: str = "") -> npt.NDArray[np.float32]:
        """As the model's own; and raises `ModelPaused`, `BudgetSpent`, `ModelQueueFull`."""
        taken = Taken(instead_of=instead_of)
        bulk = len(texts) >= BULK
        if not self.guard.in_process:
            taken.input_tokens = await asyncio.to_thread(self._tokens, texts) if bulk else self._tokens(texts)
        patience = self._patience[kind]
        if len(texts) > BATCH and patience.timeout_s is not None:
            batches = math.ceil(len(texts) / BATCH)
            patience = replace(patience, timeout_s=patience.timeout_s * batches)
        return await self.guard.call(lambda: self.inner.embed(texts, kind), taken, patience, bulk=bulk)

    async def close(self) -> None:
        await self.inner.close()

    async def _asked(self, look: Look) -> None:
        taken = Taken(await asyncio.to_thread(self._tokens, [PROBE]))
        await self.guard.call(look, taken, self._patience[EmbedKind.QUERY])

    def _tokens(self, texts: Sequence[str]) -> int:
        """By the tokenizer that is here, which may not be the server's own."""
        return sum(map(self.inner.count_tokens, texts))
