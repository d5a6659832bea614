"""Chunks that another model cannot read whole. Chunks are counted with the tokens of the model that they were made for;
a view of another model in the same chunking keeps them as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from whimbrel.catalog import rows, spans
from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import AnyRow
from whimbrel.catalog.keys import among
from whimbrel.domain import embedded_text

LISTED = 20
_BATCH = 2_000


@dataclass(frozen=True, slots=True)
class Longer:
    """What a model would refuse of a collection."""

    chunks: int
    """That there are."""
    looked_at: int
    """Of them: all, or every n-th."""
    longer: int
    """Of those that were looked at."""
    longest: int
    """Tokens of the longest chunk that was looked at."""
    documents: int
    """That have a longer chunk among those that were looked at."""
    examples: Sequence[tuple[str, int]]
    """(URI, longer chunks) of the first of them, most first."""

    @property
    def expected(self) -> int:
        """About how many are longer in all; exactly, where all were looked at."""
        return round(self.longer * self.chunks / self.looked_at) if self.looked_at else 0


def longer_than(
    connection: Connection,
    collection_id: int,
    chunking_id: int,
    count: Callable[[str], int],
    limit: int,
    *,
    at_most: int = 20_000,
) -> Longer:
    """Which chunks of a collection have more than `limit` tokens by another model's `count_tokens`.

    Of more than `at_most` chunks every n-th is counted (some thousand a second), from the whole collection.
    """
    there = rows.count_chunks(connection, collection_id, chunking_id)
    every = max(1, -(-there // at_most))
    looked_at = longest = 0
    found: Counter[int] = Counter()
    for batch in _every(connection, collection_id, chunking_id, every):
        for row, text in zip(batch, spans.read_spans(connection, batch), strict=True):
            tokens = count(embedded_text(row.context, text))
            longest = max(longest, tokens)
            if tokens > limit:
                found[row.document_id] += 1
        looked_at += len(batch)
    return Longer(there, looked_at, found.total(), longest, len(found), _named(connection, found.most_common(LISTED)))


def _every(connection: Connection, collection_id: int, chunking_id: int, every: int) -> Iterator[Sequence[AnyRow]]:
    """Each n-th chunk, by key, in batches."""
    chunks = t.chunks.c
    columns = (chunks.id, chunks.document_id, chunks.start, chunks.end, chunks.segment_id, chunks.context)
    last = rows.max_chunk_key(connection, collection_id, chunking_id)
    after = seen = 0
    while keys := rows.next_keys(connection, collection_id, chunking_id, after=after, upto=last, limit=_BATCH):
        after = keys[-1]
        chosen = keys[-seen % every :: every]
        seen += len(keys)
        if chosen:
            yield connection.execute(select(*columns).where(among(chunks.id, chosen)).order_by(chunks.id)).all()


def _named(connection: Connection, found: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    query = select(t.documents.c.id, t.documents.c.uri).where(among(t.documents.c.id, [key for key, _ in found]))
    uris = {row.id: str(row.uri) for row in connection.execute(query)}
    return [(uris[key], count) for key, count in found]
