"""The words of Whimbrel as values. Frozen, without behaviour beyond their own identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # numpy costs a tenth of a second that the command line does not need
    import numpy as np
    import numpy.typing as npt

Metadata = Mapping[str, Any]
"""What a user attaches to a document: JSON values under string keys."""


class DocumentState(StrEnum):
    QUEUED = "queued"
    FETCHED = "fetched"
    EXTRACTED = "extracted"
    INDEXED = "indexed"
    """Derived, not stored: extracted, and every live view has passed the document's position."""
    FAILED = "failed"
    GONE = "gone"


class ViewKind(StrEnum):
    STORE = "store"
    LEXICON = "lexicon"


class ViewState(StrEnum):
    BUILDING = "building"
    LIVE = "live"
    STANDBY = "standby"
    FROZEN = "frozen"
    RETIRED = "retired"


class MoveState(StrEnum):
    """Each is reached by a durable step; pausing is a flag beside it."""

    PLANNED = "planned"
    COPYING = "copying"
    """A new chunking is cut first, then the snapshot is copied into the target."""
    CATCHING_UP = "catching_up"
    VERIFYING = "verifying"
    READY = "ready"
    """Every row was verified at one position; the target is fed."""
    PREPARED = "prepared"
    """Every process that searches has the target open."""
    SWITCHED = "switched"
    """Searches read the target; the old view is fed still."""
    FINALISED = "finalised"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"
    FAILED = "failed"
    """It needs a person: verifying found differences, or the target refuses. Nothing was switched."""

    @property
    def ended(self) -> bool:
        return self in (MoveState.FINALISED, MoveState.ABORTED)


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    """Between two steps, until a time that the job says (an erasure waiting for old versions to expire)."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Mode(StrEnum):
    HYBRID = "hybrid"
    DENSE = "dense"
    LEXICAL = "lexical"


class EmbedKind(StrEnum):
    QUERY = "query"
    DOCUMENT = "document"


@dataclass(frozen=True, slots=True)
class Space:
    """The identity of an embedding. Two vectors may be compared only within one space."""

    model: str
    revision: str
    dimensions: int
    pooling: str = "mean"
    normalised: bool = True
    query_prefix: str = ""
    document_prefix: str = ""
    numeric: str = "fp32"
    """Numeric form of the weights: `fp32`, `fp16`, `int8-per-channel`, ... int8 and fp32 are two spaces."""
    max_tokens: int = 512
    """The longest text, in tokens, that the model reads; a longer one would be cut, and is refused instead."""

    @property
    def key(self) -> str:
        """16 hex characters: a hash over every field but `max_tokens`, which changes no vector."""
        parts = [self.model, self.revision, self.dimensions, self.pooling, self.normalised]
        parts += [self.query_prefix, self.document_prefix, self.numeric]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a collection's log.

    `stamp` is the random mark of the commit that ended at `position`: a view that stands at the same number in another
    history (a catalog copied back by hand) is told apart by it.
    """

    epoch: str
    position: int
    stamp: str


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """A chunk as the chunker makes it: a span `[start, end)` of the document's text, in characters."""

    start: int
    end: int
    tokens: int
    """Length in tokens of what the embedder reads: context and text."""
    context: str = ""
    """What the embedder reads before the text (the heading path); part of what is hashed."""
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Extracted:
    """A document as extraction makes it."""

    text: str
    """Markdown."""
    title: str = ""
    media_type: str = "text/plain"
    pages: Sequence[tuple[int, int]] = ()
    """(offset, page number) of each page's first character, ascending; empty where a format has no pages."""
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Matches:
    """What one view found: nearest rows, best first; ties by id."""

    ids: Sequence[str]
    scores: npt.NDArray[np.float32]
    """0..1, higher is better."""


@dataclass(frozen=True, slots=True)
class Hit:
    rank: int
    score: float
    """0..1, higher is better, comparable between queries; the formula per mode is in `whimbrel.search.fusion`. Where a
    reranker has judged the hit, its score: the rule per provider is in `whimbrel.models.rerankers.base`."""
    chunk_id: str
    document_id: str
    uri: str
    title: str
    text: str
    start: int
    end: int
    metadata: Metadata
    page: int | None = None
    retrieval_score: float | None = None
    """Of a hit that a reranker has judged, the score that it was found with; else None."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    hits: Sequence[Hit]
    position: int
    """Every change up to this position of the collection's log was visible to this search."""
    degraded: Sequence[str] = ()
    """What was out or behind, in words; empty when all parts answered."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Citation:
    marker: int
    chunk_id: str
    document_id: str
    uri: str
    start: int
    end: int
    quote: str
    """Exactly the document's text at `[start, end)`."""
    supported: str
    """`yes`, `partly` or `no`."""
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What of a cited passage was held against a sentence, and what came of it."""

    marker: int
    start: int
    """In the document's text, as all offsets of passages."""
    end: int
    supported: str
    """`yes`, `partly` or `no`."""
    score: float
    """0..1, by the method that judged; see `whimbrel.answer.checking`."""
    reason: str = ""
    """Why it is not `yes`, in words: "the number 1,024 is not in it"."""


@dataclass(frozen=True, slots=True)
class CheckedSentence:
    """A sentence of an answer: the span `[start, end)` of its text, without the markers that follow it."""

    start: int
    end: int
    markers: Sequence[int]
    """The citations that it bears; empty where it cites nothing."""
    supported: str
    """`yes`, `partly` or `no`: by all that it cites together. `no` where it cites nothing."""
    evidence: Sequence[Evidence] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    answer: str
    citations: Sequence[Citation]
    model: str
    degraded: Sequence[str] = ()
    usage: Mapping[str, Any] = field(default_factory=dict)
    """Tokens where a model wrote it, and counts: `citations_removed`, `sentences_embedded`."""
    sentences: Sequence[CheckedSentence] = ()
    abstained: bool = False
    """The collection does not answer the question, and the answer says so."""
    conversation_id: str | None = None
    question: str = ""
    """What was searched for: the question, made to stand alone where it followed up on others."""
    turn_id: str | None = None
    """Where the answer is stored, in a conversation: what feedback names."""


@dataclass(frozen=True, slots=True)
class Passages:
    """The first event of an answer: what it will be made from, numbered from 1 in this order."""

    hits: Sequence[Hit]
    question: str
    position: int
    degraded: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of an answer's text, as its model writes it; markers in it are not checked yet."""

    text: str


AnswerEvent = Passages | TextDelta | Answer
"""A streamed answer: `Passages`, then any number of `TextDelta`, then the checked `Answer`, which counts."""


@dataclass(frozen=True, slots=True)
class View:
    """One index following one collection, as the catalog records it."""

    id: int
    collection_id: int
    kind: ViewKind
    uri: str
    name: str
    """Table, index or folder name under the uri; never reused."""
    space_id: int | None
    chunking_id: int
    epoch: str
    position: int
    state: ViewState
    created_at: datetime
    error: str = ""
    """What is wrong with it now, in words; empty when nothing is."""


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    kind: str
    collection: str | None
    args: Mapping[str, Any]
    state: JobState
    progress: Mapping[str, Any]
    result: Mapping[str, Any]
    attempts: int
    error: str
    hint: str
    error_code: str
    """Class name of the error; empty where there is none."""
    created_at: datetime
    updated_at: datetime
    not_before: datetime | None = None
    cancel_requested: bool = False


def hash_id(*parts: str) -> str:
    """32 hex characters: blake2b-128 over the parts, each after its length: no two lists give the same bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def document_id(*, external_id: str | None, uri: str) -> str:
    """A document's public id: a hash of its external id or else of its source URI; never random."""
    return hash_id("external", external_id) if external_id is not None else hash_id("uri", uri)


def row_id(source_id: str) -> str:
    """The public id of a chunk that was adopted: a hash of its row's id in the database that it comes from."""
    return hash_id("row", source_id)


def chunk_id(document: str, text: str, occurrence: int) -> str:
    """A chunk's public id: a hash of document id, content and occurrence (repeated paragraphs are real)."""
    return hash_id("chunk", document, text, str(occurrence))


def embedded_text(context: str, text: str) -> str:
    """The exact text given to the embedder for a chunk; what vectors of record are found by."""
    return f"{context}\n{text}" if context else text
