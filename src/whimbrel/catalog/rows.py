"""Reading chunks in bulk for the views, and by id for the hits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Connection, FromClause, Select, and_, bindparam, func, select

from whimbrel.catalog import bulk
from whimbrel.catalog import tables as t
from whimbrel.catalog.bulk import Values
from whimbrel.catalog.documents import batched, view_metadata
from whimbrel.catalog.engine import AnyRow
from whimbrel.catalog.filters_sql import compile_filter
from whimbrel.catalog.keys import among
from whimbrel.catalog.log import Op
from whimbrel.catalog.spans import read_spans, read_texts
from whimbrel.domain import DocumentState
from whimbrel.filters import Filter

Numbers = npt.NDArray[np.int64]


class Described(NamedTuple):
    """What the chunks of one document share."""

    title: str
    metadata: Mapping[str, Any]
    """With the reserved keys."""


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """Chunks as a view holds them, as columns, in the order of their keys."""

    keys: Numbers
    """int64[n], ascending."""
    ids: Sequence[str]
    texts: Sequence[str]
    documents: Sequence[Described]
    document: npt.NDArray[np.int32]
    """int32[n]: the number of each chunk's document among `documents`."""
    vectors: npt.NDArray[np.float32] | None
    """float32[n, d]; None when no space was asked for."""

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, chunk_id: str) -> ChunkRows:
        """These rows but one."""
        keep = [row for row, known in enumerate(self.ids) if known != chunk_id]
        return ChunkRows(
            self.keys[keep],
            [self.ids[row] for row in keep],
            [self.texts[row] for row in keep],
            self.documents,
            self.document[keep],
            None if self.vectors is None else self.vectors[keep],
        )

    @property
    def nbytes(self) -> int:
        """Of texts and vectors, about."""
        return sum(map(len, self.texts)) + (0 if self.vectors is None else self.vectors.nbytes)

    @property
    def titles(self) -> list[str]:
        return [self.documents[number].title for number in self.document.tolist()]

    @property
    def metadata(self) -> list[Mapping[str, Any]]:
        """Rows of one document share one mapping."""
        return [self.documents[number].metadata for number in self.document.tolist()]


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


def load_chunks(connection: Connection, keys: Sequence[int], space_id: int | None) -> tuple[ChunkRows, int, int]:
    """The chunks of `keys` that exist, with their vectors in a space; and how many lack one, and were refused one.

    With a space, only chunks that have a vector are returned.
    """
    found: list[Values] = []
    for batch in batched(keys, 5_000):
        found.extend(bulk.fetch(connection, _chunk_query(t.chunks, space_id).where(among(t.chunks.c.id, batch))))
    return _assemble(connection, found, space_id)


def next_chunks(
    connection: Connection,
    collection_id: int,
    chunking_id: int,
    space_id: int | None,
    *,
    after: int,
    upto: int,
    limit: int,
) -> tuple[ChunkRows, int, list[int]]:
    """The next `limit` chunks by key in `(after, upto]`, as `load_chunks` gives them; how many lack a vector; and the
    keys of all that were read, ascending."""
    next_ = select(t.chunks).where(_within(connection, collection_id, chunking_id, after, upto))
    # Apart: joined with their vectors first, Postgres would sort all that there are for each batch.
    found = bulk.fetch(connection, _chunk_query(next_.order_by(t.chunks.c.id).limit(limit).subquery(), space_id))
    rows, waiting, _ = _assemble(connection, found, space_id)
    return rows, waiting, sorted(row[0] for row in found)


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
    query = select(t.chunks.c.id).where(_within(connection, collection_id, chunking_id, after, upto))
    return list(connection.execute(query.order_by(t.chunks.c.id).limit(limit)).scalars())


def _within(connection: Connection, collection_id: int, chunking_id: int, after: int, upto: int) -> ColumnElement[bool]:
    chunks = t.chunks.c
    # + 0: so that SQLite reads the range of keys. It takes the index on public ids else, reads all of the collection
    # through it, and sorts: 0.3 s for each batch of 100,000 chunks. Postgres knows how many chunks a collection has.
    known: ColumnElement[int] = chunks.collection_id
    known = known + 0 if connection.dialect.name == "sqlite" else known
    return and_(known == collection_id, chunks.chunking_id == chunking_id, chunks.id > after, chunks.id <= upto)


def _chunk_query(chunks: FromClause, space_id: int | None) -> Select[Any]:
    """Of rows of `chunks`; see `_columns`."""
    c, vectors = chunks.c, t.vectors.c
    columns = [c.id, c.public_id, c.document_id, c.start, c.end, c.segment_id]
    if space_id is None:
        return select(*columns)
    joined = chunks.outerjoin(t.vectors, (vectors.text_id == c.text_id) & (vectors.space_id == space_id))
    return select(*columns, vectors.id.label("vector_id"), vectors.data).select_from(joined)


def _assemble(connection: Connection, found: Sequence[Values], space_id: int | None) -> tuple[ChunkRows, int, int]:
    waiting = refused = 0
    if space_id is not None:
        kept = [row for row in found if row[_DATA] is not None]
        waiting = sum(row[_VECTOR] is None for row in found) if len(kept) < len(found) else 0
        refused = len(found) - len(kept) - waiting
        found = kept
    if any(one[0] > following[0] for one, following in pairwise(found)):
        found = sorted(found, key=itemgetter(0))
    return _columns(connection, found, space_id), waiting, refused


_VECTOR, _DATA = 6, 7
"""Where a row of `_chunk_query` has the key of its vector, and the vector."""


def _columns(connection: Connection, found: Sequence[Values], space_id: int | None) -> ChunkRows:
    none: Values = ()
    keys, public, document, starts, ends, segments, *vector = zip(*found, strict=True) if found else (none,) * 8
    numbers = {key: number for number, key in enumerate(dict.fromkeys(document))}
    described = _documents(connection, list(numbers))
    return ChunkRows(
        keys=np.array(keys, np.int64),
        ids=[public_id.hex() for public_id in public],
        texts=read_texts(connection, segments, starts, ends),
        documents=[described[key] for key in numbers],
        document=np.fromiter(map(numbers.__getitem__, document), np.int32, len(found)),
        vectors=None if space_id is None else _stacked(vector[1]),
    )


def _stacked(vectors: Sequence[bytes]) -> npt.NDArray[np.float32]:
    flat: npt.NDArray[np.float32] = np.frombuffer(b"".join(vectors), "<f4")
    return flat.reshape(len(vectors), -1) if vectors else flat.reshape(0, 0)


def _documents(connection: Connection, keys: Sequence[int]) -> dict[int, Described]:
    columns = t.documents.c
    found = {}
    for batch in batched(keys, 5_000):
        query = select(columns.id, columns.public_id, columns.uri, columns.title, columns.metadata)
        for key, public_id, uri, title, metadata in connection.execute(query.where(among(columns.id, batch))):
            found[key] = Described(title, view_metadata(public_id.hex(), uri, title, metadata))
    return found


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


def count_chunks(connection: Connection, collection_id: int, chunking_id: int) -> int:
    columns = t.chunks.c
    query = select(func.count()).where(columns.collection_id == collection_id, columns.chunking_id == chunking_id)
    return int(connection.execute(query).scalar_one())


def max_chunk_key(connection: Connection, collection_id: int, chunking_id: int) -> int:
    """0 where a collection has no chunk in that chunking yet."""
    columns = t.chunks.c
    query = select(func.max(columns.id)).where(
        columns.collection_id == collection_id, columns.chunking_id == chunking_id
    )
    return int(connection.execute(query).scalar() or 0)


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
