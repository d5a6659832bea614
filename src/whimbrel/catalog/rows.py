"""Reading chunks in bulk for the views, and by id for the hits."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection as Items
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Connection, bindparam, func, select

from whimbrel.catalog import tables as t
from whimbrel.catalog.documents import batched, view_metadata
from whimbrel.catalog.engine import AnyRow
from whimbrel.catalog.filters_sql import compile_filter
from whimbrel.catalog.keys import among
from whimbrel.catalog.log import Op
from whimbrel.catalog.tables import SEGMENT_CHARS
from whimbrel.domain import DocumentState
from whimbrel.filters import Filter


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """Chunks as a view holds them, as columns."""

    ids: Sequence[str]
    texts: Sequence[str]
    titles: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    """With the reserved keys; rows of one document share one mapping."""
    vectors: npt.NDArray[np.float32] | None
    """float32[n, d]; None when no space was asked for."""
    new: bool = False
    """No view that has applied everything before them can hold any of these ids."""

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, chunk_id: str) -> ChunkRows:
        """These rows but one."""
        keep = [row for row, known in enumerate(self.ids) if known != chunk_id]
        return ChunkRows(
            [self.ids[row] for row in keep],
            [self.texts[row] for row in keep],
            [self.titles[row] for row in keep],
            [self.metadata[row] for row in keep],
            None if self.vectors is None else self.vectors[keep],
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of the log, light: what is to be done to which public id."""

    op: Op
    chunk_id: int
    public_id: bytes


def read_log(
    connection: Connection, collection_id: int, chunking_id: int, after: int, upto: int
) -> tuple[list[Entry], list[str], bool]:
    """The last change of each chunk in `(after, upto]`: upserts, ids to delete, and whether all upserts are new.

    A chunk whose row is gone has been deleted further on in the log, and is left to that change.
    """
    changes, chunks = t.changes.c, t.chunks.c
    query = (
        select(changes.op, changes.chunk_id, func.coalesce(changes.public_id, chunks.public_id))
        .select_from(t.changes.outerjoin(t.chunks, chunks.id == changes.chunk_id))
        .where(
            changes.collection_id == collection_id,
            changes.position > after,
            changes.position <= upto,
            changes.chunking_id == chunking_id,
        )
        .order_by(changes.position)
    )
    last: dict[bytes, Entry] = {}
    repeated = False
    for op, chunk, public in connection.execute(query):
        if public is None:
            continue
        repeated = repeated or public in last
        last[public] = Entry(Op(op), chunk, public)
    upserts = [entry for entry in last.values() if entry.op is not Op.DELETE]
    deletes = [entry.public_id.hex() for entry in last.values() if entry.op is Op.DELETE]
    return upserts, deletes, not repeated and all(entry.op is Op.ADD for entry in upserts)


def load_chunks(
    connection: Connection, keys: Sequence[int], space_id: int | None, *, new: bool = False
) -> tuple[ChunkRows, int, int]:
    """The chunks of `keys` that exist, with their vectors in a space; and how many lack one, and were refused one.

    With a space, only chunks that have a vector are returned.
    """
    found: list[AnyRow] = []
    for batch in batched(keys, 5_000):
        found.extend(connection.execute(_chunk_query(among(t.chunks.c.id, batch), space_id)))
    return _assemble(connection, found, space_id, new)


def load_vectors(
    connection: Connection, keys: Sequence[int], space_id: int | None
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """The public ids of those chunks of `keys` that have a vector in a space, and the vectors, float32[n, d]."""
    chunks, vectors = t.chunks.c, t.vectors.c
    joined = t.chunks.join(t.vectors, (vectors.text_id == chunks.text_id) & (vectors.space_id == space_id))
    ids: list[str] = []
    data: list[bytes] = []
    for batch in batched(keys, 5_000):
        query = select(chunks.public_id, vectors.data).select_from(joined)
        for row in connection.execute(query.where(among(chunks.id, batch), vectors.data.is_not(None))):
            ids.append(row.public_id.hex())
            data.append(row.data)
    flat = np.frombuffer(b"".join(data), dtype="<f4")
    return ids, flat.reshape(len(ids), -1) if ids else flat.reshape(0, 0)


def next_keys(
    connection: Connection, collection_id: int, chunking_id: int, *, after: int, upto: int, limit: int
) -> list[int]:
    """The next `limit` chunk keys in `(after, upto]`, ascending."""
    chunks = t.chunks.c
    query = (
        select(chunks.id)
        .where(
            chunks.collection_id == collection_id,
            chunks.chunking_id == chunking_id,
            chunks.id > after,
            chunks.id <= upto,
        )
        .order_by(chunks.id)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def _chunk_query(condition: ColumnElement[bool], space_id: int | None) -> Any:
    chunks = t.chunks.c
    columns = [chunks.id, chunks.public_id, chunks.document_id, chunks.start, chunks.end, chunks.segment_id]
    if space_id is None:
        return select(*columns).where(condition)
    vectors = t.vectors.c
    joined = t.chunks.outerjoin(t.vectors, (vectors.text_id == chunks.text_id) & (vectors.space_id == space_id))
    return select(*columns, vectors.id.label("vector_id"), vectors.data).select_from(joined).where(condition)


def _assemble(
    connection: Connection, found: Sequence[AnyRow], space_id: int | None, new: bool
) -> tuple[ChunkRows, int, int]:
    waiting = refused = 0
    if space_id is not None:
        waiting = sum(row.vector_id is None for row in found)
        refused = sum(row.vector_id is not None and row.data is None for row in found)
        found = [row for row in found if row.data is not None]
    texts = read_spans(connection, found)
    documents = _documents(connection, {row.document_id for row in found})
    vectors = None
    if space_id is not None:
        flat = np.frombuffer(b"".join(row.data for row in found), dtype="<f4")
        vectors = flat.reshape(len(found), -1) if found else flat.reshape(0, 0)
    rows = ChunkRows(
        ids=[row.public_id.hex() for row in found],
        texts=texts,
        titles=[documents[row.document_id][0] for row in found],
        metadata=[documents[row.document_id][1] for row in found],
        vectors=vectors,
        new=new,
    )
    return rows, waiting, refused


def _documents(connection: Connection, keys: Items[int]) -> dict[int, tuple[str, dict[str, Any]]]:
    columns = t.documents.c
    found = {}
    for batch in batched(list(keys), 5_000):
        query = select(columns.id, columns.public_id, columns.uri, columns.title, columns.metadata)
        for row in connection.execute(query.where(among(columns.id, batch))):
            metadata = view_metadata(row.public_id.hex(), row.uri, row.title, row.metadata)
            found[row.id] = (row.title, metadata)
    return found


_SEGMENTS = select(t.segments.c.id, t.segments.c.text).where(among(t.segments.c.id, "keys"))


def read_spans(connection: Connection, rows: Sequence[AnyRow]) -> list[str]:
    """The texts of chunk rows (with `start`, `end`, `segment_id`), reading each segment once."""
    wanted: set[int] = set()
    for row in rows:
        wanted.update(range(row.segment_id, row.segment_id + _segments_spanned(row)))
    pieces: dict[int, str] = {}
    for batch in batched(sorted(wanted), 5_000):
        pieces.update(connection.execute(_SEGMENTS, {"keys": batch}).all())
    texts = []
    for row in rows:
        spanned = _segments_spanned(row)
        text = "".join(pieces[row.segment_id + offset] for offset in range(spanned)) if spanned else ""
        offset = row.start % SEGMENT_CHARS
        texts.append(text[offset : offset + row.end - row.start])
    return texts


def _segments_spanned(row: AnyRow) -> int:
    start, end = int(row.start), int(row.end)
    return (max(end - 1, start) // SEGMENT_CHARS) - start // SEGMENT_CHARS + 1


@dataclass(frozen=True, slots=True)
class Hydrated:
    """A chunk as the catalog has it now."""

    chunk_id: str
    document_id: str
    uri: str
    title: str
    text: str
    start: int
    end: int
    page: int | None
    metadata: Mapping[str, Any]


# Made once, since each search reads it: 0.3 ms less than to put it together each time.
_HYDRATE = (
    select(
        t.chunks.c.public_id,
        t.chunks.c.start,
        t.chunks.c.end,
        t.chunks.c.segment_id,
        t.chunks.c.page,
        t.documents.c.public_id.label("document"),
        t.documents.c.uri,
        t.documents.c.title,
        t.documents.c.metadata.label("meta"),
    )
    .join_from(t.chunks, t.documents, t.documents.c.id == t.chunks.c.document_id)
    .where(
        t.chunks.c.collection_id == bindparam("collection"),
        t.chunks.c.public_id.in_(bindparam("ids", expanding=True)),
        t.chunks.c.chunking_id == bindparam("chunking"),
        t.documents.c.state != DocumentState.GONE,
    )
)


def hydrate(connection: Connection, collection_id: int, chunking_id: int, ids: Sequence[str]) -> dict[str, Hydrated]:
    """Chunks by public id. What is not in the answer is not in the collection any more, whatever a view says."""
    found: list[AnyRow] = []
    for batch in batched(_public_ids(ids), 5_000):
        wanted = {"collection": collection_id, "chunking": chunking_id, "ids": batch}
        found.extend(connection.execute(_HYDRATE, wanted))
    return {
        row.public_id.hex(): Hydrated(
            row.public_id.hex(),
            row.document.hex(),
            row.uri,
            row.title,
            text,
            row.start,
            row.end,
            row.page,
            row.meta,
        )
        for row, text in zip(found, read_spans(connection, found), strict=True)
    }


def _public_ids(ids: Sequence[str]) -> list[bytes]:
    """Those that an id of a chunk can be: a damaged view says anything."""
    return [bytes.fromhex(public) for public in ids if _HEX.fullmatch(public)]


_HEX = re.compile("[0-9a-f]{32}")


def digest(title: str, text: str, metadata: Mapping[str, Any]) -> str:
    """32 hex characters over what a lexicon holds of a chunk; two rows with one digest are the same row."""
    canonical = json.dumps([title, text, metadata], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def count_chunks(connection: Connection, collection_id: int, chunking_id: int) -> int:
    columns = t.chunks.c
    query = select(func.count()).where(columns.collection_id == collection_id, columns.chunking_id == chunking_id)
    return int(connection.execute(query).scalar_one())


def max_chunk_key(connection: Connection, collection_id: int) -> int:
    query = select(func.max(t.chunks.c.id)).where(t.chunks.c.collection_id == collection_id)
    return int(connection.execute(query).scalar() or 0)


def public_ids(connection: Connection, collection_id: int, chunking_id: int, space_id: int | None) -> set[str]:
    """The ids of every chunk that a view should hold: all, or those that have a vector in a space."""
    chunks, vectors = t.chunks.c, t.vectors.c
    query = select(chunks.public_id).where(chunks.collection_id == collection_id, chunks.chunking_id == chunking_id)
    if space_id is not None:
        joined = t.chunks.join(t.vectors, (vectors.text_id == chunks.text_id) & (vectors.space_id == space_id))
        query = query.select_from(joined).where(vectors.data.is_not(None))
    return {public_id.hex() for public_id in connection.execute(query).scalars()}


def passing_ids(
    connection: Connection, collection_id: int, chunking_id: int, where: Filter, *, limit: int
) -> list[str] | None:
    """The ids of the chunks whose documents pass a filter; None where they are more than `limit`."""
    chunks, documents = t.chunks.c, t.documents.c
    query = (
        select(chunks.public_id)
        .join_from(t.chunks, t.documents, documents.id == chunks.document_id)
        .where(
            chunks.collection_id == collection_id,
            chunks.chunking_id == chunking_id,
            documents.state != DocumentState.GONE,
            compile_filter(where, documents.facts, connection.dialect.name),
        )
        .limit(limit + 1)
    )
    found = [public_id.hex() for public_id in connection.execute(query).scalars()]
    return found if len(found) <= limit else None


def keys_of(connection: Connection, collection_id: int, chunking_id: int, ids: Sequence[str]) -> list[int]:
    """The keys of those chunks that exist."""
    chunks = t.chunks.c
    keys: list[int] = []
    for batch in batched(_public_ids(ids), 5_000):
        query = select(chunks.id).where(
            chunks.collection_id == collection_id, chunks.public_id.in_(batch), chunks.chunking_id == chunking_id
        )
        keys.extend(connection.execute(query).scalars())
    return keys
