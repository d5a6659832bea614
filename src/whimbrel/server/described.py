"""What the API answers with, as classes that only document it, each with an example."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from whimbrel.domain import DocumentState, JobState, MoveState
from whimbrel.server import examples

Supported = Literal["yes", "partly", "no"]
Service = Literal["healthy", "degraded", "unhealthy", "unknown"]


def example(value: Any, *, extra: Literal["ignore", "allow"] = "ignore") -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]}, extra=extra)


class Problem(BaseModel):
    """RFC 9457 problem details, with what to do."""

    model_config = example(
        {
            "type": "/docs#CollectionNotFound",
            "title": "Collection not found",
            "status": 404,
            "detail": "There is no collection 'nots'. There are: notes.",
            "instance": "urn:whimbrel:request:6a1f0c9be2d4",
            "error": "CollectionNotFound",
            "message": "There is no collection 'nots'. There are: notes.",
            "hint": "`whimbrel ingest PATH -c nots` makes it, or `whimbrel collections create nots`.",
            "request_id": "6a1f0c9be2d4",
        }
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str
    """The class of the error: a stable name for programs."""
    message: str
    """As `detail`."""
    hint: str
    """What to do."""
    request_id: str


class HitShape(BaseModel):
    model_config = example(examples.HIT)

    rank: int
    score: float
    retrieval_score: float | None
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
    model_config = example({"hits": [examples.HIT], "position": 12, "degraded": [], "timings_ms": {"total": 7.1}})

    hits: list[HitShape]
    position: int
    degraded: list[str]
    timings_ms: dict[str, float]


class CitationShape(BaseModel):
    model_config = example(examples.CITATION)

    marker: int
    chunk_id: str
    document_id: str
    uri: str
    start: int
    end: int
    quote: str
    supported: Supported
    page: int | None


class EvidenceShape(BaseModel):
    model_config = example(examples.EVIDENCE)

    marker: int
    start: int
    end: int
    supported: Supported
    score: float
    reason: str


class SentenceShape(BaseModel):
    model_config = example(examples.SENTENCE)

    start: int
    end: int
    markers: list[int]
    supported: Supported
    evidence: list[EvidenceShape]


class AnswerShape(BaseModel):
    model_config = example(examples.ANSWER)

    answer: str
    citations: list[CitationShape]
    sentences: list[SentenceShape]
    abstained: bool
    model: str
    degraded: list[str]
    usage: dict[str, Any]
    question: str
    """What was searched for: the question, made to stand alone."""
    conversation_id: str | None
    turn_id: str | None
    """What feedback names; null outside of a conversation."""


class PassagesShape(BaseModel):
    """The first event of an answer: what it will be made from, numbered from 1 in this order."""

    model_config = example(examples.PASSAGES)

    passages: list[HitShape]
    question: str
    position: int
    degraded: list[str]


class TextShape(BaseModel):
    """More of an answer's text. Its markers are not checked yet."""

    model_config = example({"text": examples.TEXT})

    text: str


class ConversationShape(BaseModel):
    model_config = example(examples.CONVERSATION)

    id: str
    collection: str
    title: str
    """Its first question."""
    turns_count: int
    erased: int
    """Turns that were removed because a document that they were made from was purged."""
    created_at: str
    updated_at: str


class ConversationsShape(BaseModel):
    model_config = example({"conversations": [examples.CONVERSATION], "limit": 100, "offset": 0})

    conversations: list[ConversationShape]
    limit: int
    offset: int


class TurnShape(BaseModel):
    model_config = example(examples.TURN)

    id: str
    asked: str
    question: str
    answer: str
    citations: list[CitationShape]
    model: str
    abstained: bool
    degraded: list[str]
    usage: dict[str, Any]
    rating: int | None
    """1 or -1, where somebody said."""
    comment: str
    created_at: str


class ConversationTurnsShape(ConversationShape):
    model_config = example({**examples.CONVERSATION, "turns": [examples.TURN]})

    turns: list[TurnShape]


class AcceptedShape(BaseModel):
    model_config = example({"job_id": examples.JOB_ID, "state": "queued", "collection": "default"})

    job_id: str
    state: JobState
    collection: str | None


class AddedShape(BaseModel):
    """The counts of the job, and the position of the log at which its documents are."""

    model_config = example(
        {"job_id": examples.JOB_ID, "state": "done", "position": 1, "added": 1, "failed": 0}, extra="allow"
    )

    job_id: str
    state: JobState
    position: int


class DocumentShape(BaseModel):
    model_config = example(examples.DOCUMENT)

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
    model_config = example({**examples.DOCUMENT, "text": examples.TEXT})

    text: str


class DocumentsShape(BaseModel):
    model_config = example({"documents": [examples.DOCUMENT], "limit": 100, "offset": 0})

    documents: list[DocumentShape]
    limit: int
    offset: int


class RemovedShape(BaseModel):
    model_config = example({"removed": 1, "chunks_removed": 3, "position": 13})

    removed: int
    chunks_removed: int
    position: int


class CollectionShape(BaseModel):
    model_config = example(examples.COLLECTION)

    name: str
    language: str
    """As it was said: `auto` is found out from the documents."""
    analysed_as: str
    """The language that its words are analysed in now."""
    epoch: str
    head: int
    """The last position of its log."""


class CollectionsShape(BaseModel):
    model_config = example({"collections": [examples.COLLECTION]})

    collections: list[CollectionShape]


class JobShape(BaseModel):
    model_config = example(examples.JOB)

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
    model_config = example({"jobs": [examples.JOB]})

    jobs: list[JobShape]


class MoveShape(BaseModel):
    model_config = example(examples.MOVE)

    id: str
    collection: str
    state: MoveState
    paused: bool
    busy: bool
    """A job is at it."""
    request: dict[str, Any]
    """What was asked for."""
    source: list[dict[str, Any]]
    """The views that it comes from."""
    target: list[dict[str, Any]]
    """The views that it makes."""
    rows: dict[str, int]
    rows_per_s: float | None
    seconds_left: float | None
    plan: dict[str, Any]
    checks: dict[str, Any]
    """What the last comparison found: of every row, and of searches on both sides."""
    accepted: bool
    """A person has accepted what the checks name."""
    rejects: int
    """Rows that the target refuses."""
    position: int
    """Where the log stood when every row was verified."""
    history: list[dict[str, str]]
    error: str
    hint: str
    created_at: str
    updated_at: str


class SteeredShape(MoveShape):
    """A move of which something was asked."""

    model_config = example({**examples.MOVE, "busy": True, "job_id": examples.JOB_ID})

    job_id: str | None
    """The job that does it, whose error says why it failed; null where it is done."""


class MovesShape(BaseModel):
    model_config = example({"moves": [examples.MOVE]})

    moves: list[MoveShape]


class HealthShape(BaseModel):
    model_config = example(
        {
            "status": "healthy",
            "services": {"database": "healthy", "vector_db": "healthy", "openai_api": "unknown"},
            "reasons": [],
            "version": "0.1.0",
            "owner": True,
        }
    )

    status: Service
    """The worst of the services that are known."""
    services: dict[str, Service]
    """As they were last seen: `database` (the catalog), `vector_db` (live vector views), `PROVIDER_api` where a
    generator is configured."""
    reasons: list[str]
    version: str
    owner: bool | Literal["elsewhere"]
    """Whether this process owns the home, or another one does."""


class ReadyShape(BaseModel):
    model_config = example({"ready": True, "reasons": []})

    ready: bool
    reasons: list[str]


class UsageShape(BaseModel):
    model_config = example(examples.USAGE)

    since: str
    by: Literal["model", "key", "day"]
    rows: list[dict[str, Any]]
    """One for each model and kind of call, name of an API key, or day."""
    total: dict[str, float]
    """`unpriced`: calls whose price is not known, in `usd` with 0."""
    paused: list[dict[str, Any]]
    """Models that failed again and again, and are not asked for a while."""
    shared: dict[str, str | None]
    """`in`: where breakers and rates are shared; `out`: why each process keeps them for itself now."""
    alerts: list[dict[str, Any]]
    """Error rates and response times of this process's calls that are past `guards.alert_*` now."""
    budgets: list[dict[str, Any]]


class StatusShape(BaseModel):
    model_config = example(
        {"home": "/srv/whimbrel", "catalog": "sqlite:////srv/whimbrel/catalog.db", "owner": None}
        | {"collections": [], "jobs": [], "models": examples.GUARDS},
        extra="allow",
    )

    home: str
    catalog: str
    owner: dict[str, Any] | None
    collections: list[dict[str, Any]]
    jobs: list[JobShape]
    models: dict[str, Any]
    """Those that are not asked now (`paused`), where that is shared, `alerts` of this process, and the budgets."""
