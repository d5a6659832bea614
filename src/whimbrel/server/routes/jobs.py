"""Jobs: work that goes on by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from whimbrel.catalog.listing import job_dict
from whimbrel.domain import Job, JobState
from whimbrel.server import described, examples
from whimbrel.server.answers import Json
from whimbrel.server.openapi import events
from whimbrel.server.served import Served, served
from whimbrel.server.streams import Event, stream

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

ENDED = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)
LOOK_S = 0.1
SLOWEST_LOOK_S = 2.0

JobId = Annotated[str, Path(examples=[examples.JOB_ID])]


@router.get("", operation_id="list_jobs", response_model=described.JobsShape)
async def jobs(
    request: Request,
    active: Annotated[bool, Query(description="Only those that are not done.")] = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Newest first."""
    here = served(request)
    found = await here.call(here.whimbrel.jobs, active=active, limit=limit)
    return Json({"jobs": [job_dict(job) for job in found]})


@router.get("/{job_id}", operation_id="get_job", response_model=described.JobShape)
async def job(job_id: JobId, request: Request) -> Response:
    """Its state, progress, and result or error."""
    here = served(request)
    return Json(job_dict(await here.call(here.whimbrel.job, job_id)))


@router.get(
    "/{job_id}/events",
    operation_id="watch_job",
    response_model=None,
    responses={
        200: events(
            "`job` now and each time that it has changed, until it ends.",
            {"job": described.JobShape, "error": described.Problem},
        )
    },
)
async def watch(job_id: JobId, request: Request) -> Response:
    """Follows a job as server-sent events, each of them the whole job."""
    here = served(request)
    return await stream(_changes(here, job_id), here.whimbrel.settings.server.heartbeat_s)


@router.post("/{job_id}/cancel", operation_id="cancel_job", response_model=described.JobShape)
async def cancel(job_id: JobId, request: Request) -> Response:
    """Stops at the next step. What was done stays."""
    here = served(request)
    return Json(job_dict(await here.call(here.whimbrel.cancel, job_id)))


async def _changes(here: Served, job_id: str) -> AsyncGenerator[Event, None]:
    shown: dict[str, Any] = {}
    pause = LOOK_S
    while True:
        found = await here.call(here.whimbrel.job, job_id)
        now = job_dict(found)
        if now != shown:
            yield "job", now
            shown, pause = now, LOOK_S
        if found.state in ENDED:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, SLOWEST_LOOK_S)


def accepted(job: Job) -> Response:
    """The answer to what a job will do."""
    body: dict[str, Any] = {"job_id": job.id, "state": job.state.value, "collection": job.collection}
    return Json(body, 202, {"Location": f"/v1/jobs/{job.id}"})
