"""Texts from all over a collection, to tell from what it is like."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from whimbrel.catalog import tables as t
from whimbrel.domain import DocumentState


def sample_texts(connection: Connection, collection_id: int, count: int, chars: int) -> list[str]:
    """The first characters of up to `count` documents, evenly spread over those that there are; always the same ones.

    Takes one look-up a document, however large the collection.
    """
    documents, segments = t.documents.c, t.segments.c
    there = (documents.collection_id == collection_id) & (documents.state == DocumentState.EXTRACTED)
    first, last = connection.execute(select(func.min(documents.id), func.max(documents.id)).where(there)).one()
    if first is None:
        return []
    steps = min(count, last - first + 1)
    keys: dict[int, None] = {}
    for step in range(steps):
        place = first + step * (last - first) // max(steps - 1, 1)
        key = connection.execute(
            select(documents.id).where(there, documents.id >= place).order_by(documents.id).limit(1)
        ).scalar()
        if key is not None:
            keys[key] = None
    query = select(func.substr(segments.text, 1, chars)).where(
        segments.document_id.in_(list(keys)), segments.ordinal == 0
    )
    return [str(text) for text in connection.execute(query.order_by(segments.document_id)).scalars()]
