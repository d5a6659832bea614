"""Searching and asking."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from whimbrel.domain import Answer
from whimbrel.server import described, shapes
from whimbrel.server.answers import Json
from whimbrel.server.auth import may_write
from whimbrel.server.openapi import events
from whimbrel.server.requests import QueryBody, SearchBody, Searching
from whimbrel.server.served import Served, served
from whimbrel.server.streams import Event, stream, wants_events
from whimbrel.server.waiting import unless_gone

router = APIRouter(prefix="/v1", tags=["search"])


@router.post("/search", operation_id="search", response_model=described.SearchShape)
async def search(body: SearchBody, request: Request) -> Response:
    """Passages, best first. `degraded` says what was out or behind."""
    here = served(request)
    found = await here.whimbrel.asearch(body.query, body.collection, min_position=body.min_position, **_options(body))
    here.metrics.searched(found, body.mode)
    return Json(shapes.search_result(found))


@router.post(
    "/query",
    operation_id="query",
    response_model=described.AnswerShape,
    responses={
        200: events(
            "The checked answer; or, as a stream: `passages` at once, `text` as it is written, then `answer`, which "
            "counts, or `error`.",
            {
                "passages": described.PassagesShape,
                "text": described.TextShape,
                "answer": described.AnswerShape,
                "error": described.Problem,
            },
        )
    },
)
async def query(body: QueryBody, request: Request) -> Response:
    """An answer with citations. Each quote is the document's text at its offsets."""
    here = served(request)
    options = _options(body)
    options["fresh"] = body.fresh
    if body.conversation_id is not None:
        may_write(request)
        options["conversation_id"] = body.conversation_id
    streamed = wants_events(request) if body.stream is None else body.stream
    if streamed:
        return await stream(_answering(here, body, options), here.whimbrel.settings.server.heartbeat_s)
    found = await unless_gone(request, here.whimbrel.aask(body.query, body.collection, **options))
    here.answered(found)
    return Json(shapes.answer(found))


async def _answering(here: Served, body: QueryBody, options: dict[str, Any]) -> AsyncGenerator[Event, None]:
    async with aclosing(here.whimbrel.aask_stream(body.query, body.collection, **options)) as coming:
        async for one in coming:
            if isinstance(one, Answer):
                here.answered(one)
            yield shapes.event(one)


def _options(body: Searching) -> dict[str, Any]:
    options: dict[str, Any] = {"mode": body.mode, "filter": body.filter, "threshold": body.threshold}
    for name in ("top_k", "queries"):
        if (value := getattr(body, name)) is not None:
            options[name] = value
    return options
