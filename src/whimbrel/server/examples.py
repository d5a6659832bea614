"""Examples of what the API answers with, for its description."""

from __future__ import annotations

CHUNK_ID = "9f2b64c0a1d84f0e8f3a5d2c7b6e1a90"
DOCUMENT_ID = "4c1d9a7be2f05836a1b2c3d4e5f60718"
TEXT = "The whimbrel flies thousands of kilometres without landing."
JOB_ID = "0123456789abcdef"
MOVE_ID = "3f9a1c07"
CONVERSATION_ID = "5e8c1f0a9b7d4e2fa3c6d8b1907f2e4d"
TURN_ID = "c0ffee1f0a9b7d4e2fa3c6d8b1907f2e"


HIT = {
    "rank": 1,
    "score": 0.83,
    "retrieval_score": None,
    "chunk_id": CHUNK_ID,
    "document_id": DOCUMENT_ID,
    "uri": "file:///notes/birds.md",
    "title": "The whimbrel",
    "text": TEXT,
    "start": 16,
    "end": 75,
    "metadata": {"kind": "bird"},
    "page": None,
}
CITATION = {
    "marker": 1,
    "chunk_id": CHUNK_ID,
    "document_id": DOCUMENT_ID,
    "uri": "file:///notes/birds.md",
    "start": 16,
    "end": 75,
    "quote": TEXT,
    "supported": "yes",
    "page": None,
}
EVIDENCE = {"marker": 1, "start": 16, "end": 75, "supported": "yes", "score": 0.97, "reason": ""}
SENTENCE = {"start": 0, "end": 59, "markers": [1], "supported": "yes", "evidence": [EVIDENCE]}
PASSAGES = {"passages": [HIT], "question": "How far does the whimbrel fly?", "position": 12, "degraded": []}
ANSWER = {
    "answer": f"{TEXT} [1]",
    "citations": [CITATION],
    "sentences": [SENTENCE],
    "abstained": False,
    "model": "extractive",
    "degraded": [],
    "usage": {"citations_removed": 0},
    "question": "How far does the whimbrel fly?",
    "conversation_id": None,
    "turn_id": None,
}
DOCUMENT = {
    "document_id": DOCUMENT_ID,
    "external_id": "note-1",
    "uri": "text:note-1",
    "title": "The whimbrel",
    "media_type": "text/markdown",
    "state": "indexed",
    "reason": "",
    "metadata": {"kind": "bird"},
    "size": 59,
    "text_length": 59,
    "chunks": 1,
    "position": 1,
}
COLLECTION = {"name": "default", "language": "auto", "analysed_as": "en", "epoch": "5f3a9c", "head": 12}
JOB = {
    "id": JOB_ID,
    "kind": "add",
    "collection": "default",
    "state": "done",
    "progress": {"documents": 1},
    "result": {"documents": 1, "added": 1, "position": 1},
    "attempts": 1,
    "error": "",
    "hint": "",
    "cancel_requested": False,
    "created_at": "2026-01-31T12:00:00+00:00",
    "updated_at": "2026-01-31T12:00:01+00:00",
    "not_before": None,
}
CONVERSATION = {
    "id": CONVERSATION_ID,
    "collection": "default",
    "title": "How far does the whimbrel fly?",
    "turns_count": 1,
    "erased": 0,
    "created_at": "2026-01-31T12:00:00+00:00",
    "updated_at": "2026-01-31T12:00:01+00:00",
}
TURN = {
    "id": TURN_ID,
    "asked": "How far does the whimbrel fly?",
    "question": "How far does the whimbrel fly?",
    "answer": f"{TEXT} [1]",
    "citations": [CITATION],
    "model": "extractive",
    "abstained": False,
    "degraded": [],
    "usage": {"citations_removed": 0},
    "rating": 1,
    "comment": "",
    "created_at": "2026-01-31T12:00:01+00:00",
}
_BUDGET = {"scope": "all", "unit": "usd", "per": "month", "period": "2026-01", "limit": 25.0, "warns": False}
GUARDS: dict[str, object] = {
    "paused": [],
    "shared": {"in": "the catalog", "out": None},
    "alerts": [],
    "budgets": [{**_BUDGET, "spent": 0.01513}],
}
USAGE = {
    "since": "2026-01-01T00:00:00+00:00",
    "by": "model",
    "rows": [
        {
            "model": "openai:gpt-5.6-luna",
            "kind": "generate",
            "calls": 12,
            "failed": 1,
            "stood_in": 0,
            "input_tokens": 24_100,
            "output_tokens": 3_050,
            "unpriced": 0,
            "usd": 0.01513,
            "mean_s": 1.9,
            "slowest_s": 4.2,
        }
    ],
    "total": {
        "calls": 12,
        "failed": 1,
        "stood_in": 0,
        "input_tokens": 24_100,
        "output_tokens": 3_050,
        "usd": 0.01513,
        "unpriced": 0,
    },
    **GUARDS,
}
MOVE = {
    "id": MOVE_ID,
    "collection": "default",
    "state": "ready",
    "paused": False,
    "busy": False,
    "request": {
        "uri": "postgresql://whimbrel@db/app",
        "embedder": "minilm",
        "chunking": "tokens=186,overlap=18",
        "rate": 0.0,
        "auto_switch": False,
    },
    "source": [],
    "target": [],
    "rows": {"done": 1200, "total": 1200},
    "rows_per_s": None,
    "seconds_left": None,
    "plan": {"rows": 1200},
    "checks": {"holds": True, "said": ""},
    "accepted": False,
    "rejects": 0,
    "position": 1200,
    "history": [{"state": "copying", "at": "2026-01-31T12:00:00.000+00:00"}],
    "error": "",
    "hint": "",
    "created_at": "2026-01-31T12:00:00.000+00:00",
    "updated_at": "2026-01-31T12:00:09.000+00:00",
}
