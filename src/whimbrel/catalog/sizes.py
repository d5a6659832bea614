"""How large a collection is, and rows from all over it, to tell what moving it will take. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Text, cast, exists, func, select

from whimbrel.catalog import rows
from whimbrel.catalog import tables as t
from whimbrel.catalog.documents import batched, read_text
from whimbrel.catalog.keys import among
from whimbrel.catalog.spans import read_spans
from whimbrel.domain import DocumentState, Space, embedded_text


@dataclass(frozen=True, slots=True)
class Sizes:
    documents: int
    """Those with a text."""
    chars: int
    """Of their texts."""
    chunks: int
    chunk_chars: int
    """Of the chunks' texts, which overlap."""


def sizes(connection: Connection, collection_id: int, chunking_id: int) -> Sizes:
    documents, chunks = t.documents.c, t.chunks.c
    whole = select(func.count(), func.coalesce(func.sum(documents.text_length), 0)).where(_there(collection_id))
    cut = select(func.count(), func.coalesce(func.sum(chunks.end - chunks.start), 0)).where(
        chunks.collection_id == collection_id, chunks.chunking_id == chunking_id
    )
    return Sizes(*map(int, connection.execute(whole).one()), *map(int, connection.execute(cut).one()))


def known_space(connection: Connection, space: Space) -> int | None:
    """The catalog's key of a space; None where it has never seen it."""
    known = connection.execute(select(t.spaces.c.id).where(t.spaces.c.key == space.key)).scalar()
    return None if known is None else int(known)


# --- what has still to be embedded -----------------------------------------------------------------------------------


def lacking(connection: Connection, collection_id: int, chunking_id: int, space_id: int | None) -> tuple[int, int]:
    """Different texts of a collection's chunks that have no vector of record in a space, nor a refusal; and their
    tokens, as counted when they were cut. `space_id` is None for a space that is new."""
    chunks = t.chunks.c
    texts = (
        select(func.max(chunks.tokens).label("tokens"))
        .where(chunks.collection_id == collection_id, chunks.chunking_id == chunking_id, _without(space_id))
        .group_by(chunks.text_id)
        .subquery()
    )
    found = connection.execute(select(func.count(), func.coalesce(func.sum(texts.c.tokens), 0)).select_from(texts))
    count, tokens = found.one()
    return int(count), int(tokens)


def lacking_keys(
    connection: Connection, collection_id: int, chunking_id: int, space_id: int | None, limit: int
) -> list[int]:
    """The keys of up to `limit` chunks without a vector in a space, from all over the collection."""
    chunks = t.chunks.c
    last = rows.max_chunk_key(connection, collection_id, chunking_id)
    query = (
        select(chunks.id)
        .where(chunks.collection_id == collection_id, chunks.chunking_id == chunking_id, _without(space_id))
        .order_by(chunks.id)
        .limit(1)
    )
    found = {connection.execute(query.where(chunks.id > last * step // limit)).scalar() for step in range(limit)}
    return sorted(int(key) for key in found if key is not None)


def _without(space_id: int | None) -> ColumnElement[bool]:
    known = exists().where(t.vectors.c.text_id == t.chunks.c.text_id, t.vectors.c.space_id == space_id)
    return ~known if space_id is not None else t.chunks.c.text_id.is_not(None)


def embeddable(connection: Connection, keys: Sequence[int]) -> list[str]:
    """What an embedder is given for these chunks, as they come in the catalog."""
    return [text for _, text in _embeddable(connection, _columns().where(among(t.chunks.c.id, list(keys))))]


def _columns() -> Select[Any]:
    chunks = t.chunks.c
    return (
        select(t.documents.c.uri, chunks.context, chunks.start, chunks.end, chunks.segment_id)
        .join_from(t.chunks, t.documents, t.documents.c.id == chunks.document_id)
        .order_by(chunks.id)
    )


def _embeddable(connection: Connection, query: Select[Any]) -> list[tuple[str, str]]:
    found = connection.execute(query).all()
    texts = read_spans(connection, found)
    return [(row.uri, embedded_text(row.context, text)) for row, text in zip(found, texts, strict=True)]


def of_record(connection: Connection, space_id: int | None, hashes: Sequence[bytes]) -> int:
    """How many of these texts, by their hash, have a vector of record in a space."""
    if space_id is None:
        return 0
    joined = t.texts.join(t.vectors, (t.vectors.c.text_id == t.texts.c.id) & (t.vectors.c.space_id == space_id))
    query = select(func.count()).select_from(joined)
    return sum(
        int(connection.execute(query.where(t.texts.c.hash.in_(some))).scalar_one())
        for some in batched(sorted(set(hashes)), 5_000)
    )


# --- samples ---------------------------------------------------------------------------------------------------------


def spread_keys(connection: Connection, collection_id: int, chunking_id: int, places: int, each: int) -> list[int]:
    """The keys of `places` runs of `each` chunks, evenly over the collection; all of a small one."""
    last = rows.max_chunk_key(connection, collection_id, chunking_id)
    keys: set[int] = set()
    for place in range(places):
        after = last * place // places
        keys.update(rows.next_keys(connection, collection_id, chunking_id, after=after, upto=last, limit=each))
    return sorted(keys)


def largest_keys(connection: Connection, collection_id: int, chunking_id: int, limit: int) -> list[int]:
    """The chunks with the longest texts, and one each of the documents with the most metadata: what meets a database's
    limits first."""
    chunks, documents = t.chunks.c, t.documents.c
    of = (chunks.collection_id == collection_id) & (chunks.chunking_id == chunking_id)
    long = select(chunks.id).where(of).order_by((chunks.end - chunks.start).desc()).limit(limit)
    heavy = (
        select(documents.id)
        .where(_there(collection_id))
        .order_by(func.length(cast(documents.metadata, Text)).desc())
        .limit(limit)
    )
    keys = list(connection.execute(heavy).scalars())
    first = select(func.min(chunks.id)).where(of, among(chunks.document_id, keys)).group_by(chunks.document_id)
    found = {*connection.execute(long).scalars(), *connection.execute(first).scalars()}
    return sorted(found)


@dataclass(frozen=True, slots=True)
class WholeText:
    """A document with its text."""

    public_id: str
    uri: str
    title: str
    metadata: Mapping[str, Any]
    pages: Sequence[tuple[int, int]]
    text: str


def sample_documents(connection: Connection, collection_id: int, count: int, chars: int) -> list[WholeText]:
    """Up to `count` documents with their texts, evenly over those that there are, of `chars` characters together at
    most (or a single one)."""
    documents = t.documents.c
    there = _there(collection_id)
    first, last = connection.execute(select(func.min(documents.id), func.max(documents.id)).where(there)).one()
    if first is None:
        return []
    steps = min(count, last - first + 1)
    places = [first + step * (last - first) // max(steps - 1, 1) for step in range(steps)]
    # Every other one first: where the characters run out, what was read is not the oldest alone.
    places = places[::2] + places[1::2]
    found: dict[int, WholeText] = {}
    read = 0
    for place in places:
        row = connection.execute(
            select(t.documents).where(there, documents.id >= place).order_by(documents.id).limit(1)
        ).first()
        if row is None or row.id in found or (found and read + row.text_length > chars):
            continue
        text = read_text(connection, row.id)
        pages = [(int(offset), int(number)) for offset, number in row.pages]
        found[row.id] = WholeText(row.public_id.hex(), row.uri, row.title, row.metadata, pages, text)
        read += len(text)
    return list(found.values())


def _there(collection_id: int) -> ColumnElement[bool]:
    documents = t.documents.c
    there: ColumnElement[bool] = (documents.collection_id == collection_id) & (
        documents.state == DocumentState.EXTRACTED
    )
    return there
