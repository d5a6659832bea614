"""The first guard around a model: what it has computed is not asked of it again. See `whimbrel.catalog.cache`.

Each has the interface of what it wraps.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.catalog.cache import Cache, Kind, key_of
from whimbrel.domain import EmbedKind, Space
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.rerankers.base import Reranker
from whimbrel.search.variants import INSTRUCTIONS, Remember


class CachedEmbedder(Embedder):
    """Keeps the vectors of queries; those of documents are vectors of record, kept by the catalog.

    Closing it closes nothing: the model belongs to whoever opened it.
    """

    def __init__(self, inner: Embedder, cache: Cache, served_by: Callable[[], Space]) -> None:
        """`served_by`: the space of the model that makes the vectors now, which may be another than that of record."""
        self._inner = inner
        self._cache = cache
        self._served_by = served_by

    @property
    def space(self) -> Space:
        return self._inner.space

    @property
    def tokenizer(self) -> Path:
        return self._inner.tokenizer

    def count_tokens(self, text: str) -> int:
        return self._inner.count_tokens(text)

    def reads(self, text: str) -> float:
        return self._inner.reads(text)

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        if kind is not EmbedKind.QUERY or not self._cache.keeps(Kind.QUERY_VECTORS):
            return await self._inner.embed(texts, kind)
        space = await asyncio.to_thread(self._served_by)
        keys = [key_of(space.key, text) for text in texts]
        known = await self._cache.find(Kind.QUERY_VECTORS, keys)
        known = {key: data for key, data in known.items() if len(data) == 4 * space.dimensions}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            made = await self._inner.embed(list(missing.values()), kind)
            new = {key: vector.astype("<f4").tobytes() for key, vector in zip(missing, made, strict=True)}
            self._cache.keep(Kind.QUERY_VECTORS, new)
            known |= new
        rows = b"".join(known[key] for key in keys)
        return np.frombuffer(rows, "<f4").reshape(len(texts), space.dimensions).astype(np.float32)


class CachedReranker(Reranker):
    """Keeps scores by model, question and text."""

    def __init__(self, inner: Reranker, cache: Cache) -> None:
        self._inner = inner
        self._cache = cache

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def batch(self) -> int:
        return self._inner.batch

    async def identity(self) -> str:
        return await self._inner.identity()

    async def rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if not self._cache.keeps(Kind.RERANK_SCORES):
            return await self._inner.rerank(query, texts)
        model = await self._inner.identity()
        keys = [key_of(model, query, text) for text in texts]
        known = await self._cache.find(Kind.RERANK_SCORES, keys)
        known = {key: data for key, data in known.items() if len(data) == 4}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            made = await self._inner.rerank(query, list(missing.values()))
            new = {key: score.astype("<f4").tobytes() for key, score in zip(missing, made, strict=True)}
            self._cache.keep(Kind.RERANK_SCORES, new)
            known |= new
        return np.frombuffer(b"".join(known[key] for key in keys), "<f4").astype(np.float32)

    async def close(self) -> None:
        await self._inner.close()


def remembering(cache: Cache) -> Remember:
    """Keeps the queries that a model has written for a question."""

    async def remember(
        model: str, question: str, count: int, make: Callable[[], Awaitable[Sequence[str]]]
    ) -> Sequence[str]:
        key = key_of(model, INSTRUCTIONS, question, str(count))
        known = (await cache.find(Kind.VARIANTS, [key])).get(key)
        if known is not None:
            return [str(query) for query in json.loads(known)]
        made = await make()
        cache.keep(Kind.VARIANTS, {key: json.dumps(list(made)).encode()})
        return made

    return remember
