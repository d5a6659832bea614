"""The state of this process and of the home."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from whimbrel.server import described
from whimbrel.server.answers import RETRY_AFTER_S, Json
from whimbrel.server.health import worst
from whimbrel.server.served import served
from whimbrel.server.version import version

router = APIRouter(tags=["state"])


@router.head("/health", include_in_schema=False)
@router.get("/health", operation_id="health", response_model=described.HealthShape)
async def health(request: Request) -> Response:
    """200 as long as the process lives, whatever else is out: the body says what was last seen of it."""
    here = served(request)
    services, reasons = await here.health.services()
    body = {"status": worst(services.values()), "services": services, "reasons": reasons}
    return Json({**body, "version": version(), "owner": here.owner})


@router.head("/ready", include_in_schema=False)
@router.get(
    "/ready",
    operation_id="ready",
    response_model=described.ReadyShape,
    responses={503: {"model": described.ReadyShape, "description": "A search would have to wait, or be refused"}},
)
async def ready(request: Request) -> Response:
    """200 when a search is answered at once: the catalog answers and every live view is open."""
    reasons = await served(request).not_ready()
    headers = {"Retry-After": str(RETRY_AFTER_S)} if reasons else None
    return Json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200, headers)


@router.get("/v1/status", operation_id="status", response_model=described.StatusShape)
async def status(request: Request) -> Response:
    """Collections with their documents by state, views with their lag, jobs that are not done."""
    here = served(request)
    return Json(await here.call(here.whimbrel.status))


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Metrics, in the text format of Prometheus or in OpenMetrics, by `Accept`.",
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": 'whimbrel_jobs{state="done"} 3.0\n'},
                "application/openmetrics-text": {"schema": {"type": "string"}},
            },
        }
    },
)
async def metrics(request: Request) -> Response:
    """For a Prometheus scraper. What is counted in the catalog is up to 15 seconds old."""
    text, kind = await served(request).scraped(request.headers.get("accept", ""))
    return Response(text, media_type=None, headers={"Content-Type": kind})
