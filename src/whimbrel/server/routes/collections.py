"""Collections: documents that are searched together."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from whimbrel.server import described, shapes
from whimbrel.server.answers import Json
from whimbrel.server.requests import CollectionBody, RenameBody
from whimbrel.server.routes.jobs import accepted
from whimbrel.server.served import served

router = APIRouter(prefix="/v1/collections", tags=["collections"])

Name = Annotated[str, Path(examples=["notes"])]


@router.get("", operation_id="list_collections", response_model=described.CollectionsShape)
async def collections(request: Request) -> Response:
    """By name."""
    here = served(request)
    return Json({"collections": [shapes.collection(one) for one in await here.call(here.whimbrel.collections)]})


@router.post("", operation_id="create_collection", status_code=201, response_model=described.CollectionShape)
async def create(body: CollectionBody, request: Request) -> Response:
    """An empty one. Taking documents in makes one too, where there is none of that name."""
    here = served(request)
    made = await here.call(here.whimbrel.create_collection, body.name, language=body.language)
    return Json(shapes.collection(made), 201, {"Location": f"/v1/collections/{made.name}"})


@router.get("/{name}", operation_id="get_collection", response_model=described.CollectionShape)
async def collection(name: Name, request: Request) -> Response:
    here = served(request)
    return Json(shapes.collection(await here.call(here.whimbrel.collection, name)))


@router.patch("/{name}", operation_id="rename_collection", response_model=described.CollectionShape)
async def rename(name: Name, body: RenameBody, request: Request) -> Response:
    """Its documents, views and jobs stay with it."""
    here = served(request)
    return Json(shapes.collection(await here.call(here.whimbrel.rename_collection, name, body.name)))


@router.delete("/{name}", operation_id="delete_collection", status_code=202, response_model=described.AcceptedShape)
async def delete(name: Name, request: Request) -> Response:
    """Not found from now on; the job says when nothing of it is left."""
    here = served(request)
    return accepted(await here.call(here.whimbrel.delete_collection, name))
