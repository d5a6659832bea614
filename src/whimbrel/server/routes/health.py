"""The state of this process and of the home."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from whimbrel.server import shapes
from whimbrel.server.answers import RETRY_AFTER_S, Json
from whimbrel.server.served import served
from whimbrel.server.version import version

router = APIRouter(tags=["state"])


@router.get("/health", response_model=shapes.HealthShape)
async def health(request: Request) -> Response:
    """200 as long as the process lives, whatever else is out."""
    return Json({"status": "ok", "version": version(), "owner": served(request).owner})


@router.get("/ready", response_model=shapes.ReadyShape, responses={503: {"model": shapes.ReadyShape}})
async def ready(request: Request) -> Response:
    """200 when a search is answered at once: the catalog answers and every live view is open."""
    reasons = await served(request).not_ready()
    headers = {"Retry-After": str(RETRY_AFTER_S)} if reasons else None
    return Json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200, headers)


@router.get("/v1/status", response_model=shapes.StatusShape)
async def status(request: Request) -> Response:
    """Collections with their documents by state, views with their lag, jobs that are not done."""
    here = served(request)
    return Json(await here.call(here.whimbrel.status))


@router.get("/v1/collections", response_model=shapes.CollectionsShape)
async def collections(request: Request) -> Response:
    here = served(request)
    found = [
        {"name": one.name, "language": one.language, "epoch": one.epoch, "head": one.head}
        for one in await here.call(here.whimbrel.collections)
        if not one.deleting
    ]
    return Json({"collections": found})
