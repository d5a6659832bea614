"""Writing documents: one transaction for documents, chunks and changes. And reading them back."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, func, select, text, update

from whimbrel.catalog import bulk, log
from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import AnyRow, now, take_keys
from whimbrel.catalog.keys import among
from whimbrel.catalog.log import Change, Op
from whimbrel.catalog.tables import SEGMENT_CHARS
from whimbrel.domain import ChunkSpan, DocumentState, chunk_id, embedded_text
from whimbrel.filters.facts import facts

T = TypeVar("T")

_TEXTS_LOCK = 0x57485458  # "WHTX": the key of the advisory lock that sweeps and writers share


@dataclass(frozen=True, slots=True)
class DocumentWrite:
    """A document as it shall be, whatever it was before."""

    public_id: str
    external_id: str | None
    uri: str
    root: str
    title: str
    media_type: str
    metadata: Mapping[str, Any]
    content_hash: str
    recipe: str
    size: int
    mtime_ns: int
    text: str
    spans: Sequence[ChunkSpan]
    pages: Sequence[tuple[int, int]] = ()
    warnings: Sequence[str] = ()


@dataclass(slots=True)
class WriteCounts:
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: int = 0
    chunks_added: int = 0
    chunks_kept: int = 0
    chunks_removed: int = 0
    head: int = field(default=0)
    """Position of the log after the write."""

    def add(self, other: WriteCounts) -> None:
        for name in ("added", "changed", "unchanged", "removed", "failed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("chunks_added", "chunks_kept", "chunks_removed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.head = max(self.head, other.head)


RESERVED = ("_document", "_uri", "_title")
"""Keys that every chunk carries in its views beside the user's metadata; filters may name them."""


def view_metadata(public_id: str, uri: str, title: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {**metadata, "_document": public_id, "_uri": uri, "_title": title}


def text_hash(text: str) -> bytes:
    """16 bytes: blake2b of the exact text given to the embedder."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class _NewChunk:
    public_id: bytes
    span: ChunkSpan
    text_hash: bytes


def write_documents(
    connection: Connection, collection_id: int, chunking_id: int, writes: Sequence[DocumentWrite]
) -> WriteCounts:
    """Make each document be as its `DocumentWrite` says, replacing exactly the chunks that differ.

    A chunk whose content stays keeps its row; it enters the log again only where what a view holds of it has changed
    (its embedded text, or the document's metadata, title or URI).
    """
    counts = WriteCounts()
    log.lock(connection, collection_id)
    writes = list({write.public_id: write for write in writes}.values())
    known = _known(connection, collection_id, [write.public_id for write in writes])
    planned = {write.public_id: _plan(write) for write in writes}
    text_ids = _intern(connection, {chunk.text_hash for chunks in planned.values() for chunk in chunks})
    old_chunks = _chunks_of(connection, [row.id for row in known.values()], chunking_id)
    new_documents = [write for write in writes if bytes.fromhex(write.public_id) not in known]
    next_document = take_keys(connection, "documents", len(new_documents)) if new_documents else 0
    segment_count = sum(_segments_needed(write.text) for write in writes)
    next_segment = take_keys(connection, "segments", segment_count) if segment_count else 0

    changes: list[Change] = []
    document_rows: list[dict[str, Any]] = []
    document_updates: list[dict[str, Any]] = []
    segment_rows: list[dict[str, Any]] = []
    chunk_rows: list[dict[str, Any]] = []
    moved: list[dict[str, Any]] = []
    removed: list[AnyRow] = []
    for write in writes:
        row = known.get(bytes.fromhex(write.public_id))
        document = row.id if row is not None else next_document
        if row is None:
            next_document += 1
        first_segment = next_segment
        for ordinal in range(_segments_needed(write.text)):
            piece = write.text[ordinal * SEGMENT_CHARS : (ordinal + 1) * SEGMENT_CHARS]
            segment_rows.append({"id": next_segment, "document_id": document, "ordinal": ordinal, "text": piece})
            next_segment += 1
        changed_for_views = row is not None and (
            row.metadata != write.metadata or row.title != write.title or row.uri != write.uri
        )
        old = {chunk.public_id: chunk for chunk in old_chunks.get(document, ())}
        for ordinal, chunk in enumerate(planned[write.public_id]):
            values = {
                "ordinal": ordinal,
                "start": chunk.span.start,
                "end": chunk.span.end,
                "segment_id": first_segment + chunk.span.start // SEGMENT_CHARS,
                "tokens": chunk.span.tokens,
                "context": chunk.span.context,
                "page": chunk.span.page,
                "text_id": text_ids[chunk.text_hash],
            }
            before = old.pop(chunk.public_id, None)
            if before is None:
                identity = {"collection_id": collection_id, "document_id": document, "chunking_id": chunking_id}
                chunk_rows.append({**identity, "public_id": chunk.public_id, **values})
                counts.chunks_added += 1
            else:
                moved.append({"id": before.id, **values})
                counts.chunks_kept += 1
                if changed_for_views or before.text_id != values["text_id"]:
                    changes.append(Change(Op.UPDATE, before.id, chunking_id))
        removed.extend(old.values())
        values = {
            "external_id": write.external_id,
            "uri": write.uri,
            "root": write.root,
            "title": write.title,
            "media_type": write.media_type,
            "metadata": dict(write.metadata),
            "facts": facts(view_metadata(write.public_id, write.uri, write.title, write.metadata)),
            "pages": [list(page) for page in write.pages],
            "content_hash": write.content_hash,
            "recipe": write.recipe,
            "size": write.size,
            "mtime_ns": write.mtime_ns,
            "text_length": len(write.text),
            "chunk_count": len(planned[write.public_id]),
            "state": DocumentState.EXTRACTED,
            "reason": "; ".join(write.warnings),
            "updated_at": now(),
        }
        if row is None or not row.text_length:  # it is new, was gone, or could not be read until now
            counts.added += 1
        else:
            counts.changed += 1
        if row is None:
            created = {"created_at": now(), "position": 0}
            identity = {"id": document, "collection_id": collection_id, "public_id": bytes.fromhex(write.public_id)}
            document_rows.append({**identity, **created, **values})
        else:
            document_updates.append({"id": document, **values})

    if document_updates:
        rewritten = [row["id"] for row in document_updates]
        connection.execute(delete(t.segments).where(among(t.segments.c.document_id, rewritten)))
    bulk.insert(connection, t.documents, document_rows)
    bulk.update(connection, t.documents, document_updates)
    bulk.insert(connection, t.segments, segment_rows)
    changes.extend(remove_chunks(connection, removed))
    counts.chunks_removed += len(removed)
    bulk.update(connection, t.chunks, moved)
    if chunk_rows:
        first = take_keys(connection, "chunks", len(chunk_rows))
        for key, chunk_row in enumerate(chunk_rows, first):
            chunk_row["id"] = key
        bulk.insert(connection, t.chunks, chunk_rows)
        changes.extend(Change(Op.ADD, chunk_row["id"], chunking_id) for chunk_row in chunk_rows)
    counts.head = log.append(connection, collection_id, changes)
    touched = [row["id"] for row in (*document_rows, *document_updates)]
    if touched:
        connection.execute(update(t.documents).where(among(t.documents.c.id, touched)).values(position=counts.head))
    return counts


def remove_documents(connection: Connection, collection_id: int, keys: Sequence[int], reason: str) -> WriteCounts:
    """Take documents' text and chunks out; their rows stay, in state `gone`, for `reason`."""
    log.lock(connection, collection_id)
    counts = WriteCounts(removed=len(keys))
    changes = drop_contents(connection, keys)
    counts.chunks_removed = len(changes)
    counts.head = log.append(connection, collection_id, changes)
    connection.execute(
        update(t.documents)
        .where(among(t.documents.c.id, keys))
        .values(
            state=DocumentState.GONE,
            reason=reason,
            text_length=0,
            chunk_count=0,
            content_hash="",
            pages=[],
            position=counts.head,
            updated_at=now(),
        )
    )
    return counts


def drop_contents(connection: Connection, keys: Sequence[int]) -> list[Change]:
    """Delete the chunks and segments of documents; returns the changes to log."""
    columns = t.chunks.c
    rows = connection.execute(
        select(columns.id, columns.public_id, columns.chunking_id).where(among(columns.document_id, keys))
    ).all()
    changes = remove_chunks(connection, rows)
    connection.execute(delete(t.segments).where(among(t.segments.c.document_id, keys)))
    return changes


def remove_chunks(connection: Connection, rows: Sequence[AnyRow]) -> list[Change]:
    """Delete chunk rows (with `id`, `public_id`, `chunking_id`); returns the changes to log."""
    for batch in batched([row.id for row in rows], 5_000):
        connection.execute(delete(t.chunks).where(among(t.chunks.c.id, batch)))
    return [Change(Op.DELETE, row.id, row.chunking_id, row.public_id) for row in rows]


def record_failure(connection: Connection, collection_id: int, write: DocumentWrite, reason: str) -> WriteCounts:
    """Note that a document could not be read. Text that it had before stays, and is still found."""
    log.lock(connection, collection_id)
    known = _known(connection, collection_id, [write.public_id])
    row = known.get(bytes.fromhex(write.public_id))
    values = {
        "state": DocumentState.FAILED,
        "reason": reason,
        "content_hash": write.content_hash,
        "recipe": write.recipe,
        "size": write.size,
        "mtime_ns": write.mtime_ns,
        "updated_at": now(),
    }
    if row is None:
        key = take_keys(connection, "documents", 1)
        identity = {"id": key, "collection_id": collection_id, "public_id": bytes.fromhex(write.public_id)}
        described: dict[str, Any] = {
            "external_id": write.external_id,
            "uri": write.uri,
            "root": write.root,
            "title": write.title,
            "media_type": write.media_type,
            "metadata": dict(write.metadata),
            "facts": {},
            "pages": [],
            "text_length": 0,
            "chunk_count": 0,
            "position": 0,
            "created_at": now(),
        }
        connection.execute(t.documents.insert(), {**identity, **described, **values})
    else:
        if row.text_length:
            values["reason"] = f"{reason} (the text read before stays searchable)"
        connection.execute(update(t.documents).where(t.documents.c.id == row.id).values(**values))
    return WriteCounts(failed=1, head=log.head(connection, collection_id).head)


def _plan(write: DocumentWrite) -> list[_NewChunk]:
    seen: Counter[str] = Counter()
    planned = []
    for span in write.spans:
        text = write.text[span.start : span.end]
        public = bytes.fromhex(chunk_id(write.public_id, text, seen[text]))
        seen[text] += 1
        planned.append(_NewChunk(public, span, text_hash(embedded_text(span.context, text))))
    return planned


def _segments_needed(text: str) -> int:
    return -(-len(text) // SEGMENT_CHARS)


def _known(connection: Connection, collection_id: int, public_ids: Sequence[str]) -> dict[bytes, AnyRow]:
    columns = t.documents.c
    known: dict[bytes, AnyRow] = {}
    for batch in batched([bytes.fromhex(public_id) for public_id in public_ids], 5_000):
        query = select(
            columns.id, columns.public_id, columns.metadata, columns.title, columns.uri, columns.text_length
        ).where(columns.collection_id == collection_id, columns.public_id.in_(batch))
        known.update({row.public_id: row for row in connection.execute(query)})
    return known


def _chunks_of(connection: Connection, keys: Sequence[int], chunking_id: int) -> dict[int, list[AnyRow]]:
    columns = t.chunks.c
    found: dict[int, list[AnyRow]] = {}
    for batch in batched(keys, 5_000):
        query = select(columns.id, columns.public_id, columns.document_id, columns.chunking_id, columns.text_id).where(
            among(columns.document_id, batch), columns.chunking_id == chunking_id
        )
        for row in connection.execute(query):
            found.setdefault(row.document_id, []).append(row)
    return found


def _intern(connection: Connection, hashes: Iterable[bytes]) -> dict[bytes, int]:
    """An integer for each text hash, new where it was never seen."""
    lock_texts(connection, alone=False)
    hashes = sorted(hashes)
    found = _text_ids(connection, hashes)
    missing = [digest for digest in hashes if digest not in found]
    if missing:
        first = take_keys(connection, "texts", len(missing))
        keys = range(first, first + len(missing))
        if connection.dialect.name == "sqlite":
            connection.execute(
                t.texts.insert(), [{"id": key, "hash": digest} for key, digest in zip(keys, missing, strict=True)]
            )
            found.update(zip(missing, keys, strict=True))
        else:
            made = connection.execute(_INSERT_TEXTS, {"keys": list(keys), "hashes": missing}).all()
            found.update(made)
            if len(made) < len(missing):  # a writer of another collection was quicker
                found.update(_text_ids(connection, [digest for digest in missing if digest not in found]))
    return found


# Arrays: a thousand parameters of their own cost the driver more than the database's work.
_FIND_TEXTS = text("SELECT hash, id FROM texts WHERE hash = ANY(CAST(:hashes AS bytea[]))")
_INSERT_TEXTS = text(
    "INSERT INTO texts (id, hash) SELECT * FROM unnest(CAST(:keys AS bigint[]), CAST(:hashes AS bytea[])) "
    "ON CONFLICT (hash) DO NOTHING RETURNING hash, id"
)


def lock_texts(connection: Connection, *, alone: bool) -> None:
    """Keep a sweep from removing a text that a writer has just found. (On SQLite writers are alone anyway.)"""
    if connection.dialect.name == "postgresql":
        function = func.pg_advisory_xact_lock if alone else func.pg_advisory_xact_lock_shared
        connection.execute(select(function(_TEXTS_LOCK)))


def _text_ids(connection: Connection, hashes: Sequence[bytes]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    if connection.dialect.name == "postgresql":
        found.update(connection.execute(_FIND_TEXTS, {"hashes": list(hashes)}).all())
        return found
    for batch in batched(hashes, 5_000):
        query = select(t.texts.c.hash, t.texts.c.id).where(t.texts.c.hash.in_(batch))
        found.update(connection.execute(query).all())
    return found


def read_text(connection: Connection, key: int, start: int = 0, end: int | None = None) -> str:
    """Characters `[start, end)` of a document's text."""
    query = select(t.segments.c.text).where(t.segments.c.document_id == key).order_by(t.segments.c.ordinal)
    first = start // SEGMENT_CHARS
    query = query.where(t.segments.c.ordinal >= first)
    if end is not None:
        query = query.where(t.segments.c.ordinal <= max(end - 1, start) // SEGMENT_CHARS)
    text = "".join(connection.execute(query).scalars())
    offset = first * SEGMENT_CHARS
    return text[start - offset : None if end is None else end - offset]


def count_documents(connection: Connection, collection_id: int) -> dict[str, int]:
    """Documents by stored state."""
    query = (
        select(t.documents.c.state, func.count())
        .where(t.documents.c.collection_id == collection_id)
        .group_by(t.documents.c.state)
    )
    return {str(row[0]): int(row[1]) for row in connection.execute(query)}


def batched(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
