"""Databases of other programs that were adopted: one row for each frozen view, and the rows that came from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, delete, func, select, update

from whimbrel.catalog import bulk, collections, cuts, log, rows, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.documents import DocumentWrite, WriteCounts, batched, text_hash, write_documents
from whimbrel.catalog.engine import AnyRow, now, take_keys
from whimbrel.catalog.keys import among
from whimbrel.config.values import ADOPTED
from whimbrel.domain import ViewKind, ViewState, embedded_text

_COMING = "its rows are still being taken in"
SCHEME = ADOPTED
"""Of the URI of a frozen view."""


class AdoptionState(StrEnum):
    ADOPTING = "adopting"
    """Its rows are being taken into the catalog."""
    ADOPTED = "adopted"


@dataclass(frozen=True, slots=True)
class Adoption:
    view_id: int
    collection_id: int
    state: AdoptionState
    source: Mapping[str, Any]
    """Where it is and how it is read; no credentials."""
    fields: Mapping[str, Any]
    """What its fields were taken for."""
    checks: Mapping[str, Any]
    """How stored vectors compare with the embedder's."""
    counts: Mapping[str, Any]
    """What became of its rows."""
    drift: Mapping[str, Any]
    """How it differs now from what was adopted; empty where nothing is known to."""
    created_at: float
    updated_at: float

    def as_dict(self) -> dict[str, Any]:
        """One JSON object."""
        named = ("state", "source", "fields", "checks", "counts", "drift", "created_at", "updated_at")
        return {name: getattr(self, name) for name in named}


def begin(
    connection: Connection,
    collection: Collection,
    *,
    uri: str,
    space_id: int,
    chunking_id: int,
    source: Mapping[str, Any],
    fields: Mapping[str, Any],
    checks: Mapping[str, Any],
) -> Adoption:
    """A frozen view, live from now on, into which rows are about to be taken."""
    end = log.lock(connection, collection.id)
    key = take_keys(connection, "views", 1)
    row = {
        "id": key,
        "collection_id": collection.id,
        "kind": ViewKind.STORE,
        "uri": f"{SCHEME}{uri}",
        "name": f"c{collection.id}-v{key}-{log.new_stamp()[:6]}",
        "space_id": space_id,
        "chunking_id": chunking_id,
        "state": ViewState.FROZEN,
        "epoch": end.epoch,
        "position": end.head,
        "build_after": 0,
        "build_upto": 0,
        "replaces": None,
        "suspect": "",
        "error": _COMING,
        "lease_until": 0.0,
        "created_at": now(),
    }
    connection.execute(t.views.insert(), row)
    connection.execute(
        t.adoptions.insert(),
        {
            "view_id": key,
            "collection_id": collection.id,
            "state": AdoptionState.ADOPTING,
            "source": dict(source),
            "fields": dict(fields),
            "checks": dict(checks),
            "counts": {},
            "drift": {},
            "created_at": now(),
            "updated_at": now(),
        },
    )
    named = update(t.collections).where(t.collections.c.id == collection.id).values(store_view_id=key)
    connection.execute(named)
    return get(connection, key)


def get(connection: Connection, view: int) -> Adoption:
    return _read(connection.execute(select(t.adoptions).where(t.adoptions.c.view_id == view)).one())


def find(connection: Connection, collection_id: int) -> Adoption | None:
    """The last of a collection; None where it has none."""
    query = select(t.adoptions).where(t.adoptions.c.collection_id == collection_id)
    row = connection.execute(query.order_by(t.adoptions.c.view_id.desc()).limit(1)).first()
    return _read(row) if row else None


def every(connection: Connection) -> list[Adoption]:
    return [_read(row) for row in connection.execute(select(t.adoptions).order_by(t.adoptions.c.view_id))]


def change(connection: Connection, view: int, **values: Any) -> None:
    connection.execute(update(t.adoptions).where(t.adoptions.c.view_id == view).values(**values, updated_at=now()))


def is_frozen(row: ViewRow) -> bool:
    """Whether a view is another program's database, whatever has become of it since."""
    return row.view.uri.startswith(SCHEME)


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    counts: WriteCounts
    other_vectors: int
    """Rows whose text came before in the same call, with another vector: that one counts in a view that is built."""


def write(
    connection: Connection, view: ViewRow, writes: Sequence[DocumentWrite], given: npt.NDArray[np.float32]
) -> Written:
    """Documents whose chunks are rows of the database, each with its vector: float32[n, d] in the order of their spans.

    The view stands where the log ends then: what it serves is what was written.
    """
    assert view.view.space_id is not None
    counts = write_documents(connection, view.view.collection_id, view.view.chunking_id, writes)
    hashes = [
        text_hash(embedded_text(span.context, write.text[span.start : span.end]))
        for write in writes
        for span in write.spans
    ]
    first: dict[bytes, int] = {}
    for number, digest in enumerate(hashes):
        first.setdefault(digest, number)
    text_ids = cuts.text_ids_of(connection, list(first))
    kept = list(first.values())
    vectors.put(connection, view.view.space_id, [text_ids[hashes[number]] for number in kept], given[kept])
    others = [number for number, digest in enumerate(hashes) if first[digest] != number]
    unlike = sum(not np.array_equal(given[number], given[first[hashes[number]]]) for number in others)
    collections.set_view(connection, view.id, position=counts.head)
    return Written(counts, unlike)


class Known(NamedTuple):
    """A row as the catalog has it."""

    text_hash: bytes
    document: str
    """Public id of the document that it is a part of."""


def known(connection: Connection, view: ViewRow, public_ids: Sequence[str]) -> dict[str, Known]:
    """Those rows that are in the catalog."""
    chunks, documents, texts = t.chunks.c, t.documents.c, t.texts.c
    joined = t.chunks.join(t.documents, documents.id == chunks.document_id).join(t.texts, texts.id == chunks.text_id)
    found: dict[str, Known] = {}
    for batch in batched([bytes.fromhex(one) for one in public_ids], 5_000):
        query = (
            select(chunks.public_id, texts.hash, documents.public_id)
            .select_from(joined)
            .where(
                chunks.collection_id == view.view.collection_id,
                chunks.public_id.in_(batch),
                chunks.chunking_id == view.view.chunking_id,
            )
        )
        for public, digest, document in connection.execute(query):
            found[public.hex()] = Known(digest, document.hex())
    return found


def source_ids(connection: Connection, view: ViewRow, public_ids: Sequence[str]) -> dict[str, str]:
    """The id in the database, as its text, of those chunks that come from there."""
    chunks = t.chunks.c
    found: dict[str, str] = {}
    for batch in batched([bytes.fromhex(one) for one in public_ids], 5_000):
        query = select(chunks.public_id, chunks.source_id).where(
            chunks.collection_id == view.view.collection_id,
            chunks.public_id.in_(batch),
            chunks.chunking_id == view.view.chunking_id,
            chunks.source_id.is_not(None),
        )
        found.update((public.hex(), source) for public, source in connection.execute(query))
    return found


def rows_of(connection: Connection, view: ViewRow, documents: Sequence[str]) -> dict[str, list[str]]:
    """By public id of the document: the ids of the rows that its chunks come from, in their order."""
    chunks, documents_ = t.chunks.c, t.documents.c
    found: dict[str, list[str]] = {}
    for batch in batched([bytes.fromhex(one) for one in documents], 2_000):
        query = (
            select(documents_.public_id, chunks.source_id)
            .join_from(t.chunks, t.documents, documents_.id == chunks.document_id)
            .where(documents_.collection_id == view.view.collection_id, documents_.public_id.in_(batch))
            .where(chunks.chunking_id == view.view.chunking_id, chunks.source_id.is_not(None))
            .order_by(chunks.document_id, chunks.ordinal)
        )
        for public, source in connection.execute(query):
            found.setdefault(public.hex(), []).append(source)
    return found


def documents_of(connection: Connection, view: ViewRow) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Public id and metadata of each document of the collection that has text."""
    columns = t.documents.c
    query = select(columns.public_id, columns.metadata).where(
        columns.collection_id == view.view.collection_id, columns.text_length > 0
    )
    for public, metadata in connection.execute(query):
        yield public.hex(), metadata


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows as the catalog has them, by public id."""

    source_ids: Mapping[str, str]
    texts: Mapping[str, bytes]
    """Their hashes."""
    vectors: Mapping[str, npt.NDArray[np.float32]]
    """Of record, of rows whose text is no other's: of several with one text, one vector is of record."""


def sample(connection: Connection, view: ViewRow, size: int, start: bytes) -> Sample:
    """`size` of the chunks that come from the database, or all: those whose public ids follow on `start`, in a circle.
    Public ids are digests, so that these are no likelier than any others. Rows that were refused when they were looked
    at last are not among them."""
    chunks, texts = t.chunks.c, t.texts.c
    refused = select(t.rejects.c.public_id).where(t.rejects.c.view_id == view.id)
    query = (
        select(chunks.id, chunks.public_id, chunks.source_id, chunks.text_id, texts.hash)
        .join_from(t.chunks, t.texts, texts.id == chunks.text_id)
        .where(
            chunks.collection_id == view.view.collection_id,
            chunks.chunking_id == view.view.chunking_id,
            chunks.source_id.is_not(None),
            chunks.public_id.not_in(refused),
        )
        .order_by(chunks.public_id)
    )
    found = list(connection.execute(query.where(chunks.public_id >= start).limit(size)))
    found += connection.execute(query.where(chunks.public_id < start).limit(size - len(found)))
    return Sample(
        {row.public_id.hex(): row.source_id for row in found},
        {row.public_id.hex(): row.hash for row in found},
        _own_vectors(connection, view, {int(row.id): int(row.text_id) for row in found}),
    )


def own_vectors(connection: Connection, view: ViewRow, public_ids: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
    """As `Sample.vectors`, of those chunks."""
    chunks = t.chunks.c
    found: dict[int, int] = {}
    for batch in batched([bytes.fromhex(one) for one in public_ids], 5_000):
        query = select(chunks.id, chunks.text_id).where(
            chunks.collection_id == view.view.collection_id,
            chunks.public_id.in_(batch),
            chunks.chunking_id == view.view.chunking_id,
        )
        found.update((int(key), int(text)) for key, text in connection.execute(query))
    return _own_vectors(connection, view, found)


def _own_vectors(
    connection: Connection, view: ViewRow, text_ids: Mapping[int, int]
) -> dict[str, npt.NDArray[np.float32]]:
    """`text_ids`: by key of the chunk."""
    chunks = t.chunks.c
    shared: set[int] = set()
    for batch in batched(sorted(set(text_ids.values())), 1_000):
        used = select(chunks.text_id).where(chunks.text_id.in_(batch)).group_by(chunks.text_id)
        shared.update(connection.execute(used.having(func.count() > 1)).scalars())
    alone = [key for key, text in text_ids.items() if text not in shared]
    ids, held = rows.load_vectors(connection, alone, view.view.space_id)
    return dict(zip(ids, held, strict=True))


def count(connection: Connection, view: ViewRow) -> int:
    """Chunks that come from the database."""
    chunks = t.chunks.c
    query = select(func.count()).where(
        chunks.collection_id == view.view.collection_id,
        chunks.chunking_id == view.view.chunking_id,
        chunks.source_id.is_not(None),
    )
    return int(connection.execute(query).scalar_one())


def each_vector(
    connection: Connection, view: ViewRow, limit: int = 5_000
) -> Iterator[tuple[list[str], npt.NDArray[np.float32]]]:
    """Public ids, and vectors of record float32[n, d], of all chunks that come from the database; in batches."""
    where = (view.view.collection_id, view.view.chunking_id)
    last, after = rows.max_chunk_key(connection, *where), 0
    while keys := rows.next_keys(connection, *where, after=after, upto=last, limit=limit):
        after = keys[-1]
        chunks = t.chunks.c
        query = select(chunks.id).where(among(chunks.id, keys), chunks.source_id.is_not(None))
        mine = [int(row[0]) for row in bulk.fetch(connection, query)]
        ids, found = rows.load_vectors(connection, mine, view.view.space_id)
        if ids:
            yield ids, found


def put_rejects(connection: Connection, view: int, reasons: Mapping[str, str]) -> None:
    """Rows that cannot be adopted, by public id, with the reason."""
    public = [bytes.fromhex(one) for one in reasons]
    for batch in batched(public, 5_000):
        connection.execute(delete(t.rejects).where(t.rejects.c.view_id == view, t.rejects.c.public_id.in_(batch)))
    made = [
        {"view_id": view, "public_id": key, "reason": reason, "at": now()}
        for key, reason in zip(public, reasons.values(), strict=True)
    ]
    bulk.insert(connection, t.rejects, made)


def forget_rejects(connection: Connection, view: int) -> None:
    connection.execute(delete(t.rejects).where(t.rejects.c.view_id == view))


def rejects(connection: Connection, view: int) -> list[tuple[str, str]]:
    """(public id, reason)"""
    query = select(t.rejects.c.public_id, t.rejects.c.reason).where(t.rejects.c.view_id == view)
    return [(public.hex(), reason) for public, reason in connection.execute(query)]


def _read(row: AnyRow) -> Adoption:
    return Adoption(
        row.view_id,
        row.collection_id,
        AdoptionState(row.state),
        row.source,
        row.fields,
        row.checks,
        row.counts,
        row.drift,
        row.created_at,
        row.updated_at,
    )
