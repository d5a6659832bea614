"""From rows to documents: rows of one source, one after another, are the chunks of one document.

A document's text is put together from its rows, in the order that they say, or else come in; where one begins with what
the one before it ends with, the two overlap in the text as they did. Metadata belongs to a document here: rows of one
source whose metadata differs by more than their place are documents of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.adopt.fields import OWN, Fields, at, number, told, unfolded
from whimbrel.catalog.documents import DocumentWrite
from whimbrel.catalog.listing import UNSAYABLE
from whimbrel.domain import ChunkSpan, document_id, hash_id, row_id
from whimbrel.stores.foreign.base import Id, IdKind, Rows
from whimbrel.stores.foreign.values import as_text

MOST_ROWS = 1_000
"""Of one document: of more, the next ones are another document of the same source."""
LEAST_CUT = 2_000
"""Characters. Shorter round lengths are those that splitters are told: what is past them is in the next row."""
_SEPARATOR = "\n\n"
_PROBE = 24
_LONGEST_OVERLAP = 2_000
_CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it can be adopted."""

    source_id: str
    public_id: str
    text: str
    uri: str
    title: str
    named: str
    """By the program that wrote it: the id of its document; empty where it has none."""
    order: float
    page: int | None
    metadata: Mapping[str, Any]
    """Without what says its place."""
    digest: str
    """Of the metadata."""
    vector: npt.NDArray[np.float32]

    @property
    def document(self) -> str:
        """The public id of the document that it is a part of, if it is one with its other rows."""
        return document_id(external_id=self.named or None, uri=self.uri)


@dataclass(slots=True)
class Looked:
    """What was seen of the rows, to be told."""

    rejects: dict[str, str] = field(default_factory=dict)
    """By public id: why a row cannot be adopted, with its id."""
    lengths: dict[int, int] = field(default_factory=dict)
    """How many texts have a length, of the longest few."""

    def add(self, other: Looked) -> None:
        self.rejects.update(other.rejects)
        for length, count in other.lengths.items():
            self.lengths[length] = self.lengths.get(length, 0) + count

    def text(self, length: int) -> None:
        self.lengths[length] = self.lengths.get(length, 0) + 1
        if len(self.lengths) > 64:
            for shorter in sorted(self.lengths)[:32]:
                del self.lengths[shorter]


def cut_at(lengths: Mapping[int, int]) -> tuple[int, int]:
    """(characters, texts): where texts were cut by the program that wrote them, as far as their lengths tell: the
    longest have all the same, round, length. (0, 0) where nothing looks like that."""
    if not lengths:
        return 0, 0
    longest = max(lengths)
    is_round = longest >= LEAST_CUT and (longest % 500 == 0 or longest % 512 == 0)
    return (longest, lengths[longest]) if is_round else (0, 0)


def read_rows(rows: Rows, kind: IdKind, fields: Fields, where: str, looked: Looked) -> list[Row]:
    """The rows that can be adopted; what cannot is noted in `looked`."""
    finite = np.asarray(np.isfinite(rows.vectors).all(axis=1)).tolist()
    lengths = np.linalg.norm(rows.vectors, axis=1).tolist()
    found = []
    for number_, (id_, own, given) in enumerate(zip(rows.ids, rows.texts, rows.metadata, strict=True)):
        source_id = kind.text(id_)
        public_id = row_id(source_id)
        metadata = unfolded(given)
        text = own if fields.text == OWN else at(metadata, fields.text)
        why = _unfit(text, finite[number_], lengths[number_])
        if UNSAYABLE.search(source_id):
            why = "its id holds a character that no database keeps"
        if why:
            looked.rejects[public_id] = f"row {source_id[:80]!r}: {why}"
            continue
        assert isinstance(text, str)
        looked.text(len(text))
        found.append(_row(source_id, public_id, text, metadata, given, fields, where, rows.vectors[number_]))
    return found


def refuse(id_: Id, kind: IdKind, why: str, looked: Looked) -> None:
    source_id = kind.text(id_)
    looked.rejects[row_id(source_id)] = f"row {source_id[:80]!r}: {why}"


def _unfit(text: Any, finite: bool, length: float) -> str:
    if text is None or (isinstance(text, str) and not text.strip()):
        return "it has no text"
    if not isinstance(text, str):
        return f"what should be its text is of the type {type(text).__name__}"
    if UNSAYABLE.search(text):
        return "its text holds a character that no database keeps"
    if not finite:
        return "its vector has a component that is no finite number"
    return "" if length > 0 else "its vector is all zeros"


def _row(
    source_id: str,
    public_id: str,
    text: str,
    metadata: Mapping[str, Any],
    given: Mapping[str, Any],
    fields: Fields,
    where: str,
    vector: npt.NDArray[np.float32],
) -> Row:
    uri = _words(told(fields.uri, metadata, given, source_id))
    named = _words(told(fields.document, metadata, given, source_id))
    page = number(at(metadata, fields.page)) if fields.page else None
    order = number(at(metadata, fields.order)) if fields.order else None
    kept, digest = _plain(
        {key: value for key, value in metadata.items() if key != fields.text and not fields.is_place(key, value)}
    )
    if fields.text == OWN and "text" in metadata and "text" not in kept:
        kept, digest = _plain({**kept, "text": metadata["text"]})
    return Row(
        source_id,
        public_id,
        text,
        uri or (f"{where}#{named}" if named else f"{where}#{source_id}"),
        _words(told(fields.title, metadata, given, source_id)),
        named,
        math.nan if order is None and page is None else (order if order is not None else page or 0.0),
        int(page) + 1 - fields.pages_from if page is not None and 0 <= page < 2**31 - 1 else None,
        kept,
        digest,
        vector,
    )


def _words(value: Any) -> str:
    """What names or titles something, on one line; empty for what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return " ".join(UNSAYABLE.sub("\ufffd", str(value)).split())[:2_000]


def _plain(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """As JSON that every catalog keeps, and a digest of it. Dates and decimals become their text."""
    try:
        written = json.dumps(metadata, sort_keys=True, allow_nan=False)
        found = dict(metadata)
    except (TypeError, ValueError):
        found = {str(key): _json(value) for key, value in metadata.items()}
        written = json.dumps(found, sort_keys=True)
    if "\\u0000" in written or "\\ud" in written:
        found = json.loads(UNSAYABLE.sub("\ufffd", json.dumps(_clean(found), ensure_ascii=False)))
        written = json.dumps(found, sort_keys=True)
    return found, hashlib.blake2b(written.encode(), digest_size=8).hexdigest()


def digest_of(metadata: Mapping[str, Any]) -> str:
    """Of a document's metadata, as `Row.digest`."""
    return _plain(metadata)[1]


def _json(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    return as_text(value) or str(value)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return UNSAYABLE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_clean(key): _clean(one) for key, one in value.items()}
    return [_clean(one) for one in value] if isinstance(value, list) else value


# --- documents -------------------------------------------------------------------------------------------------------


class Grouper:
    """Says which document each row is of. What it answers depends on the rows that came before, and on the documents
    that the catalog has; not on where a run was cut off."""

    def __init__(self, known: Iterable[tuple[str, str]] = ()) -> None:
        """`known`: public id and digest of the metadata of documents that there are."""
        self._digests = dict(known)

    def document(self, row: Row) -> str:
        plain = row.document
        digest = self._digests.setdefault(plain, row.digest)
        return plain if digest == row.digest else hash_id("part", plain, row.digest)

    def knows(self, document: str) -> bool:
        return document in self._digests


def write_of(document: str, rows: Sequence[Row]) -> DocumentWrite:
    """A document of its rows."""
    if not any(math.isnan(row.order) for row in rows):
        rows = sorted(rows, key=lambda row: (row.page or 0, row.order))
    text, spans = _joined(rows)
    first = rows[0]
    return DocumentWrite(
        public_id=document,
        external_id=first.named or None,
        uri=first.uri,
        root="",
        title=next((row.title for row in rows if row.title), ""),
        media_type="text/plain",
        metadata=first.metadata,
        content_hash=hashlib.sha256(text.encode()).hexdigest(),
        recipe="adopted",
        size=len(text),
        mtime_ns=0,
        text=text,
        spans=spans,
        pages=_pages(rows, spans),
        rows=[row.source_id for row in rows],
    )


def vectors_of(write: DocumentWrite, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
    """In the order of the document's spans."""
    by_id = {row.source_id: row.vector for row in rows}
    return [by_id[one] for one in write.rows]


def _joined(rows: Sequence[Row]) -> tuple[str, list[ChunkSpan]]:
    """The text, in which each row's is a span."""
    parts: list[str] = []
    spans: list[ChunkSpan] = []
    length = 0
    tail = ""
    for row in rows:
        shared = _overlap(tail, row.text)
        if not shared and parts:
            parts.append(_SEPARATOR)
            length += len(_SEPARATOR)
        start = length - shared
        parts.append(row.text[shared:])
        length += len(row.text) - shared
        tokens = 2 + -(-len(row.text) // _CHARS_PER_TOKEN)
        spans.append(ChunkSpan(start, start + len(row.text), tokens, "", row.page))
        tail = row.text
    return "".join(parts), spans


def _overlap(before: str, text: str) -> int:
    """Characters that `text` repeats from the end of the row before it."""
    if len(text) < _PROBE:
        return 0
    at_ = before.find(text[:_PROBE], max(0, len(before) - _LONGEST_OVERLAP))
    while at_ > 0:  # at 0 it would be all of that row: the same text twice is no overlap
        shared = len(before) - at_
        if shared < len(text) and text.startswith(before[at_:]):
            return shared
        at_ = before.find(text[:_PROBE], at_ + 1)
    return 0


def _pages(rows: Sequence[Row], spans: Sequence[ChunkSpan]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for row, span in zip(rows, spans, strict=True):
        if row.page is not None and (not found or (found[-1][1] < row.page and found[-1][0] < span.start)):
            found.append((span.start, row.page))
    return found
