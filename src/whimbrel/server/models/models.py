"""What a process serves: an embedder, a reranker, or both."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import ModelBusy, NotFound
from whimbrel.models.batching import Batching, Vectors
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.remote import RemoteEmbedder
from whimbrel.models.rerankers.base import Reranker
from whimbrel.server.models.metrics import Metrics
from whimbrel.server.models.shapes import MOST_TEXTS
from whimbrel.server.version import version

T = TypeVar("T")

BATCH_TEXTS = 32
"""Texts that go to the embedder together."""
ADVISED_TEXTS, ADVISED_TOKENS = 256, 16_384
"""Of one request, as `/info` tells clients; more are taken."""
RERANKS_AT_ONCE, RERANKS_WAITING = 2, 64


@dataclass(frozen=True, slots=True)
class Served:
    """A model and the name that it is configured by."""

    spec: str
    space: Space
    tokenizer: str
    """SHA-256 of its `tokenizer.json`: who has the same one counts the same tokens."""

    @property
    def names(self) -> Sequence[str]:
        """What clients may call it."""
        return list(dict.fromkeys((self.space.model, self.space.model.rpartition("/")[2], self.spec)))


class Models:
    """Of one event loop. Nothing is loaded before `load`."""

    def __init__(self, *, embedder: str = "", reranker: str = "", most_waiting: int = 2_048) -> None:
        """`embedder`, `reranker`: what they are configured by, empty for none. `most_waiting`: texts of each kind."""
        self.embedder_spec, self.reranker_spec = embedder, reranker
        self.served: Served | None = None
        self.ready = False
        """Loaded."""
        self.metrics = Metrics(lambda: self._batching.waiting if self._batching is not None else 0)
        self._most_waiting = most_waiting
        self._embedder: Embedder | None = None
        self._reranker: Reranker | None = None
        self._reranks_as = ""
        self._batching: Batching | None = None
        self._reranking = _Turns(RERANKS_AT_ONCE, RERANKS_WAITING)

    async def load(self, open_embedder: Callable[[str], Embedder], open_reranker: Callable[[str], Reranker]) -> None:
        """Open and run once what is configured. Raises `ConfigError`, `ModelError`, `MissingExtra`."""
        if self.reranker_spec:
            self._reranker = await asyncio.to_thread(open_reranker, self.reranker_spec)
            await self._reranker.rerank("warm", ["up"])
            self._reranks_as = await self._reranker.identity()
        if self.embedder_spec:
            self._embedder = await asyncio.to_thread(open_embedder, self.embedder_spec)
            await self._embedder.embed(["warm up"], EmbedKind.QUERY)
            self.served = await asyncio.to_thread(_described, self.embedder_spec, self._embedder)
            self._batching = Batching(
                self._embedder.embed,
                batch_texts=BATCH_TEXTS,
                most_waiting=self._most_waiting,
                observe=self.metrics.batch,
            )
        self.ready = True

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> Vectors:
        """As `Embedder.embed`. Raises `NotFound` where no embedder is served, `ModelBusy`."""
        self.embeds()
        assert self._batching is not None
        return await self._batching.embed(texts, kind)

    async def rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """As `Reranker.rerank`. Raises `NotFound` where no reranker is served, `ModelBusy`."""
        if self._reranker is None:
            raise NotFound("No reranker is served here.", "Start `whimbrel models` with --reranker.")
        reranker = self._reranker
        return await self._reranking.take(lambda: reranker.rerank(query, texts))

    def embeds(self) -> Served:
        """The embedder that is served. Raises `NotFound`."""
        if self.served is None:
            raise NotFound("No embedder is served here.", "Start `whimbrel models` with --embedder.")
        return self.served

    async def count_tokens(self, texts: Sequence[str]) -> int:
        embedder = self._embedder
        assert embedder is not None
        return await asyncio.to_thread(lambda: sum(embedder.count_tokens(text) for text in texts))

    async def cut(self, texts: Sequence[str]) -> list[str]:
        """Each text, or the longest beginning of it that the model reads."""
        assert self._embedder is not None
        return await asyncio.to_thread(lambda: [_cut(text, self._embedder) for text in texts])

    def info(self) -> Mapping[str, Any]:
        """TEI's `/info`; what begins with `whimbrel_` is ours: our own client makes the same space of it."""
        served = self.served
        kinds: dict[str, Any] = {"embedding": {"pooling": served.space.pooling}} if served else {}
        if self.reranker_spec:
            kinds["reranker"] = {"id2label": {"0": "relevance"}, "label2id": {"relevance": 0}}
        said: dict[str, Any] = {
            "model_id": served.space.model if served else self.reranker_spec,
            "model_sha": served.space.revision if served else None,
            "model_dtype": served.space.numeric if served else "served",
            "model_type": kinds,
            "max_concurrent_requests": self._most_waiting,
            "max_input_length": served.space.max_tokens if served else 512,
            "max_batch_tokens": ADVISED_TOKENS,
            "max_batch_requests": BATCH_TEXTS,
            "max_client_batch_size": min(ADVISED_TEXTS, MOST_TEXTS),
            "auto_truncate": False,
            "tokenization_workers": 1,
            "version": version(),
            "whimbrel_reranker": self._reranks_as or None,
        }
        if served:
            said |= {"whimbrel_space": asdict(served.space), "whimbrel_tokenizer": served.tokenizer}
        return said

    async def close(self) -> None:
        if self._batching is not None:
            await self._batching.close()
        for model in (self._embedder, self._reranker):
            if model is not None:
                await model.close()


class _Turns:
    """Some at a time; some more wait; others are sent away."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._most = at_once + waiting
        self._here = 0

    async def take(self, work: Callable[[], Awaitable[T]]) -> T:
        if self._here >= self._most:
            raise ModelBusy(
                f"{self._here} requests wait for this model already. Nothing was computed.",
                "Wait as long as Retry-After says.",
                retry_after_s=1.0,
            )
        self._here += 1
        try:
            async with self._turns:
                return await work()
        finally:
            self._here -= 1


def _described(spec: str, embedder: Embedder) -> Served:
    if isinstance(embedder, RemoteEmbedder):
        return Served(spec, embedder.space, "")
    with embedder.tokenizer.open("rb") as file:
        return Served(spec, embedder.space, hashlib.file_digest(file, "sha256").hexdigest())


def _cut(text: str, embedder: Embedder | None) -> str:
    assert embedder is not None
    most = embedder.space.max_tokens
    if embedder.count_tokens(text) <= most:
        return text
    fits, over = 0, len(text)
    while over - fits > 1:
        middle = (fits + over) // 2
        if embedder.count_tokens(text[:middle]) <= most:
            fits = middle
        else:
            over = middle
    return text[:fits]
