"""Which language each lexicon is to be in: what the collection says, or what its documents are found to be in."""

from __future__ import annotations

from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.sampling import sample_texts
from whimbrel.lexicon.language import AUTO, DEFAULT, SAMPLE_CHARS, detect, language_of, uri_of

SAMPLE = 64
"""Documents."""
GROWTH = 4
"""A language is looked at again when the log is so many times as long: the first documents may be unlike the rest."""


def first_language(catalog: Catalog, collection: Collection) -> str | None:
    """Of a collection's first lexicon. None while there is no document to tell it from."""
    if collection.language != AUTO:
        return collection.language
    return (_found(catalog, collection) or DEFAULT) if collection.head else None


class LanguageWatch:
    """Looks, ever more rarely, whether the live lexicons are in the right language."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._looked: dict[int, int] = {}
        """By collection: the head of its log at the last look, or when it was first seen."""

    def is_due(self, collection: Collection, live: ViewRow) -> bool:
        if collection.language != AUTO:
            return collection.language != language_of(live.view.uri, collection.language)
        return collection.head >= GROWTH * self._looked.setdefault(collection.id, max(collection.head, 1))

    def other_uri(self, collection: Collection, live: ViewRow) -> str | None:
        """Of the lexicon that is to take the live one's place; None where that is as it should be."""
        self._looked[collection.id] = max(collection.head, 1)
        wanted = _found(self._catalog, collection) if collection.language == AUTO else collection.language
        if wanted is None or wanted == language_of(live.view.uri, collection.language):
            return None
        return uri_of(wanted)


def _found(catalog: Catalog, collection: Collection) -> str | None:
    with catalog.read() as connection:
        texts = sample_texts(connection, collection.id, SAMPLE, 2 * SAMPLE_CHARS)
    return detect(texts)
