"""A reranker that a server serves: texts in batches, some requests at a time, scores in order."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whimbrel.errors import ModelMalformed, ModelRefused
from whimbrel.models.background import Background
from whimbrel.models.rerankers.base import Reranker

HALVINGS = 3
"""A text that the server does not take whole is read in up to 2 ** HALVINGS parts."""


class RerankWire(ABC):
    """How one provider is asked. All calls come on one loop; no second attempts, which are not its business."""

    name: str
    """`provider:model`, for messages."""
    batch = 32
    """Texts of one request, at most."""

    @abstractmethod
    async def scores(self, query: str, texts: Sequence[str]) -> Sequence[tuple[int, float]]:
        """(index, score) of every text, in any order. Raises `ModelRefused` for texts that the server does not take,
        other `ModelError`s for what has nothing to do with the texts."""

    async def look(self) -> None:
        """What must be known of the server before it is asked, `batch` among it. Raises `ModelError`."""

    async def identity(self) -> str:
        return self.name

    async def close(self) -> None: ...


class RemoteReranker(Reranker):
    """Safe to call from any thread and loop: its client lives on a loop of its own."""

    def __init__(self, wire: RerankWire, *, at_once: int = 4) -> None:
        """`at_once`: requests under way."""
        self._wire = wire
        self._background = Background("whimbrel-reranker")
        self._turns = asyncio.Semaphore(at_once)

    @property
    def name(self) -> str:
        return self._wire.name

    async def rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return await self._background.run(self._rerank(query, texts))

    async def identity(self) -> str:
        return await self._background.run(self._wire.identity())

    async def close(self) -> None:
        await self._background.run(self._wire.close())
        self._background.stop()

    # --- on its own loop ---------------------------------------------------------------------------------------------

    async def _rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        await self._wire.look()
        size = self._wire.batch
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        found = await asyncio.gather(*(self._some(query, batch) for batch in batches))
        return np.concatenate(found) if found else np.zeros(0, np.float32)

    async def _some(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Of a batch; of one that the server does not take its halves, of a text that it does not take its parts."""
        try:
            async with self._turns:
                return self._checked(await self._wire.scores(query, texts), len(texts))
        except ModelRefused:
            if len(texts) == 1:
                return np.array([await self._in_parts(query, texts[0], HALVINGS)], np.float32)
        middle = len(texts) // 2
        return np.concatenate([await self._some(query, half) for half in (texts[:middle], texts[middle:])])

    async def _in_parts(self, query: str, text: str, left: int) -> float:
        """The best part's score. Raises `ModelRefused` where the parts are refused too."""
        middle = text.find(" ", len(text) // 2)
        middle = len(text) // 2 if middle < 0 else middle
        halves = [half for half in (text[:middle].strip(), text[middle:].strip()) if half]
        best = 0.0
        for half in halves:
            try:
                async with self._turns:
                    score = float(self._checked(await self._wire.scores(query, [half]), 1)[0])
            except ModelRefused:
                if left <= 1 or len(halves) < 2:
                    raise
                score = await self._in_parts(query, half, left - 1)
            best = max(best, score)
        return best

    def _checked(self, found: Sequence[tuple[int, float]], count: int) -> npt.NDArray[np.float32]:
        scores = np.full(count, np.nan, np.float32)
        for index, score in found:
            if not 0 <= index < count or not np.isnan(scores[index]) or not np.isfinite(score):
                break
            scores[index] = score
        if np.isnan(scores).any() or len(found) != count:
            raise ModelMalformed(
                f"{self._wire.name} gave {len(found)} scores for {count} texts, or some that are none of theirs. "
                "None was used.",
                "Check that it is a reranker, and its address.",
            )
        if scores.size and (scores.min() < 0 or scores.max() > 1):
            raise ModelMalformed(
                f"{self._wire.name} gave scores outside of 0 to 1. None was used.",
                "Of a server that gives what its model says as it is, name the form: `?scores=raw`.",
            )
        return scores
