"""Small helpers for the tests of the catalog."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from whimbrel.catalog import collections, log, rows
from whimbrel.catalog import tables as t
from whimbrel.catalog.documents import DocumentWrite, WriteCounts, write_documents
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.migrate import ensure_schema
from whimbrel.domain import ChunkSpan, Position, document_id

CHUNKING = "test:paragraphs"


def paragraphs(text: str) -> list[ChunkSpan]:
    """One span for each paragraph, that is, each run of text between blank lines."""
    return [ChunkSpan(m.start(), m.end(), len(m[0].split())) for m in re.finditer(r"[^\n]+(?:\n[^\n]+)*", text)]


def document(
    uri: str,
    text: str,
    metadata: Mapping[str, Any] | None = None,
    *,
    title: str = "",
    spans: Sequence[ChunkSpan] | None = None,
    external_id: str | None = None,
) -> DocumentWrite:
    """A document as ingest would hand it over, cut into paragraphs unless `spans` say otherwise."""
    return DocumentWrite(
        public_id=document_id(external_id=external_id, uri=uri),
        external_id=external_id,
        uri=uri,
        root="",
        title=title,
        media_type="text/plain",
        metadata=metadata or {},
        content_hash=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        recipe="test",
        size=len(text),
        mtime_ns=0,
        text=text,
        spans=paragraphs(text) if spans is None else spans,
    )


def opened(url: str, copies: Path) -> Catalog:
    made = Catalog(url)
    ensure_schema(made, copies=copies)
    return made


def collection(catalog: Catalog, name: str = "docs") -> tuple[int, int]:
    """A new collection, and the key of the chunking that these helpers cut with."""
    with catalog.write() as connection:
        return collections.create(connection, name).id, collections.chunking_id(connection, CHUNKING)


def write(catalog: Catalog, place: tuple[int, int], *documents: DocumentWrite) -> WriteCounts:
    with catalog.write() as connection:
        return write_documents(connection, *place, list(documents))


class ToyView:
    """The smallest view: chunk id -> (text, title, metadata), fed from the log as an applier does it."""

    def __init__(self, place: tuple[int, int], batch: int = 50) -> None:
        self.collection_id, self.chunking_id = place
        self.batch = batch
        self.rows: dict[str, tuple[str, str, Mapping[str, Any]]] = {}
        self.position: Position | None = None

    def build(self, catalog: Catalog) -> None:
        """From a snapshot: all chunks, at the log's head."""
        with catalog.read() as connection:
            end = log.head(connection, self.collection_id)
            upto = rows.max_chunk_key(connection, self.collection_id, self.chunking_id)
            after = 0
            self.rows = {}
            while keys := rows.next_keys(
                connection, self.collection_id, self.chunking_id, after=after, upto=upto, limit=self.batch
            ):
                after = keys[-1]
                self._hold(rows.load_chunks(connection, keys, None)[0])
            self.position = end.position

    def step(self, catalog: Catalog) -> bool:
        """Apply one batch of the log. False when there was nothing to apply."""
        with catalog.read() as connection:
            return self.step_on(connection)

    def step_on(self, connection: Connection) -> bool:
        if self.position is None:
            self.position = Position(log.head(connection, self.collection_id).epoch, 0, "")
        why = log.distrust(connection, self.collection_id, self.position)
        assert not why, why
        end = log.commit_end(connection, self.collection_id, self.position.position, self.batch)
        if end is None:
            return False
        upserts, deletes, new = rows.read_log(
            connection, self.collection_id, self.chunking_id, self.position.position, end[0]
        )
        found, _, _ = rows.load_chunks(connection, [entry.chunk_id for entry in upserts], None)
        if new:
            assert not set(found.ids) & set(self.rows), "rows said to be new were there already"
        for chunk in deletes:
            self.rows.pop(chunk, None)
        self._hold(found)
        self.position = Position(self.position.epoch, *end)
        return True

    def catch_up(self, catalog: Catalog) -> None:
        while self.step(catalog):
            pass

    def _hold(self, found: rows.ChunkRows) -> None:
        for chunk, text, title, metadata in zip(found.ids, found.texts, found.titles, found.metadata, strict=True):
            self.rows[chunk] = (text, title, metadata)


def contents(catalog: Catalog, place: tuple[int, int]) -> dict[str, tuple[str, str, Mapping[str, Any]]]:
    """What a view of the collection must hold, read past the log."""
    view = ToyView(place)
    view.build(catalog)
    return view.rows


def count(connection: Connection, table: str) -> int:
    return len(connection.execute(select(t.metadata.tables[table])).all())
