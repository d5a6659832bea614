"""Every model that a home uses, each opened once, behind its guards and caches."""

from __future__ import annotations

from pathlib import Path

from whimbrel.catalog.cache import Cache
from whimbrel.catalog.engine import Catalog
from whimbrel.config import Settings
from whimbrel.guards.guard import Guards
from whimbrel.models.generators.base import Generator
from whimbrel.search.cached import remembering
from whimbrel.search.variants import Variants, variants
from whimbrel.wiring.embedders import Embedders
from whimbrel.wiring.generators import Generators
from whimbrel.wiring.rerankers import Rerankers


class Models:
    """Thread-safe. Nothing is opened or connected to before it is asked for."""

    def __init__(self, settings: Settings, catalog: Catalog, cache_file: Path) -> None:
        """Raises `ConfigError` for guards, or the name of a reranker, that are not understood."""
        kept = settings.cache
        self.cache = Cache(catalog, cache_file, max_bytes=kept.max_bytes, ttl_s=kept.ttl_s, answers_s=kept.answers_s)
        self.guards = Guards(settings.guards, catalog)
        self.embedders = Embedders(settings, catalog, self.cache, self.guards)
        self.rerankers = Rerankers(settings, self.cache, self.guards)
        self.generators = Generators(settings, self.guards)
        self._timeout_s = settings.search.timeout_s
        self._remember = remembering(self.cache)

    def generator(self, spec: str | None = None) -> Generator | None:
        """See `Generators.of`."""
        return self.generators.of(spec)

    async def ask_otherwise(self, question: str, count: int, language: str) -> Variants:
        """Other queries for a question: by what writes answers, else by rules."""
        generator = self.generator()
        return await variants(question, count, language, generator, timeout_s=self._timeout_s, remember=self._remember)

    @property
    def is_open(self) -> bool:
        """Whether there is something for `close` to close."""
        return self.embedders.is_open or self.rerankers.is_open

    async def close(self) -> None:
        """Embedders and the reranker. Generators belong to the loops that they were used on: see `Generators.close`."""
        await self.embedders.close()
        await self.rerankers.close()

    def end(self) -> None:
        """Last of all, before the catalog is closed: what is still being opened is not waited for, and what the caches
        and the ledger have not written yet is written."""
        self.rerankers.abandon()
        self.cache.close()
        self.guards.close()
