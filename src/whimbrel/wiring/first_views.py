"""Where a collection's first view of a kind goes, by the settings."""

from __future__ import annotations

from whimbrel.catalog import adoptions, collections, vectors
from whimbrel.catalog.adoptions import AdoptionState
from whimbrel.catalog.collections import Collection
from whimbrel.catalog.engine import Catalog
from whimbrel.config import Settings
from whimbrel.config.values import without_credentials
from whimbrel.domain import ViewKind
from whimbrel.lexicon.language import DEFAULT, uri_of
from whimbrel.owner.languages import first_language
from whimbrel.owner.parts import Where
from whimbrel.stores.resolve import parse_uri
from whimbrel.wiring.cutting import Cuttings
from whimbrel.wiring.embedders import Embedders


class FirstViews:
    def __init__(self, settings: Settings, catalog: Catalog, embedders: Embedders, cuttings: Cuttings) -> None:
        self._settings = settings
        self._catalog = catalog
        self._embedders = embedders
        self._cuttings = cuttings

    def __call__(self, collection: Collection, kind: ViewKind) -> Where | None:
        """None while it cannot be told yet. Raises `ConfigError`, and what an embedder raises that is asked what it
        is."""
        language = first_language(self._catalog, collection) if kind is ViewKind.LEXICON else DEFAULT
        if language is None or (kind is ViewKind.LEXICON and self._is_adopting(collection)):
            return None
        parse_uri(self._settings.store)
        spec = self._cuttings.configured.spec
        makes = self._embedders.of().space if kind is ViewKind.STORE else None  # which may have to ask a server
        with self._catalog.write() as connection:
            chunking = collections.collection_chunking(connection, collection.id)
            if chunking is None:
                chunking = collections.chunking_id(connection, spec)
            space = None
            if makes is not None:
                space = vectors.space_id(connection, makes, self._settings.embedder)
        uri = without_credentials(self._settings.store) if kind is ViewKind.STORE else uri_of(language)
        return uri, space, chunking

    def _is_adopting(self, collection: Collection) -> bool:
        """Its rows are still being taken in: a lexicon that is built meanwhile would take turns with them."""
        with self._catalog.read() as connection:
            found = adoptions.find(connection, collection.id)
        return found is not None and found.state is AdoptionState.ADOPTING
