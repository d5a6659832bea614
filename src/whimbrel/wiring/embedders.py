"""Embedders: by their specification, and by the space of the catalog that they serve."""

from __future__ import annotations

import threading

from whimbrel.catalog import compatible, vectors
from whimbrel.catalog.cache import Cache
from whimbrel.catalog.engine import Catalog
from whimbrel.config import Settings
from whimbrel.config.values import listed
from whimbrel.domain import Space
from whimbrel.errors import SpaceMismatch
from whimbrel.guards.embedder import GuardedEmbedder
from whimbrel.guards.guard import Guards
from whimbrel.guards.stand_in import CatalogTrust, StandInEmbedder
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.configured import ConfiguredSpace
from whimbrel.models.embedders.remote import RemoteEmbedder
from whimbrel.models.embedders.resolve import resolve_embedder
from whimbrel.models.embedders.serving import ServingEmbedder
from whimbrel.models.embedders.unknown import UNKNOWN, UnknownEmbedder
from whimbrel.search.cached import CachedEmbedder

SEARCH_SHARE = 0.8
"""Of the time that a search may take, for the vector of its query with all attempts: words are searched beside it."""


class Embedders:
    """Thread-safe."""

    def __init__(self, settings: Settings, catalog: Catalog, cache: Cache, guards: Guards) -> None:
        self._settings = settings
        self._catalog = catalog
        self._cache = cache
        self._guards = guards
        self._opened: dict[str, Embedder] = {}
        self._opened_lock = threading.Lock()
        self._spaces: dict[int, ServingEmbedder] = {}
        self._spaces_lock = threading.Lock()
        self._configured = ConfiguredSpace(settings.embedder, self.of)
        self._recorded: set[int] = set()
        """Spaces that are said in the catalog to be served by the configured embedder."""

    def of(self, spec: str | None = None) -> Embedder:
        """The embedder of a `provider:model`, or of the settings with what stands in for it; behind its guards, opened
        once. Raises `ConfigError`."""
        spec = spec or self._settings.embedder
        with self._opened_lock:
            if spec not in self._opened:
                self._opened[spec] = self._made(spec)
            return self._opened[spec]

    def of_space(self, space_id: int) -> ServingEmbedder:
        """The embedder of a space of the catalog: its own model, or what was declared compatible with it, as the
        catalog says at each call. Raises `SpaceMismatch` when the model is not what it was."""
        with self._spaces_lock:
            known = self._spaces.get(space_id)
        if known is not None:
            return known
        with self._catalog.read() as connection:
            space, _ = vectors.read_space(connection, space_id)
        made = ServingEmbedder(space, lambda: self._serving(space_id))
        made.current()
        with self._spaces_lock:
            return self._spaces.setdefault(space_id, made)

    def searching(self, space_id: int) -> Embedder:
        """As `of_space`; the vectors of queries are kept."""
        serving = self.of_space(space_id)
        return CachedEmbedder(serving, self._cache, lambda: serving.served_by)

    def look_again(self, space_id: int) -> None:
        """What serves a space was decided anew in this process."""
        with self._spaces_lock:
            known = self._spaces.get(space_id)
        if known is not None:
            known.look_again()

    @property
    def opened(self) -> list[str]:
        """Specifications of those that were asked for."""
        with self._opened_lock:
            return list(self._opened)

    @property
    def is_open(self) -> bool:
        return bool(self._opened)

    async def close(self) -> None:
        for embedder in self._opened.values():
            await embedder.close()
        self._opened.clear()

    def _made(self, spec: str) -> Embedder:
        first = self._guarded(spec)
        others = listed(self._settings.embedder_fallback) if spec == self._settings.embedder else []
        return StandInEmbedder(first, [*map(self._guarded, others)], CatalogTrust(self._catalog)) if others else first

    def _guarded(self, spec: str) -> GuardedEmbedder:
        inner = resolve_embedder(spec, threads=self._settings.embed.threads)
        name = inner.name if isinstance(inner, RemoteEmbedder) else spec.partition("?")[0]
        return self._guards.embedder(inner, name, deadline_s=SEARCH_SHARE * self._settings.search.timeout_s)

    def _serving(self, space_id: int) -> Embedder:
        with self._catalog.read() as connection:
            space, spec = vectors.read_space(connection, space_id)
            declared = compatible.serving(connection, space_id)
        if declared is not None:
            return self._held_to(declared.space, declared.embedder)
        if spec == UNKNOWN:
            return UnknownEmbedder(space, self.of())
        if spec != self._configured.spec and self._configured.is_of(space.key):
            spec = self._served_by_configured(space_id)
        return self._held_to(space, spec)

    def _served_by_configured(self, space_id: int) -> str:
        """The same model elsewhere: what is configured now serves the space. Recorded, so that the next start knows it
        while a server is out; once, for another host may be configured otherwise."""
        with self._spaces_lock:
            first = space_id not in self._recorded
            self._recorded.add(space_id)
        if first:
            with self._catalog.write() as connection:
                vectors.record_embedder(connection, space_id, self._configured.spec)
        return self._configured.spec

    def _held_to(self, space: Space, spec: str) -> Embedder:
        embedder = self.of(spec)
        inner = embedder.inner if isinstance(embedder, GuardedEmbedder | StandInEmbedder) else embedder
        if isinstance(inner, RemoteEmbedder):
            inner.expect(space)  # its server may be out; it is held to the space when it answers
        if embedder.space.key != space.key:
            raise SpaceMismatch(
                f"The collection's vectors are of {space.model} ({space.revision[:12]}, {space.dimensions} dimensions, "
                f"{space.numeric}); {spec!r} is now {embedder.space.model} ({embedder.space.revision[:12]}, "
                f"{embedder.space.dimensions}, {embedder.space.numeric}). They were not compared, and nothing was "
                "written.",
                "Install the model that made them, or keep the collection searchable by words (mode lexical). If it is "
                "the same model in another form: `whimbrel move start --embedder MODEL --compatible` measures that.",
            )
        return embedder
