"""Cutting the documents of a collection in another chunking, from the catalog's own text.

A pass in steps, by document key. Each step is one transaction, and can be done again: what has its chunks already is
passed over, and what is written meanwhile is cut by its writer. The work is done in the extraction workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from whimbrel.catalog import recuts
from whimbrel.catalog.collections import Collection
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.recuts import Uncut
from whimbrel.domain import ChunkSpan
from whimbrel.errors import Conflict, ExtractionFailed
from whimbrel.ingest.pipeline import Cutting
from whimbrel.ingest.workers import ExtractionPool

BATCH_DOCUMENTS = 256
BATCH_CHARS = 2_000_000
"""Of the texts that a step holds: with their copies in the workers, some 30 MB."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a step has done."""

    reached: int
    """Every document up to this key has its chunks: where the next step begins."""
    documents: int
    """Documents that it cut."""
    chunks: int


@dataclass(frozen=True, slots=True)
class Recut:
    """Wired by `whimbrel.app`."""

    pool: Callable[[], ExtractionPool]
    cutting_of: Callable[[Collection], Cutting]

    async def step(
        self,
        catalog: Catalog,
        collection: Collection,
        chunking_id: int,
        *,
        after: int,
        upto: int,
        fence: int | None,
        also: Callable[[Connection, Step], None],
    ) -> Step:
        """Cut the next documents in `(after, upto]` that have no chunks in a chunking that a view of the collection
        has. `also` is called in the transaction that writes them: there the caller keeps how far it is.

        The chunks are those that the same documents would have if they were read anew. Raises `Conflict` where no view
        has this chunking (any more), and `ExtractionFailed`, which names the document, where a text cannot be cut in
        the time or memory of a worker; those beside it are kept, and passed over the next time.
        """
        cutting = await asyncio.to_thread(self.cutting_of, collection)
        if chunking_id not in cutting.ways:
            raise Conflict("No view of the collection has this chunking. Nothing was cut.")
        found = await asyncio.to_thread(_read, catalog, collection.id, chunking_id, after, upto)
        results = await asyncio.gather(*(self._cut(one, cutting, chunking_id) for one in found.documents))
        failed = [error for error in results if isinstance(error, ExtractionFailed)]
        made = [
            (one, result)
            for one, result in zip(found.documents, results, strict=True)
            if not isinstance(result, ExtractionFailed)
        ]
        reached = after if failed else found.reached

        def write() -> Step:
            with catalog.write(fence=fence) as connection:
                chunks = recuts.write_cuts(connection, collection.id, chunking_id, made)
                step = Step(reached, len(made), chunks)
                also(connection, step)
            return step

        step = await asyncio.to_thread(write)
        if failed:
            raise failed[0]
        return step

    async def _cut(self, one: Uncut, cutting: Cutting, chunking_id: int) -> Sequence[ChunkSpan] | ExtractionFailed:
        request = cutting.request(one.text, one.cut_title, [chunking_id], pages=one.pages)
        try:
            return (await self.pool().process(request)).spans
        except ExtractionFailed as error:
            return type(error)(f"{one.uri} cannot be cut: {error.message}", error.hint)


def _read(catalog: Catalog, collection_id: int, chunking_id: int, after: int, upto: int) -> recuts.Found:
    with catalog.read() as connection:
        return recuts.uncut(
            connection,
            collection_id,
            chunking_id,
            after=after,
            upto=upto,
            limit=BATCH_DOCUMENTS,
            max_chars=BATCH_CHARS,
        )
