"""Texts of several callers in one call of an embedder: what arrives while calls are under way goes into the next.

Nobody waits for company: where the embedder is idle, a call begins at once. A batch changes no vector, which is what
the port of embedders promises; it saves the way there and back. Questions and documents wait in lanes of their own, so
that a question never waits behind a batch of documents.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from whimbrel.domain import EmbedKind
from whimbrel.errors import ModelBusy, TextRefused

Vectors = npt.NDArray[np.float32]

MOST_RETRY_S = 30


@dataclass(slots=True)
class _Call:
    texts: Sequence[str]
    vectors: asyncio.Future[Vectors]


@dataclass(slots=True)
class _Lane:
    calls: deque[_Call] = field(default_factory=deque)
    waiting: int = 0
    """Texts in `calls`."""
    under_way: int = 0
    """Calls of the embedder."""
    texts_under_way: int = 0
    called: bool = False
    """To begin what can begin."""
    seconds_a_text: float = 0.01
    """As of late."""


class Batching:
    """Of one event loop."""

    def __init__(
        self,
        embed: Callable[[Sequence[str], EmbedKind], Awaitable[Vectors]],
        *,
        at_once: int = 2,
        batch_texts: int = 32,
        most_waiting: int = 2_048,
        observe: Callable[[EmbedKind, int], None] = lambda _kind, _texts: None,
    ) -> None:
        """`embed`: of an embedder. `at_once`: calls of it under way, for each kind of text. `batch_texts`: texts in one
        of them; what one caller brings stays together. `most_waiting`: texts that may wait, of each kind. `observe` is
        told of each batch."""
        self._embed = embed
        self._at_once = at_once
        self._batch_texts = batch_texts
        self._most_waiting = most_waiting
        self._observe = observe
        self._lanes = {kind: _Lane() for kind in EmbedKind}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Texts that wait for their turn."""
        return sum(lane.waiting for lane in self._lanes.values())

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> Vectors:
        """As `Embedder.embed`. Raises `ModelBusy` at once where too many texts wait."""
        lane = self._lanes[kind]
        if lane.calls and lane.waiting + len(texts) > self._most_waiting:
            wait = lane.waiting * lane.seconds_a_text
            raise ModelBusy(
                f"{lane.waiting} texts wait for this model already. Nothing was computed.",
                "Wait as long as Retry-After says, or send less at once.",
                retry_after_s=min(max(1, math.ceil(wait)), MOST_RETRY_S),
            )
        call = _Call(texts, asyncio.get_running_loop().create_future())
        lane.calls.append(call)
        lane.waiting += len(texts)
        self._soon(kind, lane)
        try:
            return await call.vectors
        except asyncio.CancelledError:
            if call in lane.calls:
                lane.calls.remove(call)
                lane.waiting -= len(texts)
            raise

    async def close(self) -> None:
        """What waits is cancelled; what is under way too."""
        for lane in self._lanes.values():
            for call in lane.calls:
                call.vectors.cancel()
            lane.calls.clear()
            lane.waiting = 0
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _soon(self, kind: EmbedKind, lane: _Lane) -> None:
        """After those callers whose turn it is now: who was just answered comes with the next text."""
        if not lane.called:
            lane.called = True
            asyncio.get_running_loop().call_soon(self._begin, kind, lane)

    def _begin(self, kind: EmbedKind, lane: _Lane) -> None:
        lane.called = False
        while lane.calls and lane.under_way < self._at_once:
            batch = self._next(lane)
            lane.under_way += 1
            task = asyncio.create_task(self._run(batch, kind, lane))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next(self, lane: _Lane) -> list[_Call]:
        """An equal share of what is there: one large batch would leave the other turns to single texts."""
        batch: list[_Call] = []
        texts = 0
        share = min(self._batch_texts, math.ceil((lane.waiting + lane.texts_under_way) / self._at_once))
        while lane.calls and (not batch or texts + len(lane.calls[0].texts) <= share):
            call = lane.calls.popleft()
            texts += len(call.texts)
            batch.append(call)
        lane.waiting -= texts
        lane.texts_under_way += texts
        return batch

    async def _run(self, batch: list[_Call], kind: EmbedKind, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._answer(batch, kind)
        finally:
            texts = sum(len(call.texts) for call in batch)
            if texts:
                lane.seconds_a_text += 0.2 * ((loop.time() - began) / texts / self._at_once - lane.seconds_a_text)
            lane.under_way -= 1
            lane.texts_under_way -= texts
            self._soon(kind, lane)

    async def _answer(self, batch: list[_Call], kind: EmbedKind) -> None:
        """Each caller gets its own vectors, or the error that is its own: a text that is refused stops nobody else."""
        texts = [text for call in batch for text in call.texts]
        self._observe(kind, len(texts))
        try:
            vectors = await self._embed(texts, kind)
        except TextRefused as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            refused = _whose(batch, error.positions)
            for call in refused or batch:
                await self._answer([call], kind)
            if refused and (others := [call for call in batch if call not in refused]):
                await self._answer(others, kind)
        except asyncio.CancelledError:
            for call in batch:
                call.vectors.cancel()
            raise
        except Exception as error:  # whatever it is, each caller is to learn it
            for call in batch:
                _fail(call, error)
        else:
            start = 0
            for call in batch:
                if not call.vectors.done():
                    call.vectors.set_result(vectors[start : start + len(call.texts)])
                start += len(call.texts)


def _whose(batch: Sequence[_Call], positions: Sequence[int]) -> list[_Call]:
    """The callers of the texts at these places in the batch."""
    found, start = [], 0
    for call in batch:
        end = start + len(call.texts)
        if any(start <= position < end for position in positions):
            found.append(call)
        start = end
    return found


def _fail(call: _Call, error: Exception) -> None:
    if not call.vectors.done():
        call.vectors.set_exception(error)
