"""Writing documents: one transaction for documents, chunks and changes. And reading them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from whimbrel.catalog import bulk, cuts, log
from whimbrel.catalog import tables as t
from whimbrel.catalog.chunkings import collection_chunking, collection_chunkings
from whimbrel.catalog.cuts import Cut
from whimbrel.catalog.cuts import batched as batched
from whimbrel.catalog.cuts import lock_texts as lock_texts
from whimbrel.catalog.cuts import text_hash as text_hash
from whimbrel.catalog.engine import AnyRow, now, take_keys
from whimbrel.catalog.keys import among
from whimbrel.catalog.log import Change
from whimbrel.catalog.tables import SEGMENT_CHARS
from whimbrel.domain import ChunkSpan, DocumentState
from whimbrel.filters.facts import facts


class NotCut(Exception):
    """Documents were not cut in chunkings that their collection has meanwhile; nothing was written. Whoever cut them
    cuts them in these too, and writes again."""

    def __init__(self, chunkings: Sequence[int]) -> None:
        super().__init__(chunkings)
        self.chunkings = chunkings


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
    cut_title: str = ""
    """What stands over the contexts of its chunks."""
    also: Mapping[int, Sequence[ChunkSpan]] = field(default_factory=dict)
    """Its chunks in the other chunkings of its collection, by their keys."""
    rows: Sequence[str] = ()
    """The ids of the rows that `spans` were adopted from, one each; empty for what was cut here."""


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


def write_documents(
    connection: Connection, collection_id: int, chunking_id: int, writes: Sequence[DocumentWrite]
) -> WriteCounts:
    """Make each document be as its `DocumentWrite` says, replacing exactly the chunks that differ.

    `chunking_id` is that of the writes' `spans`. Chunks are written in each chunking that the collection's views have
    now, and counted in the live one. Raises `NotCut` where a write lacks one of them.
    """
    wanted = check_cut(connection, collection_id, chunking_id, writes)
    counts = WriteCounts()
    writes = list({write.public_id: write for write in writes}.values())
    known = _known(connection, collection_id, [write.public_id for write in writes])
    standing = cuts.chunks_of(connection, [row.id for row in known.values()])
    cut = _put_texts(connection, collection_id, writes, known, counts)
    made = [
        _cut(write, key, first, chunking, spans, known.get(bytes.fromhex(write.public_id)))
        for write, (key, first) in zip(writes, cut, strict=True)
        for chunking, spans in {**write.also, chunking_id: write.spans}.items()
        if chunking in wanted
    ]
    done = cuts.replace(connection, collection_id, made, standing)
    counts.chunks_added, counts.chunks_kept = done.added[wanted[0]], done.kept[wanted[0]]
    counts.chunks_removed = done.removed[wanted[0]]
    counts.head = log.append(connection, collection_id, done.changes)
    touched = [key for key, _ in cut]
    if touched:
        connection.execute(update(t.documents).where(among(t.documents.c.id, touched)).values(position=counts.head))
    return counts


def check_cut(
    connection: Connection, collection_id: int, chunking_id: int, writes: Sequence[DocumentWrite]
) -> list[int]:
    """The chunkings that documents of a collection are to be cut in, the live one first; that cannot change until the
    transaction ends. Raises `NotCut` where one of `writes`, whose `spans` are of `chunking_id`, lacks one."""
    log.lock(connection, collection_id)
    wanted = collection_chunkings(connection, collection_id) or [chunking_id]
    others = [key for key in wanted if key != chunking_id]
    if missing := [key for key in others if any(key not in write.also for write in writes)]:
        raise NotCut(missing)
    return wanted


def _put_texts(
    connection: Connection,
    collection_id: int,
    writes: Sequence[DocumentWrite],
    known: Mapping[bytes, AnyRow],
    counts: WriteCounts,
) -> list[tuple[int, int]]:
    """Write the documents' rows and segments. Returns of each its key, and that of its first segment."""
    new = sum(bytes.fromhex(write.public_id) not in known for write in writes)
    next_document = take_keys(connection, "documents", new) if new else 0
    segment_count = sum(_segments_needed(write.text) for write in writes)
    next_segment = take_keys(connection, "segments", segment_count) if segment_count else 0
    inserts: list[dict[str, Any]] = []
    updates: list[dict[str, Any]] = []
    segments: list[dict[str, Any]] = []
    placed: list[tuple[int, int]] = []
    for write in writes:
        row = known.get(bytes.fromhex(write.public_id))
        if row is None:
            created = {"created_at": now(), "position": 0}
            identity = {"collection_id": collection_id, "public_id": bytes.fromhex(write.public_id)}
            inserts.append({"id": next_document, **identity, **created, **_values(write)})
            next_document += 1
        else:
            updates.append({"id": row.id, **_values(write)})
        document = inserts[-1]["id"] if row is None else row.id
        placed.append((document, next_segment))
        for ordinal in range(_segments_needed(write.text)):
            piece = write.text[ordinal * SEGMENT_CHARS : (ordinal + 1) * SEGMENT_CHARS]
            segments.append({"id": next_segment, "document_id": document, "ordinal": ordinal, "text": piece})
            next_segment += 1
        if row is None or not row.text_length:  # it is new, was gone, or could not be read until now
            counts.added += 1
        else:
            counts.changed += 1
    if updates:
        rewritten = [row["id"] for row in updates]
        connection.execute(delete(t.segments).where(among(t.segments.c.document_id, rewritten)))
    bulk.insert(connection, t.documents, inserts)
    bulk.update(connection, t.documents, updates)
    bulk.insert(connection, t.segments, segments)
    return placed


def _values(write: DocumentWrite) -> dict[str, Any]:
    return {
        "external_id": write.external_id,
        "uri": write.uri,
        "root": write.root,
        "title": write.title,
        "cut_title": write.cut_title,
        "media_type": write.media_type,
        "metadata": dict(write.metadata),
        "facts": facts(view_metadata(write.public_id, write.uri, write.title, write.metadata)),
        "pages": [list(page) for page in write.pages],
        "content_hash": write.content_hash,
        "recipe": write.recipe,
        "size": write.size,
        "mtime_ns": write.mtime_ns,
        "text_length": len(write.text),
        "state": DocumentState.EXTRACTED,
        "reason": "; ".join(write.warnings),
        "updated_at": now(),
    }


def _cut(
    write: DocumentWrite, key: int, first: int, chunking: int, spans: Sequence[ChunkSpan], row: AnyRow | None
) -> Cut:
    relabelled = row is not None and (
        row.metadata != write.metadata or row.title != write.title or row.uri != write.uri
    )
    adopted = write.rows if spans is write.spans else ()
    return Cut(key, write.public_id, first, chunking, write.text, spans, relabelled, adopted)


def remove_documents(connection: Connection, collection_id: int, keys: Sequence[int], reason: str) -> WriteCounts:
    """Take documents' text and chunks out; their rows stay, in state `gone`, for `reason`."""
    log.lock(connection, collection_id)
    live = collection_chunking(connection, collection_id)
    counts = WriteCounts(removed=len(keys))
    changes = drop_contents(connection, keys)
    counts.chunks_removed = sum(change.chunking_id == live for change in changes)
    counts.head = log.append(connection, collection_id, changes)
    connection.execute(
        update(t.documents)
        .where(among(t.documents.c.id, keys))
        .values(
            state=DocumentState.GONE,
            reason=reason,
            text_length=0,
            content_hash="",
            pages=[],
            position=counts.head,
            updated_at=now(),
        )
    )
    return counts


def drop_contents(connection: Connection, keys: Sequence[int]) -> list[Change]:
    """Delete the chunks, in every chunking, and segments of documents; returns the changes to log."""
    changes = cuts.remove_chunks(connection, cuts.chunks_of(connection, keys))
    connection.execute(delete(t.segments).where(among(t.segments.c.document_id, keys)))
    return changes


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
            "position": 0,
            "created_at": now(),
        }
        connection.execute(t.documents.insert(), {**identity, **described, **values})
    else:
        if row.text_length:
            values["reason"] = f"{reason} (the text read before stays searchable)"
        connection.execute(update(t.documents).where(t.documents.c.id == row.id).values(**values))
    return WriteCounts(failed=1, head=log.head(connection, collection_id).head)


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
