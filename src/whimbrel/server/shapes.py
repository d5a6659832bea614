"""What the API answers with, as JSON. `whimbrel.server.described` has the same for people."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from whimbrel.catalog.collections import Collection
from whimbrel.catalog.conversations import Conversation, Turn
from whimbrel.domain import Answer, AnswerEvent, CheckedSentence, Citation, Hit, Passages, SearchResult, TextDelta


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
        "retrieval_score": found.retrieval_score,
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


def answer(found: Answer) -> dict[str, Any]:
    return {
        "answer": found.answer,
        "citations": [citation(one) for one in found.citations],
        "sentences": [sentence(one) for one in found.sentences],
        "abstained": found.abstained,
        "model": found.model,
        "degraded": list(found.degraded),
        "usage": dict(found.usage),
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
        "evidence": [asdict(one) for one in found.evidence],
    }


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


def conversation(found: Conversation) -> dict[str, Any]:
    return {
        "id": found.id,
        "collection": found.collection,
        "title": found.title,
        "turns_count": found.turns,
        "erased": found.erased,
        "created_at": _time(found.created_at),
        "updated_at": _time(found.updated_at),
    }


def turn(found: Turn) -> dict[str, Any]:
    return {
        "id": found.id,
        "asked": found.asked,
        "question": found.question,
        "answer": found.answer,
        "citations": [dict(one) for one in found.citations],
        "model": found.model,
        "abstained": found.abstained,
        "degraded": list(found.degraded),
        "usage": dict(found.usage),
        "rating": found.rating,
        "comment": found.comment,
        "created_at": _time(found.created_at),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def collection(found: Collection, analysed_as: str) -> dict[str, Any]:
    return {
        "name": found.name,
        "language": found.language,
        "analysed_as": analysed_as,
        "epoch": found.epoch,
        "head": found.head,
    }
