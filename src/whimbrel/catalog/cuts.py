"""Chunks of documents, as rows: replaced exactly where they differ, in any number of chunkings at once."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, func, select, text

from whimbrel.catalog import bulk
from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import AnyRow, take_keys
from whimbrel.catalog.keys import among
from whimbrel.catalog.log import Change, Op
from whimbrel.catalog.tables import SEGMENT_CHARS
from whimbrel.domain import ChunkSpan, chunk_id, embedded_text, row_id

T = TypeVar("T")

_TEXTS_LOCK = 0x57485458  # "WHTX": the key of the advisory lock that sweeps and writers share


@dataclass(frozen=True, slots=True)
class Cut:
    """The chunks that a document shall have in one chunking."""

    document: int
    """Its key."""
    public_id: str
    first_segment: int
    """Key of the segment that its text begins in; the others follow in number."""
    chunking_id: int
    text: str
    spans: Sequence[ChunkSpan]
    relabelled: bool = False
    """What a view holds of every chunk beside its text has changed: the document's metadata, title or URI."""
    rows: Sequence[str] = ()
    """The ids of the rows that the spans were adopted from, one each; empty for what was cut here."""


@dataclass(slots=True)
class Replaced:
    """What `replace` did. Counts are of chunks, by chunking."""

    changes: list[Change] = field(default_factory=list)
    """To be appended to the log."""
    added: Counter[int] = field(default_factory=Counter)
    kept: Counter[int] = field(default_factory=Counter)
    removed: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Planned:
    public_id: bytes
    span: ChunkSpan
    text_hash: bytes


def replace(connection: Connection, collection_id: int, cuts: Sequence[Cut], standing: Iterable[AnyRow]) -> Replaced:
    """Make the chunks in the place of those that are `standing` (rows of `chunks_of`) be as `cuts` say.

    A chunk whose content stays keeps its row; it enters the log again only where what a view holds of it has changed:
    its embedded text, or what its document is `relabelled` with. The documents' rows and segments must be there.
    """
    done = Replaced()
    planned = [_plan(cut) for cut in cuts]
    text_ids = intern(connection, {chunk.text_hash for chunks in planned for chunk in chunks})
    old: dict[tuple[int, int], dict[bytes, AnyRow]] = defaultdict(dict)
    for row in standing:
        old[row.document_id, row.chunking_id][row.public_id] = row
    added: list[dict[str, Any]] = []
    moved: list[dict[str, Any]] = []
    for cut, chunks in zip(cuts, planned, strict=True):
        there = old.get((cut.document, cut.chunking_id), {})
        identity = {"collection_id": collection_id, "document_id": cut.document, "chunking_id": cut.chunking_id}
        for ordinal, chunk in enumerate(chunks):
            values = _values(cut, chunk, ordinal, text_ids[chunk.text_hash])
            before = there.pop(chunk.public_id, None)
            if before is None:
                added.append({**identity, "public_id": chunk.public_id, **values})
                continue
            moved.append({"id": before.id, **values})
            done.kept[cut.chunking_id] += 1
            if cut.relabelled or before.text_id != values["text_id"]:
                done.changes.append(Change(Op.UPDATE, before.id, cut.chunking_id))
    gone = [row for rows in old.values() for row in rows.values()]
    done.changes.extend(remove_chunks(connection, gone))
    done.removed.update(row.chunking_id for row in gone)
    bulk.update(connection, t.chunks, moved)
    if added:
        for key, values in enumerate(added, take_keys(connection, "chunks", len(added))):
            values["id"] = key
        bulk.insert(connection, t.chunks, added)
        done.changes.extend(Change(Op.ADD, values["id"], values["chunking_id"]) for values in added)
        done.added.update(values["chunking_id"] for values in added)
    return done


def chunks_of(connection: Connection, keys: Sequence[int]) -> list[AnyRow]:
    """The chunk rows of documents, in every chunking."""
    columns = t.chunks.c
    found: list[AnyRow] = []
    for batch in batched(keys, 5_000):
        query = select(columns.id, columns.public_id, columns.document_id, columns.chunking_id, columns.text_id)
        found.extend(connection.execute(query.where(among(columns.document_id, batch))))
    return found


def remove_chunks(connection: Connection, rows: Sequence[AnyRow]) -> list[Change]:
    """Delete chunk rows (with `id`, `public_id`, `chunking_id`); returns the changes to log."""
    for batch in batched([row.id for row in rows], 5_000):
        connection.execute(delete(t.chunks).where(among(t.chunks.c.id, batch)))
    return [Change(Op.DELETE, row.id, row.chunking_id, row.public_id) for row in rows]


def text_hash(text: str) -> bytes:
    """16 bytes: blake2b of the exact text given to the embedder."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def lock_texts(connection: Connection, *, alone: bool) -> None:
    """Keep a sweep from removing a text that a writer has just found. (On SQLite writers are alone anyway.)"""
    if connection.dialect.name == "postgresql":
        function = func.pg_advisory_xact_lock if alone else func.pg_advisory_xact_lock_shared
        connection.execute(select(function(_TEXTS_LOCK)))


def batched(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _plan(cut: Cut) -> list[_Planned]:
    seen: Counter[str] = Counter()
    planned = []
    for number, span in enumerate(cut.spans):
        text = cut.text[span.start : span.end]
        id_ = row_id(cut.rows[number]) if cut.rows else chunk_id(cut.public_id, text, seen[text])
        public = bytes.fromhex(id_)
        seen[text] += 1
        planned.append(_Planned(public, span, text_hash(embedded_text(span.context, text))))
    return planned


def _values(cut: Cut, chunk: _Planned, ordinal: int, text_id: int) -> dict[str, Any]:
    span = chunk.span
    return {
        "ordinal": ordinal,
        "start": span.start,
        "end": span.end,
        "segment_id": cut.first_segment + span.start // SEGMENT_CHARS,
        "tokens": span.tokens,
        "context": span.context,
        "page": span.page,
        "text_id": text_id,
        "source_id": cut.rows[ordinal] if cut.rows else None,
    }


def intern(connection: Connection, hashes: Iterable[bytes]) -> dict[bytes, int]:
    """The key of each text, by its hash, new where it was never seen."""
    lock_texts(connection, alone=False)
    hashes = sorted(hashes)
    found = text_ids_of(connection, hashes)
    missing = [digest for digest in hashes if digest not in found]
    if missing:
        first = take_keys(connection, "texts", len(missing))
        keys = range(first, first + len(missing))
        if connection.dialect.name == "sqlite":
            bulk.insert_values(connection, t.texts, ("id", "hash"), zip(keys, missing, strict=True))
            found.update(zip(missing, keys, strict=True))
        else:
            made = connection.execute(_INSERT_TEXTS, {"keys": list(keys), "hashes": missing}).all()
            found.update(made)
            if len(made) < len(missing):  # a writer of another collection was quicker
                found.update(text_ids_of(connection, [digest for digest in missing if digest not in found]))
    return found


# Arrays: a thousand parameters of their own cost the driver more than the database's work.
_FIND_TEXTS = text("SELECT hash, id FROM texts WHERE hash = ANY(CAST(:hashes AS bytea[]))")
_INSERT_TEXTS = text(
    "INSERT INTO texts (id, hash) SELECT * FROM unnest(CAST(:keys AS bigint[]), CAST(:hashes AS bytea[])) "
    "ON CONFLICT (hash) DO NOTHING RETURNING hash, id"
)


def text_ids_of(connection: Connection, hashes: Sequence[bytes]) -> dict[bytes, int]:
    """The keys of those texts that are known, by their hashes."""
    found: dict[bytes, int] = {}
    if connection.dialect.name == "postgresql":
        found.update(connection.execute(_FIND_TEXTS, {"hashes": list(hashes)}).all())
        return found
    for batch in batched(hashes, 5_000):  # by the driver: SQLAlchemy would name each parameter, and take twice as long
        marks = ", ".join("?" * len(batch))
        rows = connection.exec_driver_sql(f"SELECT hash, id FROM texts WHERE hash IN ({marks})", tuple(batch))
        found.update((digest, key) for digest, key in rows)
    return found
