"""Documents in, and what has become of them."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from whimbrel.domain import DocumentState, Job, JobState
from whimbrel.errors import InvalidRequest, WaitTimeout
from whimbrel.server import shapes
from whimbrel.server.answers import Json
from whimbrel.server.requests import DocumentsBody
from whimbrel.server.served import Served, served
from whimbrel.service import JobFailed

router = APIRouter(prefix="/v1/documents", tags=["documents"])

WAIT_S = 60.0
"""How long an answer is held back for a job; after it, the answer is the job's id."""

CollectionName = Annotated[str, Query(max_length=200)]


@router.post(
    "",
    status_code=202,
    response_model=shapes.AcceptedShape,
    responses={200: {"model": shapes.AddedShape, "description": "Waited for, and done"}},
)
async def add(
    body: DocumentsBody,
    request: Request,
    idempotency_key: Annotated[
        str | None, Header(max_length=200, description="The same key again answers with the same job.")
    ] = None,
) -> Response:
    """Takes texts in. They are safe when this answers, and found when the job is done and the views have followed."""
    if idempotency_key is not None and not idempotency_key.strip():
        raise InvalidRequest("The Idempotency-Key is empty.", "Leave the header out, or send a key.")
    here = served(request)
    texts = [one.model_dump(exclude_none=True) for one in body.documents]
    job = await here.call(here.whimbrel.start_add, texts, body.collection, idempotency_key=idempotency_key)
    if body.wait == "none":
        return _accepted(job)
    return await _finished(here, job, body.wait)


@router.get("", response_model=shapes.DocumentsShape)
async def documents(
    request: Request,
    collection: CollectionName = "default",
    state: DocumentState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> Response:
    """By URI. Without a state, all that are not gone."""
    here = served(request)
    found = await here.call(here.whimbrel.documents, collection, state=state, limit=limit, offset=offset)
    return Json({"documents": found, "limit": limit, "offset": offset})


@router.get("/{document:path}", response_model=shapes.DocumentTextShape)
async def document(document: str, request: Request, collection: CollectionName = "default") -> Response:
    """With its text; by id, external id or URI."""
    here = served(request)
    return Json(await here.call(here.whimbrel.document, document, collection))


@router.delete(
    "/{document:path}",
    response_model=shapes.RemovedShape,
    responses={202: {"model": shapes.AcceptedShape, "description": "It is being erased"}},
)
async def delete(
    document: str,
    request: Request,
    collection: CollectionName = "default",
    purge: Annotated[bool, Query(description="Erase its text from everything, not only from what is found.")] = False,
) -> Response:
    """Not found from now on. With `purge`, the job says when nothing of it is left."""
    here = served(request)
    if purge:
        return _accepted(await here.call(here.whimbrel.purge, [document], collection))
    return Json(await here.call(here.whimbrel.delete, [document], collection))


def _accepted(job: Job) -> Response:
    body: dict[str, Any] = {"job_id": job.id, "state": job.state.value, "collection": job.collection}
    return Json(body, 202, {"Location": f"/v1/jobs/{job.id}"})


async def _finished(here: Served, job: Job, wait: str) -> Response:
    """The job's result when it is done and, if asked to, the views have followed; else 202. No thread is held."""
    deadline = time.monotonic() + WAIT_S
    pause = 0.01
    while time.monotonic() < deadline:
        job = await here.call(here.whimbrel.job, job.id)
        if job.state is JobState.FAILED:
            raise JobFailed.of(job)
        if job.state in (JobState.DONE, JobState.CANCELLED):
            try:
                result = await here.call(here.whimbrel.finish, job, wait=wait, timeout_s=0.0)
            except WaitTimeout:  # a view has not got there yet
                pass
            else:
                return Json({**result, "state": job.state.value})
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.2)
    return _accepted(job)
