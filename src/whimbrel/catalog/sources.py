"""What the catalog knows of documents by their source: what is unchanged, what has gone, what has a new label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import ColumnElement, Connection, or_, select, update

from whimbrel.catalog import log
from whimbrel.catalog import tables as t
from whimbrel.catalog.documents import batched, view_metadata
from whimbrel.catalog.engine import now
from whimbrel.catalog.keys import among
from whimbrel.catalog.log import Change, Op
from whimbrel.domain import DocumentState
from whimbrel.filters.facts import facts


@dataclass(frozen=True, slots=True)
class Known:
    """What an ingest compares a file with."""

    key: int
    public_id: str
    uri: str
    root: str
    title: str
    metadata: Mapping[str, Any]
    content_hash: str
    recipe: str
    size: int
    mtime_ns: int
    state: str

    def unchanged(self, uri: str, size: int, mtime_ns: int, recipe: str) -> bool:
        """By place, size, time and recipe: no need to read it. (A file that was moved keeps its time.)"""
        same = (self.uri, self.size, self.mtime_ns, self.recipe) == (uri, size, mtime_ns, recipe)
        return same and self.state == DocumentState.EXTRACTED


def known(connection: Connection, collection_id: int, public_ids: Sequence[str]) -> dict[str, Known]:
    columns = t.documents.c
    found: dict[str, Known] = {}
    for batch in batched([bytes.fromhex(public_id) for public_id in public_ids], 5_000):
        query = select(
            columns.id,
            columns.public_id,
            columns.uri,
            columns.root,
            columns.title,
            columns.metadata,
            columns.content_hash,
            columns.recipe,
            columns.size,
            columns.mtime_ns,
            columns.state,
        ).where(columns.collection_id == collection_id, columns.public_id.in_(batch))
        for key, public_id, *rest in connection.execute(query):
            found[public_id.hex()] = Known(key, public_id.hex(), *rest)
    return found


@dataclass(frozen=True, slots=True)
class Held:
    """A document that lies in a folder, or that came from it."""

    key: int
    public_id: str
    uri: str
    root: str


def under(connection: Connection, collection_id: int, root: str, uri: str) -> list[Held]:
    """What came from a folder, or from one in it; and what lies in it by its URI, wherever it came from. None is gone.

    `uri` is the folder's, with a slash at its end.
    """
    columns = t.documents.c
    postgres = connection.dialect.name == "postgresql"

    def within(column: ColumnElement[str], folder: str) -> ColumnElement[bool]:
        """By its first characters: not by the order of a language, which passes over slashes."""
        column = column.collate("C") if postgres else column
        return (column >= folder) & (column < folder[:-1] + "0")  # the character after the slash

    above = ["", *(str(parent) for parent in PurePosixPath(root).parents)]
    query = select(columns.id, columns.public_id, columns.uri, columns.root).where(
        columns.collection_id == collection_id,
        columns.state != DocumentState.GONE,
        or_(
            columns.root == root,
            within(columns.root, root.rstrip("/") + "/"),
            columns.root.in_(above) & within(columns.uri, uri),
        ),
    )
    return [Held(row.id, row.public_id.hex(), row.uri, row.root) for row in connection.execute(query)]


def touch(connection: Connection, rows: Sequence[tuple[int, str, int]]) -> None:
    """Note (key, root, mtime_ns) of documents whose content is the same."""
    for key, root, mtime_ns in rows:
        connection.execute(update(t.documents).where(t.documents.c.id == key).values(root=root, mtime_ns=mtime_ns))


def relabel(connection: Connection, collection_id: int, rows: Sequence[tuple[int, str, Mapping[str, Any]]]) -> int:
    """Give documents (key, public id, metadata) new metadata: their chunks go to the views again, none to the model.

    Returns the new head.
    """
    log.lock(connection, collection_id)
    columns, chunks = t.documents.c, t.chunks.c
    keys = [key for key, _, _ in rows]
    labels = {
        row.id: row
        for row in connection.execute(select(columns.id, columns.uri, columns.title).where(among(columns.id, keys)))
    }
    changed = connection.execute(
        select(chunks.id, chunks.chunking_id).where(among(chunks.document_id, keys)).order_by(chunks.id)
    )
    head = log.append(connection, collection_id, [Change(Op.UPDATE, row.id, row.chunking_id) for row in changed])
    for key, public_id, metadata in rows:
        if key not in labels:  # purged since it was read
            continue
        found = facts(view_metadata(public_id, labels[key].uri, labels[key].title, metadata))
        connection.execute(
            update(t.documents)
            .where(columns.id == key)
            .values(metadata=dict(metadata), facts=found, position=head, updated_at=now())
        )
    return head
