"""Jobs: work that goes on by itself."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from whimbrel.catalog.listing import job_dict
from whimbrel.server import shapes
from whimbrel.server.answers import Json
from whimbrel.server.served import served

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("", response_model=shapes.JobsShape)
async def jobs(
    request: Request,
    active: Annotated[bool, Query(description="Only those that are not done.")] = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Newest first."""
    here = served(request)
    found = await here.call(here.whimbrel.jobs, active=active, limit=limit)
    return Json({"jobs": [job_dict(job) for job in found]})


@router.get("/{job_id}", response_model=shapes.JobShape)
async def job(job_id: str, request: Request) -> Response:
    here = served(request)
    return Json(job_dict(await here.call(here.whimbrel.job, job_id)))


@router.post("/{job_id}/cancel", response_model=shapes.JobShape)
async def cancel(job_id: str, request: Request) -> Response:
    """Stops at the next step. What was done stays."""
    here = served(request)
    return Json(job_dict(await here.call(here.whimbrel.cancel, job_id)))
