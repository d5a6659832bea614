"""Finding the documents of a judged collection among those of a collection."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

from sqlalchemy import Connection, select

from whimbrel.catalog import tables as t
from whimbrel.domain import DocumentState


def match_documents(connection: Connection, collection_id: int, names: Iterable[str]) -> dict[str, str]:
    """Public id -> name, for the documents that are called so: by their external id, else by `_id` in their metadata,
    else by their file's name without its ending. What two documents are called names neither."""
    wanted = set(names)
    documents = t.documents.c
    query = select(documents.public_id, documents.external_id, documents.uri, documents.metadata).where(
        documents.collection_id == collection_id, documents.state == DocumentState.EXTRACTED
    )
    by_rank: list[dict[str, set[str]]] = [{}, {}, {}]
    for public_id, external_id, uri, metadata in connection.execute(query):
        called = (external_id, metadata.get("_id"), PurePath(uri).stem)
        for names_of, name in zip(by_rank, called, strict=True):
            if name is not None and str(name) in wanted:
                names_of.setdefault(str(name), set()).add(public_id.hex())
    found: dict[str, str] = {}
    for name in wanted:
        ids = next((of[name] for of in by_rank if name in of), set())
        if len(ids) == 1:
            found.setdefault(next(iter(ids)), name)
    return found
