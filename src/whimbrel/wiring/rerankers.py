"""The configured reranker, behind its guards and its cache; and the stage of a search that asks it."""

from __future__ import annotations

import threading

from whimbrel.catalog.cache import Cache
from whimbrel.config import Settings
from whimbrel.guards.guard import Guards
from whimbrel.models.rerankers.base import Reranker
from whimbrel.models.rerankers.resolve import check_provider, resolve_reranker
from whimbrel.search.cached import CachedReranker
from whimbrel.search.reranking import Reranking


class Rerankers:
    def __init__(self, settings: Settings, cache: Cache, guards: Guards) -> None:
        """Raises `ConfigError` for a provider that there is not."""
        self._settings = settings
        self._cache = cache
        self._guards = guards
        self._lock = threading.Lock()
        self._opened: Reranker | None = None
        self.stage = self._stage()
        """None where no reranker is configured."""

    def opened(self) -> Reranker:
        """The configured reranker; opened once. Raises `ConfigError`, also where none is configured; `ModelError`."""
        with self._lock:
            if self._opened is None:
                made = resolve_reranker(self._settings.reranker or "", threads=self._settings.embed.threads)
                guarded = self._guards.reranker(made, deadline_s=self._settings.rerank.budget_ms / 1_000)
                self._opened = CachedReranker(guarded, self._cache)
            return self._opened

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    def abandon(self) -> None:
        """Wait for nothing that is still being opened."""
        if self.stage is not None:
            self.stage.close()

    def _stage(self) -> Reranking | None:
        spec, limits = self._settings.reranker, self._settings.rerank
        if spec is None or spec == "none":
            return None
        check_provider(spec)
        return Reranking(self.opened, candidates=limits.candidates, budget_s=limits.budget_ms / 1_000)
