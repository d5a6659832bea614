"""Documents that are there, to be cut in one more chunking: reading them, and writing their chunks.

What a cut needs the catalog has: a document's text, its pages, and the title that stood over its chunks. No file is
read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from urllib.parse import unquote

from sqlalchemy import Connection, func, select

from whimbrel.catalog import cuts, log
from whimbrel.catalog import tables as t
from whimbrel.catalog.chunkings import collection_chunkings
from whimbrel.catalog.cuts import Cut
from whimbrel.catalog.keys import among
from whimbrel.domain import ChunkSpan
from whimbrel.errors import Conflict

SEGMENTS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Uncut:
    """A document without chunks in a chunking."""

    key: int
    public_id: str
    uri: str
    cut_title: str
    """What stands over the contexts of its chunks."""
    pages: Sequence[tuple[int, int]]
    first_segment: int
    """A text that is written anew has new segments: by this, the text that was cut is known to be the one that is there
    when its chunks are written."""
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    documents: Sequence[Uncut]
    reached: int
    """Every document up to this key is among them, or has its chunks, or has no text."""


def uncut(
    connection: Connection,
    collection_id: int,
    chunking_id: int,
    *,
    after: int,
    upto: int,
    limit: int,
    max_chars: int,
) -> Found:
    """The next documents in `(after, upto]`, by key, that have a text and no chunks in a chunking.

    Looks at up to `limit` documents, and reads texts of up to `max_chars` together, or else a single longer one.
    """
    columns = t.documents.c
    query = (
        select(columns.id, columns.public_id, columns.uri, columns.title, columns.cut_title, columns.pages)
        .add_columns(columns.text_length)
        .where(columns.collection_id == collection_id, columns.id > after, columns.id <= upto, columns.text_length > 0)
        .order_by(columns.id)
        .limit(limit)
    )
    rows = connection.execute(query).all()
    reached = rows[-1].id if len(rows) == limit else upto
    cut = _cut_among(connection, chunking_id, [row.id for row in rows])
    chosen: list[Uncut] = []
    chars = 0
    for row in rows:
        if row.id in cut:
            continue
        chars += row.text_length
        if chosen and chars > max_chars:
            reached = chosen[-1].key
            break
        title = row.cut_title if row.cut_title is not None else _title_over(row.title, row.uri)
        pages = [(offset, number) for offset, number in row.pages]
        chosen.append(Uncut(row.id, row.public_id.hex(), row.uri, title, pages, 0, ""))
    return Found(_with_texts(connection, chosen), reached)


def _cut_among(connection: Connection, chunking_id: int, keys: Sequence[int]) -> set[int]:
    chunks = t.chunks.c
    query = select(chunks.document_id).where(among(chunks.document_id, keys), chunks.chunking_id == chunking_id)
    return set(connection.execute(query.distinct()).scalars())


def _title_over(title: str, uri: str) -> str:
    """Of a document that was written before this was kept: its title, unless that is but the file's name."""
    name = PurePath(unquote(uri).removeprefix("upload:")).stem
    return "" if title == name else title


def _with_texts(connection: Connection, found: Sequence[Uncut]) -> list[Uncut]:
    columns = t.segments.c
    pieces: dict[int, list[str]] = {one.key: [] for one in found}
    first: dict[int, int] = {}
    query = select(columns.document_id, columns.id, columns.text).where(among(columns.document_id, list(pieces)))
    ordered = query.order_by(columns.document_id, columns.ordinal)
    with connection.execute(ordered, execution_options={"yield_per": SEGMENTS_AT_ONCE}) as rows:
        for document, segment, text in rows:
            first.setdefault(document, segment)
            pieces[document].append(text)
    return [replace(one, first_segment=first[one.key], text="".join(pieces.pop(one.key))) for one in found]


def write_cuts(
    connection: Connection, collection_id: int, chunking_id: int, made: Sequence[tuple[Uncut, Sequence[ChunkSpan]]]
) -> int:
    """Write the chunks of documents in a chunking, with their changes. Returns how many chunks were added.

    A document that was written, or removed, since it was read is passed over: its writer has cut it in this chunking
    too. Raises `Conflict` where the collection has no view of it any more.
    """
    log.lock(connection, collection_id)
    if chunking_id not in collection_chunkings(connection, collection_id):
        raise Conflict(
            "No view of the collection has this chunking any more: its move was ended. Nothing was cut.",
            "`whimbrel move status` shows where it stands.",
        )
    keys = [one.key for one, _ in made]
    there = _first_segments(connection, keys)
    cut = _cut_among(connection, chunking_id, keys)
    fresh = [
        Cut(one.key, one.public_id, one.first_segment, chunking_id, one.text, spans)
        for one, spans in made
        if there.get(one.key) == one.first_segment and one.key not in cut
    ]
    done = cuts.replace(connection, collection_id, fresh, ())
    log.append(connection, collection_id, done.changes)
    return done.added[chunking_id]


def _first_segments(connection: Connection, keys: Sequence[int]) -> dict[int, int]:
    columns = t.segments.c
    first = func.min(columns.id).label("first")
    query = select(columns.document_id, first).where(among(columns.document_id, keys)).group_by(columns.document_id)
    return {row.document_id: row.first for row in connection.execute(query)}
