"""Documents in, and what has become of them."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response

from whimbrel.domain import DocumentState, Job, JobState
from whimbrel.errors import InvalidRequest, WaitTimeout
from whimbrel.server import described
from whimbrel.server.answers import Json
from whimbrel.server.forms import FilesForm
from whimbrel.server.multipart import read_upload
from whimbrel.server.openapi import bodies
from whimbrel.server.requests import DocumentsBody, FilesBody, Wait, parsed
from whimbrel.server.routes.jobs import accepted
from whimbrel.server.served import Served, served
from whimbrel.server.waiting import unless_gone
from whimbrel.service import JobFailed

router = APIRouter(prefix="/v1/documents", tags=["documents"])

WAIT_S = 60.0
"""How long an answer is held back for a job; after it, the answer is the job's id."""

CollectionName = Annotated[str, Query(max_length=200)]
DocumentName = Annotated[str, Path(description="Its id, your own id, or its URI.", examples=["note-1"])]


@router.post(
    "",
    operation_id="add_documents",
    status_code=202,
    response_model=described.AcceptedShape,
    responses={200: {"model": described.AddedShape, "description": "Waited for, and done"}},
    openapi_extra=bodies(("application/json", DocumentsBody), ("multipart/form-data", FilesBody)),
)
async def add(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(max_length=200, description="The same key again answers with the same job.", examples=["import-7"]),
    ] = None,
) -> Response:
    """Takes texts (JSON) or files (a form) in. They are safe when this answers, and found when the job is done and the
    views have followed. A file without an id is known by its name: sent again, it replaces what it was."""
    if idempotency_key is not None and not idempotency_key.strip():
        raise InvalidRequest("The Idempotency-Key is empty.", "Leave the header out, or send a key.")
    here = served(request)
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        job, wait = await _files(here, request, idempotency_key)
    else:
        job, wait = await _texts(here, request, idempotency_key)
    if wait == "none":
        return accepted(job)
    return await unless_gone(request, _finished(here, job, wait))


async def _texts(here: Served, request: Request, key: str | None) -> tuple[Job, Wait]:
    raw = await request.body()

    def start() -> tuple[Job, Wait]:  # a large body takes seconds to parse: not on the event loop
        body = parsed(raw, DocumentsBody)
        texts = [one.model_dump(exclude_none=True) for one in body.documents]
        return here.whimbrel.start_add(texts, body.collection, idempotency_key=key), body.wait

    return await here.call(start)


async def _files(here: Served, request: Request, key: str | None) -> tuple[Job, Wait]:
    limit = here.whimbrel.settings.ingest.max_file_bytes
    upload = await read_upload(request.stream(), request.headers["content-type"], here.whimbrel.home.path, limit)
    try:
        form = FilesForm.of(upload)
        start = functools.partial(here.whimbrel.start_files, idempotency_key=key, passwords=form.passwords)
        return await here.call(start, form.files, form.collection), form.wait
    finally:
        upload.close()


@router.get("", operation_id="list_documents", response_model=described.DocumentsShape)
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


@router.get("/{document:path}", operation_id="get_document", response_model=described.DocumentTextShape)
async def document(document: DocumentName, request: Request, collection: CollectionName = "default") -> Response:
    """With its text; by id, external id or URI."""
    here = served(request)
    return Json(await here.call(here.whimbrel.document, document, collection))


@router.delete(
    "/{document:path}",
    operation_id="delete_document",
    response_model=described.RemovedShape,
    responses={202: {"model": described.AcceptedShape, "description": "It is being erased"}},
)
async def delete(
    document: DocumentName,
    request: Request,
    collection: CollectionName = "default",
    purge: Annotated[bool, Query(description="Erase its text from everything, not only from what is found.")] = False,
) -> Response:
    """Not found from now on. With `purge`, the job says when nothing of it is left."""
    here = served(request)
    if purge:
        return accepted(await here.call(here.whimbrel.purge, [document], collection))
    return Json(await here.call(here.whimbrel.delete, [document], collection))


async def _finished(here: Served, job: Job, wait: Wait) -> Response:
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
    return accepted(job)
