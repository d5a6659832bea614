"""The stage after fusion: a reranker reads the question and the best hits, and orders them anew.

It is bounded by the number of hits and by time. What was not judged in time keeps its order after what was, and a
reranker that is out leaves the hits as they were; both are said, never hidden.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Hit
from whimbrel.errors import ModelSlow, WhimbrelError
from whimbrel.models.rerankers.base import Reranker

logger = logging.getLogger("whimbrel.search")

AT_ONCE = 2
"""Calls under way for one search, so that the reranker need not wait for the next."""


class Reranking:
    """Thread-safe."""

    def __init__(self, reranker: Callable[[], Reranker], *, candidates: int, budget_s: float) -> None:
        """`reranker` opens it, which may take long (a download); it is called once, unless it fails."""
        self.candidates = candidates
        self._budget_s = budget_s
        self._open = reranker
        self._lock = threading.Lock()
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="reranker")
        self._opened: Future[Reranker] | None = None

    async def __call__(self, query: str, hits: Sequence[Hit]) -> tuple[list[Hit], str]:
        """The hits in their new order, and what was out, in words; empty where nothing was.

        The `score` of what was judged is the reranker's, and `retrieval_score` what it was before.
        """
        some = hits[: self.candidates]
        deadline = time.monotonic() + self._budget_s
        scores = np.full(len(some), np.nan, np.float32)
        try:
            opening = asyncio.wrap_future(self._reranker())
            opening.add_done_callback(lambda found: found.cancelled() or found.exception())  # it may come too late
            await asyncio.wait([opening], timeout=self._budget_s)
            if not opening.done():
                return list(hits), "rerank: the reranker is still being opened"
            await _judge(opening.result(), query, [judged_text(hit) for hit in some], scores, deadline)
        except WhimbrelError as error:
            return list(hits), f"rerank: {error}"
        except Exception as defect:  # of ours or of a library: the hits are there all the same
            logger.exception("reranking failed")
            return list(hits), f"rerank: {type(defect).__name__} inside it; the log has the details"
        done = int((~np.isnan(scores)).sum())
        note = f"rerank: {done} of {len(some)} in time" if done < len(some) else ""
        return _ordered(hits, scores), note

    def close(self) -> None:
        self._opener.shutdown(wait=False, cancel_futures=True)

    def _reranker(self) -> Future[Reranker]:
        with self._lock:
            opened = self._opened
            if opened is None or (opened.done() and (opened.cancelled() or opened.exception() is not None)):
                opened = self._opened = self._opener.submit(self._open)
            return opened


async def _judge(
    reranker: Reranker, query: str, texts: Sequence[str], scores: npt.NDArray[np.float32], deadline: float
) -> None:
    """Fill `scores`, best candidates first, until the deadline: what is not judged then stays NaN. Raises what the
    reranker raises; one that is slow has judged some in time."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def some(start: int) -> None:
        async with turns:
            batch = texts[start : start + reranker.batch]
            scores[start : start + len(batch)] = await reranker.rerank(query, batch)

    tasks = [asyncio.create_task(some(start)) for start in range(0, len(texts), reranker.batch)]
    try:
        if tasks:
            left = max(0.0, deadline - time.monotonic())
            await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [found for found in ended if isinstance(found, Exception)]
    if failed and (np.isnan(scores).all() or not isinstance(failed[0], ModelSlow)):
        raise failed[0]


def _ordered(hits: Sequence[Hit], scores: npt.NDArray[np.float32]) -> list[Hit]:
    judged = [index for index, score in enumerate(scores.tolist()) if score == score]
    judged.sort(key=lambda index: -scores[index])  # stable: equal ones keep the order of the fusion
    best = [
        replace(hits[index], score=round(float(scores[index]), 6), retrieval_score=hits[index].score)
        for index in judged
    ]
    taken = set(judged)
    rest = [hit for index, hit in enumerate(hits) if index not in taken]
    return [replace(hit, rank=rank) for rank, hit in enumerate([*best, *rest], 1)]


def judged_text(hit: Hit) -> str:
    """What a reranker reads of a hit: its text, after its title where that is not in it."""
    return f"{hit.title}\n{hit.text}" if hit.title and hit.title not in hit.text else hit.text
