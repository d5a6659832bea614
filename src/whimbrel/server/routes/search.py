"""Searching and asking."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from whimbrel.server import shapes
from whimbrel.server.answers import Json
from whimbrel.server.requests import QueryBody, SearchBody, Searching
from whimbrel.server.served import served

router = APIRouter(prefix="/v1", tags=["search"])


@router.post("/search", response_model=shapes.SearchShape)
async def search(body: SearchBody, request: Request) -> Response:
    """Passages, best first. `degraded` says what was out or behind."""
    found = await served(request).whimbrel.asearch(
        body.query, body.collection, min_position=body.min_position, **_options(body)
    )
    return Json(shapes.search_result(found))


@router.post("/query", response_model=shapes.AnswerShape)
async def query(body: QueryBody, request: Request) -> Response:
    """An answer with citations. Each quote is the document's text at its offsets."""
    found = await served(request).whimbrel.aask(body.query, body.collection, **_options(body))
    return Json(shapes.answer(found))


def _options(body: Searching) -> dict[str, Any]:
    options: dict[str, Any] = {"mode": body.mode, "filter": body.filter, "threshold": body.threshold}
    if body.top_k is not None:
        options["top_k"] = body.top_k
    return options
