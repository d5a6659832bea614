"""The vectors of record: what was computed or adopted, found again by space and exact text."""

from __future__ import annotations

from collections.abc import Collection as Items
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, delete, exists, func, select, update

from whimbrel.catalog import bulk
from whimbrel.catalog import tables as t
from whimbrel.catalog.documents import batched, lock_texts
from whimbrel.catalog.engine import AnyRow, take_keys
from whimbrel.catalog.keys import among
from whimbrel.catalog.spans import read_spans
from whimbrel.domain import Space, embedded_text


@dataclass(frozen=True, slots=True)
class Missing:
    """Texts that have no vector of record in a space, nor a refusal."""

    text_ids: Sequence[int]
    texts: Sequence[str]
    """Exactly what the embedder is to read."""

    def without(self, text_ids: Items[int]) -> Missing:
        open_ = [(key, text) for key, text in zip(self.text_ids, self.texts, strict=True) if key not in text_ids]
        return Missing([key for key, _ in open_], [text for _, text in open_])


def space_id(connection: Connection, space: Space, embedder: str) -> int:
    """The catalog's key of a space, made on first sight."""
    known = connection.execute(select(t.spaces.c.id).where(t.spaces.c.key == space.key)).scalar()
    if known is not None:
        return int(known)
    key = take_keys(connection, "spaces", 1)  # others that make it too wait here
    row = {"id": key, "key": space.key, "embedder": embedder, "definition": asdict(space)}
    return bulk.insert_once(connection, t.spaces, row, "key")


def read_space(connection: Connection, key: int) -> tuple[Space, str]:
    """A space, and the `provider:model` that was last configured and made vectors of it."""
    row = connection.execute(select(t.spaces.c.definition, t.spaces.c.embedder).where(t.spaces.c.id == key)).one()
    return Space(**row.definition), row.embedder


def record_embedder(connection: Connection, key: int, embedder: str) -> None:
    """The `provider:model` that makes vectors of this space now."""
    connection.execute(update(t.spaces).where(t.spaces.c.id == key).values(embedder=embedder))


def missing(connection: Connection, space: int, chunk_keys: Sequence[int]) -> Missing:
    """What of these chunks has still to be embedded; each text once."""
    chunks, vectors = t.chunks.c, t.vectors.c
    found: list[AnyRow] = []
    for batch in batched(chunk_keys, 5_000):
        query = (
            select(chunks.text_id, chunks.context, chunks.start, chunks.end, chunks.segment_id)
            .where(among(chunks.id, batch))
            .where(~exists().where(vectors.text_id == chunks.text_id, vectors.space_id == space))
        )
        found.extend(connection.execute(query))
    first = list({row.text_id: row for row in found}.values())
    texts = [embedded_text(row.context, text) for row, text in zip(first, read_spans(connection, first), strict=True)]
    return Missing([row.text_id for row in first], texts)


def are_missing(connection: Connection, space: int, collection_id: int, chunking_id: int) -> bool:
    """Whether a chunk of a collection has neither a vector of record nor a refusal."""
    chunks, vectors = t.chunks.c, t.vectors.c
    query = select(chunks.id).where(chunks.collection_id == collection_id, chunks.chunking_id == chunking_id)
    without = query.where(~exists().where(vectors.text_id == chunks.text_id, vectors.space_id == space))
    return connection.execute(without.limit(1)).first() is not None


def put(
    connection: Connection,
    space: int,
    text_ids: Sequence[int],
    vectors: npt.NDArray[np.float32],
    refused: Mapping[int, str] | None = None,
) -> None:
    """Store vectors, float32[len(text_ids), d], and refusals by text id. A text that has one already keeps it."""
    refused = refused or {}
    if not text_ids and not refused:
        return
    lock_texts(connection, alone=False)
    # Before it is asked which are wanted: two that store the same texts take turns here; the second sees the first's.
    first = take_keys(connection, "vectors", len(text_ids) + len(refused))
    wanted = without_vector(connection, space, [*text_ids, *refused])
    packed = np.ascontiguousarray(vectors, dtype="<f4")
    rows = [
        {"space_id": space, "text_id": text, "data": packed[index].tobytes(), "reason": ""}
        for index, text in enumerate(text_ids)
        if text in wanted
    ]
    rows += [
        {"space_id": space, "text_id": text, "data": None, "reason": reason}
        for text, reason in refused.items()
        if text in wanted
    ]
    if not rows:
        return
    for key, row in enumerate(rows, first):
        row["id"] = key
    bulk.insert(connection, t.vectors, rows)


def without_vector(connection: Connection, space: int, text_ids: Sequence[int]) -> set[int]:
    """Those that are still known (an erasure may have removed one while it was being embedded) and have none yet."""
    open_texts: set[int] = set()
    for batch in batched(text_ids, 5_000):
        query = (
            select(t.texts.c.id)
            .where(among(t.texts.c.id, batch))
            .where(~exists().where(t.vectors.c.text_id == t.texts.c.id, t.vectors.c.space_id == space))
        )
        open_texts.update(connection.execute(query).scalars())
    return open_texts


def refusals(connection: Connection, space: int, collection_id: int, chunking_id: int) -> int:
    """Chunks of a collection, in one chunking, whose text the model refused."""
    chunks, vectors = t.chunks.c, t.vectors.c
    # In two steps, the second with one condition: a planner without figures would begin with the collection's chunks.
    refused = connection.execute(select(vectors.text_id).where(vectors.space_id == space, vectors.data.is_(None)))
    here = (chunks.collection_id == collection_id) & (chunks.chunking_id == chunking_id)
    return sum(
        connection.execute(select(func.count().filter(here)).where(among(chunks.text_id, batch))).scalar_one()
        for batch in batched(refused.scalars().all(), 5_000)
    )


def refused(
    connection: Connection, space: int | None, collection_id: int, chunking_id: int
) -> Iterator[tuple[int, bytes, str]]:
    """Those chunks: the text's key, the chunk's id, and the model's reason. In two steps, as they are counted."""
    chunks, vectors = t.chunks.c, t.vectors.c
    query = select(vectors.text_id, vectors.reason).where(vectors.space_id == space, vectors.data.is_(None))
    reasons = {row.text_id: row.reason for row in connection.execute(query)}
    for batch in batched(list(reasons), 5_000):
        here = select(chunks.text_id, chunks.public_id).where(
            among(chunks.text_id, batch), chunks.collection_id == collection_id, chunks.chunking_id == chunking_id
        )
        for row in connection.execute(here):
            yield row.text_id, row.public_id, reasons[row.text_id] or ""


def sweep(connection: Connection) -> int:
    """Remove the texts that no chunk has any more, with their vectors. Part of an erasure. Returns how many."""
    lock_texts(connection, alone=True)
    orphans = select(t.texts.c.id).where(~exists().where(t.chunks.c.text_id == t.texts.c.id))
    keys = list(connection.execute(orphans).scalars())
    for batch in batched(keys, 5_000):
        connection.execute(delete(t.vectors).where(among(t.vectors.c.text_id, batch)))
        connection.execute(delete(t.texts).where(among(t.texts.c.id, batch)))
    return len(keys)
