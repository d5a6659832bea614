"""How well both sides of a move find: judged queries, searched through the source's views and through the target's.

As a search of the product goes, by hybrid and dense search, without its bounds in time; a document is as good as its
best chunk. Needs neither side to be live.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.catalog import collections, rows
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.matching import match_documents
from whimbrel.catalog.moves import Move
from whimbrel.domain import EmbedKind, Mode
from whimbrel.errors import BadInput, ViewDamaged
from whimbrel.judging.compare import compare
from whimbrel.judging.judged import read_judged
from whimbrel.judging.metrics import DEPTH, METRICS, measures
from whimbrel.lexicon.tantivy import TantivyLexicon
from whimbrel.models.embedders.base import Embedder
from whimbrel.search.fusion import fuse
from whimbrel.search.readers import Readers
from whimbrel.stores.base import Store

QUERIES = 500
"""Judged ones that are searched for, at most; drawn always alike."""
MODES = (Mode.HYBRID, Mode.DENSE)
EMBEDDED = 32
"""Queries that are embedded at once."""
MOST_ROWS = 20_000
"""That a query asks a view for, at most."""

Tell = Callable[[int, int], Awaitable[None]]
"""Called with how many searches are done, and how many there are."""
_Views = tuple[int | None, int | None]
"""Of a store, and of a lexicon."""
Values = dict[str, dict[str, dict[str, float]]]
"""Mode -> metric -> query id -> value."""


@dataclass(frozen=True, slots=True)
class JudgedHere:
    """What is judged of a collection."""

    name: str
    documents: int
    """Judged ones with a text, wherever they are."""
    names: Mapping[str, str]
    """Public id -> judged id, of those that are in the collection."""
    queries: Mapping[str, str]
    """Those with a relevant document in the collection."""
    grades: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class _Side:
    collection: Collection
    row: ViewRow
    """Of the store."""
    store: Store
    lexicon: TantivyLexicon
    wanted: int
    """Rows that a search asks each view for, at first."""


def judged_here(catalog: Catalog, collection_id: int, folder: Path) -> JudgedHere:
    """Read judgements in BEIR's layout. Raises `PathNotFound` and `BadInput` for the files, and `BadInput` where the
    collection has none of their documents."""
    judged = read_judged(folder, queries=QUERIES)
    known = [one.id for one in judged.documents]
    with catalog.read() as connection:
        names = match_documents(connection, collection_id, known)
    there = set(names.values())
    grades = {
        query: {document: grade for document, grade in of.items() if document in there}
        for query, of in judged.grades.items()
    }
    queries = {query: text for query, text in judged.queries.items() if any(grades[query].values())}
    if not queries:
        raise BadInput(
            f"{judged.name!r} judges none of the collection's documents: {len(there):,} of {len(known):,} are in it.",
            "A document is known by its external id, by `_id` in its metadata, or by its file's name without ending.",
        )
    return JudgedHere(judged.name, len(known), names, queries, grades)


class Quality:
    """Called with a move whose request names a folder of judged queries."""

    def __init__(
        self,
        catalog: Catalog,
        open_store: Callable[[ViewRow], Store],
        open_lexicon: Callable[[ViewRow, str], TantivyLexicon],
        embedder_for: Callable[[int], Embedder],
        *,
        candidates: int,
        max_query_chars: int,
    ) -> None:
        """`candidates`, `max_query_chars`: as searches have them."""
        self._catalog = catalog
        self._open = (open_store, open_lexicon)
        self._embedder_for = embedder_for
        self._candidates = candidates
        self._max_chars = max_query_chars

    async def __call__(self, move: Move, tell: Tell) -> dict[str, Any]:
        """One JSON object: of both sides each measure, and a paired test of the difference. `tell(done, of)`.

        Raises `PathNotFound` and `BadInput` for the folder, `ViewError` where a side does not answer.
        """
        of, judged_in = move.collection_id, Path(move.request.judged)
        judged = await asyncio.to_thread(judged_here, self._catalog, of, judged_in)
        count = len(judged.queries)
        source, target = (move.source_store, move.source_lexicon), (move.target_store, move.target_lexicon)
        before = await self._side(of, source, judged, lambda done: tell(done, 2 * count))
        after = await self._side(of, target, judged, lambda done: tell(count + done, 2 * count))
        return await self._compared(judged, before, after)

    async def of_models(self, row: ViewRow, judged: JudgedHere, before: Embedder, after: Embedder) -> dict[str, Any]:
        """The same, of two models that embed the queries of one store view."""
        views = (row.id, None)
        sides = [await self._side(row.view.collection_id, views, judged, _quietly, one) for one in (before, after)]
        return await self._compared(judged, *sides)

    @staticmethod
    async def _compared(judged: JudgedHere, before: Values, after: Values) -> dict[str, Any]:
        compared = await asyncio.to_thread(compare, before, after)
        return {
            "name": judged.name,
            "documents": judged.documents,
            "matched": len(judged.names),
            "queries": compared.queries,
            "modes": compared.as_dict()["modes"],
        }

    async def _side(
        self,
        collection_id: int,
        views: _Views,
        judged: JudgedHere,
        tell: Callable[[int], Awaitable[None]],
        embedder: Embedder | None = None,
    ) -> Values:
        """`embedder`: where it is not that of the view's space."""
        values: Values = {mode: {metric: {} for metric in METRICS} for mode in MODES}
        async with self._opened(collection_id, *views) as side:
            assert side.row.view.space_id is not None
            if embedder is None:
                embedder = await asyncio.to_thread(self._embedder_for, side.row.view.space_id)
            keys = list(judged.queries)
            for start in range(0, len(keys), EMBEDDED):
                some = keys[start : start + EMBEDDED]
                texts = [judged.queries[key][: self._max_chars] for key in some]
                vectors = await embedder.embed(texts, EmbedKind.QUERY)
                for key, text, vector in zip(some, texts, vectors, strict=True):
                    for mode, ranking in (await self._rankings(side, text, vector, embedder.reads(text))).items():
                        names = [judged.names[one] for one in ranking if one in judged.names]
                        for metric, value in measures(names, judged.grades[key]).items():
                            values[mode][metric][key] = value
                await tell(start + len(some))
        return values

    @asynccontextmanager
    async def _opened(self, collection_id: int, store: int | None, lexicon: int | None) -> AsyncIterator[_Side]:
        """Handles of one's own: those that searches have belong to another loop. Without a lexicon, the live one."""
        readers = Readers(*self._open)
        try:
            collection, row, words, wanted = await asyncio.to_thread(self._read, collection_id, store, lexicon)
            side = _Side(
                collection, row, await readers.store(row), await readers.lexicon(words, collection.language), wanted
            )
            yield side
        finally:
            await readers.close_all()

    def _read(
        self, collection_id: int, store: int | None, lexicon: int | None
    ) -> tuple[Collection, ViewRow, ViewRow, int]:
        assert store is not None
        with self._catalog.read() as connection:
            collection = collections.by_id(connection, collection_id)
            words = lexicon if lexicon is not None else (collection.lexicon_view_id if collection else None)
            if collection is None or words is None:
                raise ViewDamaged("The collection has no live lexicon.", "Verify again when it has been built.")
            row = collections.view(connection, store)
            chunks = rows.count_chunks(connection, collection.id, row.view.chunking_id)
            found = collections.view(connection, words)
        # As many chunks as hold the documents that the measures read, where a document has as many as the others.
        return collection, row, found, max(self._candidates, min(chunks, 4 * DEPTH))

    async def _rankings(
        self, side: _Side, text: str, vector: npt.NDArray[np.float32], read: float
    ) -> dict[Mode, list[str]]:
        """Documents by their best chunks, by mode."""
        wanted = side.wanted
        while True:
            dense = await side.store.search(vector, wanted)
            lexical = await asyncio.to_thread(side.lexicon.search, text, wanted)
            words = await asyncio.to_thread(side.lexicon.words, text)
            found = {}
            for mode in MODES:
                best = fuse(mode, dense, lexical, words, read)
                found[mode] = await asyncio.to_thread(self._documents, side, [one.chunk_id for one in best])
            least = min(len(ranking) for ranking in found.values())
            if least >= DEPTH or max(len(dense.ids), len(lexical.ids)) < wanted or wanted >= MOST_ROWS:
                return {mode: ranking[:DEPTH] for mode, ranking in found.items()}
            wanted *= 3

    def _documents(self, side: _Side, ids: Sequence[str]) -> list[str]:
        with self._catalog.read() as connection:
            found = rows.hydrate(connection, side.collection.id, side.row.view.chunking_id, ids)
        return list(dict.fromkeys(found[id_].document_id for id_ in ids if id_ in found))


async def _quietly(_done: int) -> None:
    """Nobody is told how far it is."""
