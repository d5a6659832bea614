"""What the API answers with: as JSON, and as classes that only document it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from whimbrel.domain import (
    Answer,
    AnswerEvent,
    CheckedSentence,
    Citation,
    DocumentState,
    Evidence,
    Hit,
    JobState,
    Passages,
    SearchResult,
    TextDelta,
)


def search_result(found: SearchResult) -> dict[str, Any]:
    return {
        "hits": [hit(one) for one in found.hits],
        "position": found.position,
        "degraded": list(found.degraded),
        "timings_ms": dict(found.timings_ms),
    }


def hit(found: Hit) -> dict[str, Any]:
    return {
        "rank": found.rank,
        "score": found.score,
        "chunk_id": found.chunk_id,
        "document_id": found.document_id,
        "uri": found.uri,
        "title": found.title,
        "text": found.text,
        "start": found.start,
        "end": found.end,
        "metadata": dict(found.metadata),
        "page": found.page,
    }


def answer(found: Answer) -> dict[str, Any]:
    return {
        "answer": found.answer,
        "citations": [citation(one) for one in found.citations],
        "model": found.model,
        "degraded": list(found.degraded),
        "usage": dict(found.usage),
        "sentences": [sentence(one) for one in found.sentences],
        "abstained": found.abstained,
        "question": found.question,
        "conversation_id": found.conversation_id,
        "turn_id": found.turn_id,
    }


def sentence(found: CheckedSentence) -> dict[str, Any]:
    return {
        "start": found.start,
        "end": found.end,
        "markers": list(found.markers),
        "supported": found.supported,
        "evidence": [evidence(one) for one in found.evidence],
    }


def evidence(found: Evidence) -> dict[str, Any]:
    return {
        "marker": found.marker,
        "start": found.start,
        "end": found.end,
        "supported": found.supported,
        "score": found.score,
        "reason": found.reason,
    }


def event(found: AnswerEvent) -> tuple[str, dict[str, Any]]:
    """The name of an event of a streamed answer, and what it carries."""
    if isinstance(found, Passages):
        return "passages", {
            "passages": [hit(one) for one in found.hits],
            "question": found.question,
            "position": found.position,
            "degraded": list(found.degraded),
        }
    if isinstance(found, TextDelta):
        return "text", {"text": found.text}
    return "answer", answer(found)


def citation(found: Citation) -> dict[str, Any]:
    return {
        "marker": found.marker,
        "chunk_id": found.chunk_id,
        "document_id": found.document_id,
        "uri": found.uri,
        "start": found.start,
        "end": found.end,
        "quote": found.quote,
        "supported": found.supported,
        "page": found.page,
    }


class ErrorShape(BaseModel):
    error: str
    """A stable name for programs."""
    message: str
    hint: str
    status: int


class HitShape(BaseModel):
    rank: int
    score: float
    chunk_id: str
    document_id: str
    uri: str
    title: str
    text: str
    start: int
    end: int
    metadata: dict[str, Any]
    page: int | None


class SearchShape(BaseModel):
    hits: list[HitShape]
    position: int
    degraded: list[str]
    timings_ms: dict[str, float]


class CitationShape(BaseModel):
    marker: int
    chunk_id: str
    document_id: str
    uri: str
    start: int
    end: int
    quote: str
    supported: Literal["yes", "partly", "no"]
    page: int | None


class EvidenceShape(BaseModel):
    marker: int
    start: int
    end: int
    supported: Literal["yes", "partly", "no"]
    score: float
    reason: str


class SentenceShape(BaseModel):
    start: int
    end: int
    markers: list[int]
    supported: Literal["yes", "partly", "no"]
    evidence: list[EvidenceShape]


class AnswerShape(BaseModel):
    answer: str
    citations: list[CitationShape]
    model: str
    degraded: list[str]
    usage: dict[str, Any]
    sentences: list[SentenceShape]
    abstained: bool
    """The collection does not answer the question."""
    question: str
    """What was searched for: the question, made to stand alone."""
    conversation_id: str | None
    turn_id: str | None
    """What feedback names; null outside of a conversation."""


class AcceptedShape(BaseModel):
    job_id: str
    state: JobState
    collection: str | None


class AddedShape(BaseModel, extra="allow"):
    """The counts of the job, and the position of the log at which its documents are."""

    job_id: str
    state: JobState
    position: int


class DocumentShape(BaseModel):
    document_id: str
    external_id: str | None
    uri: str
    title: str
    media_type: str
    state: DocumentState
    reason: str
    metadata: dict[str, Any]
    size: int
    text_length: int
    chunks: int
    position: int


class DocumentTextShape(DocumentShape):
    text: str


class DocumentsShape(BaseModel):
    documents: list[DocumentShape]
    limit: int
    offset: int


class RemovedShape(BaseModel):
    removed: int
    chunks_removed: int
    position: int


class CollectionShape(BaseModel):
    name: str
    language: str
    epoch: str
    head: int
    """The last position of its log."""


class CollectionsShape(BaseModel):
    collections: list[CollectionShape]


class JobShape(BaseModel):
    id: str
    kind: str
    collection: str | None
    state: JobState
    progress: dict[str, Any]
    result: dict[str, Any]
    attempts: int
    error: str
    hint: str
    cancel_requested: bool
    created_at: str
    updated_at: str
    not_before: str | None


class JobsShape(BaseModel):
    jobs: list[JobShape]


class HealthShape(BaseModel):
    status: Literal["ok"]
    version: str
    owner: bool | Literal["elsewhere"]
    """Whether this process owns the home, or another one does."""


class ReadyShape(BaseModel):
    ready: bool
    reasons: list[str]


class StatusShape(BaseModel, extra="allow"):
    home: str
    catalog: str
    owner: dict[str, Any] | None
    collections: list[dict[str, Any]]
    jobs: list[JobShape]
