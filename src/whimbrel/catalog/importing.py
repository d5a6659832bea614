"""Writing an exported collection into the catalog, in batches that each are one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from whimbrel.catalog import bulk, log, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.cuts import intern, text_hash
from whimbrel.catalog.documents import view_metadata
from whimbrel.catalog.engine import take_keys
from whimbrel.catalog.exported_folder import Batch
from whimbrel.catalog.log import Change, Op
from whimbrel.catalog.tables import SEGMENT_CHARS
from whimbrel.domain import DocumentState, embedded_text
from whimbrel.filters.facts import facts


@dataclass(frozen=True, slots=True)
class Into:
    """Where an import goes: keys of the catalog."""

    collection: int
    chunkings: Mapping[str, int]
    """By specification."""
    spaces: Mapping[str, int]
    """By the space's key."""


def write(connection: Connection, into: Into, batch: Batch) -> int:
    """Add a batch to a collection that has none of it; texts, vectors and the log with it. Returns the log's head."""
    head = log.lock(connection, into.collection).head + sum(map(len, batch.chunks.values()))
    keys, segments = _put_documents(connection, into, batch, head)
    hashes = {spec: [text_hash(embedded_text(row[8], row[9])) for row in rows] for spec, rows in batch.chunks.items()}
    text_ids = intern(connection, {one for some in hashes.values() for one in some})
    changes: list[Change] = []
    for spec, rows in batch.chunks.items():
        of = [text_ids[one] for one in hashes[spec]]
        changes += _put_chunks(connection, into, into.chunkings[spec], keys, segments, rows, of)
        for (chunking, space), (numbers, found) in batch.vectors.items():
            if chunking == spec:
                refused = batch.refused.get((chunking, space), {})
                _put_vectors(connection, into.spaces[space], of, numbers, found, refused)
    return log.append(connection, into.collection, changes)


def _put_documents(connection: Connection, into: Into, batch: Batch, head: int) -> tuple[range, list[int]]:
    """(their keys, the key of the first segment of each)"""
    count = len(batch.documents)
    pieces = [
        [one["text"][start : start + SEGMENT_CHARS] for start in range(0, len(one["text"]), SEGMENT_CHARS)]
        for one in batch.documents
    ]
    first = take_keys(connection, "documents", count)
    next_segment = take_keys(connection, "segments", sum(map(len, pieces)))
    rows, firsts, segments = [], [], []
    for key, one, some in zip(range(first, first + count), batch.documents, pieces, strict=True):
        values = {name: value for name, value in one.items() if name not in ("id", "text")}
        never_read = one["state"] == DocumentState.FAILED and not one["text"]
        said = {} if never_read else facts(view_metadata(one["id"], one["uri"], one["title"], one["metadata"]))
        identity = {"id": key, "collection_id": into.collection, "public_id": bytes.fromhex(one["id"])}
        rows.append({**identity, **values, "facts": said, "text_length": len(one["text"]), "position": head})
        firsts.append(next_segment)
        for ordinal, piece in enumerate(some):
            segments.append((next_segment, key, ordinal, piece))
            next_segment += 1
    bulk.insert(connection, t.documents, rows)
    bulk.insert_values(connection, t.segments, ("id", "document_id", "ordinal", "text"), segments)
    return range(first, first + count), firsts


_CHUNK = (
    *("id", "collection_id", "document_id", "chunking_id", "public_id", "ordinal", "start", "end", "segment_id"),
    *("tokens", "context", "page", "text_id"),
)


def _put_chunks(
    connection: Connection,
    into: Into,
    chunking: int,
    documents: Sequence[int],
    segments: Sequence[int],
    rows: Sequence[tuple[Any, ...]],
    text_ids: Sequence[int],
) -> list[Change]:
    if not rows:
        return []
    first = take_keys(connection, "chunks", len(rows))
    made = []
    for key, row, text_id in zip(range(first, first + len(rows)), rows, text_ids, strict=True):
        number, id_, _, ordinal, start, end, page, tokens, context, _ = row
        span = (bytes.fromhex(id_), ordinal, start, end, segments[number] + start // SEGMENT_CHARS)
        made.append((key, into.collection, documents[number], chunking, *span, tokens, context, page, text_id))
    bulk.insert_values(connection, t.chunks, _CHUNK, made)
    return [Change(Op.ADD, key, chunking) for key in range(first, first + len(rows))]


def _put_vectors(
    connection: Connection,
    space: int,
    text_ids: Sequence[int],
    numbers: Sequence[int],
    found: npt.NDArray[np.float32],
    refused: Mapping[int, str],
) -> None:
    """A text that several chunks have keeps the first."""
    first: dict[int, int] = {}
    for at, number in enumerate(numbers):
        first.setdefault(text_ids[number], at)
    why = {text_ids[number]: reason for number, reason in refused.items() if text_ids[number] not in first}
    if first or why:
        vectors.put(connection, space, list(first), found[list(first.values())], why)
