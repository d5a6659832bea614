"""The fields of the index, and rows and the position as its documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tantivy import Document, Schema, SchemaBuilder

from whimbrel.domain import Position
from whimbrel.errors import ViewDamaged
from whimbrel.lexicon import filters
from whimbrel.lexicon.analysis import Analysis, document_text
from whimbrel.lexicon.base import LexicalRows

ROW, POSITION = "row", "position"
"""The kinds of document. There is one of kind `position`: commits of tantivy carry no payload in Python."""

TITLE_REPEATS = 2


def schema(analysis: Analysis) -> Schema:
    builder = SchemaBuilder()
    builder.add_text_field("kind", tokenizer_name="raw", index_option="basic")
    builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("title", tokenizer_name=analysis.name, index_option="freq")
    builder.add_text_field("text", tokenizer_name=analysis.name, index_option="freq")
    # A column beside the index: a range over 90,000 different numbers takes 3 ms by it, 30 ms by the terms.
    builder.add_text_field(filters.FIELD, fast=True, tokenizer_name="raw", index_option="basic")
    builder.add_bytes_field("digest", stored=True)
    builder.add_bytes_field("source", stored=True)
    return builder.build()


def analyser_name(path: Path) -> str:
    """What the texts of the index in `path` were analysed by."""
    meta = read_meta(path)
    for field in meta["schema"]:
        if field["name"] == "text":
            return str(field["options"]["indexing"]["tokenizer"])
    raise ViewDamaged(f"The lexicon in {path} has no field for text.", "Rebuild the view.")


def read_meta(path: Path) -> dict[str, Any]:
    """tantivy's list of segments and fields, as the last commit or merge left it."""
    meta = json.loads((path / "meta.json").read_bytes())
    if not isinstance(meta, dict) or "segments" not in meta or "schema" not in meta:
        raise ViewDamaged(f"meta.json in {path} is not tantivy's.", "Rebuild the view.")
    return meta


def segments(path: Path) -> list[tuple[int, int]]:
    """(documents, deleted ones among them) of each segment, in tantivy's order."""
    found = read_meta(path)["segments"]
    return [(s["max_doc"], s["deletes"]["num_deleted_docs"] if s["deletes"] else 0) for s in found]


def segment_ids(path: Path) -> set[str]:
    """What the names of the living segments' files begin with."""
    return {s["segment_id"].replace("-", "") for s in read_meta(path)["segments"]}


def documents(rows: LexicalRows) -> Iterator[tuple[str, Document]]:
    """Each row's id and document."""
    terms: dict[str, list[str]] = {}  # neighbours are of one document, and share its metadata
    for row_id, title, text, metadata, digest in zip(
        rows.ids, rows.titles, rows.texts, rows.metadata, rows.digests, strict=True
    ):
        written = _written(metadata)
        if written not in terms:
            terms = {written: filters.fact_terms(metadata)}
        yield row_id, _row_document(row_id, title, text, terms[written], written, digest.encode())


def again(document: Document) -> Document:
    """The document, to be indexed anew, of a row as it is stored."""
    title, text, written = json.loads(document["source"][0])
    terms = filters.fact_terms(json.loads(written))
    return _row_document(document["id"][0], title, text, terms, written, document["digest"][0])


def position_document(position: Position) -> Document:
    document = Document()
    document.add_text("kind", POSITION)
    document.add_bytes("source", json.dumps([position.epoch, position.position, position.stamp]).encode())
    return document


def position_of(document: Document) -> Position:
    epoch, number, stamp = json.loads(document["source"][0])
    return Position(epoch, number, stamp)


def _row_document(row_id: str, title: str, text: str, facts: list[str], metadata: str, digest: bytes) -> Document:
    document = Document()
    document.add_text("kind", ROW)
    document.add_text("id", row_id)
    prepared = document_text(title)
    if prepared:
        document.add_text("title", prepared)
    document.add_text("text", "\n".join([prepared] * TITLE_REPEATS + [document_text(text)]))
    for term in facts:
        document.add_text(filters.FIELD, term)
    document.add_bytes("digest", digest)
    # What a segment is written anew from, when deleted rows have to leave the files.
    document.add_bytes("source", _written([title, text, metadata]).encode())
    return document


def _written(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
