"""Collections: documents that are searched together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from whimbrel.catalog.collections import Collection
from whimbrel.server import described, shapes
from whimbrel.server.answers import Json
from whimbrel.server.requests import CollectionBody, RenameBody
from whimbrel.server.routes.jobs import accepted
from whimbrel.server.served import Served, served

router = APIRouter(prefix="/v1/collections", tags=["collections"])

Name = Annotated[str, Path(examples=["notes"])]


@router.get("", operation_id="list_collections", response_model=described.CollectionsShape)
async def collections(request: Request) -> Response:
    """By name."""
    here = served(request)
    found = await here.call(here.whimbrel.collections)
    return Json({"collections": await _shaped(here, found)})


@router.post("", operation_id="create_collection", status_code=201, response_model=described.CollectionShape)
async def create(body: CollectionBody, request: Request) -> Response:
    """An empty one. Taking documents in makes one too, where there is none of that name."""
    here = served(request)
    made = await here.call(here.whimbrel.create_collection, body.name, language=body.language)
    return Json((await _shaped(here, [made]))[0], 201, {"Location": f"/v1/collections/{made.name}"})


@router.get("/{name}", operation_id="get_collection", response_model=described.CollectionShape)
async def collection(name: Name, request: Request) -> Response:
    here = served(request)
    found = await here.call(here.whimbrel.collection, name)
    return Json((await _shaped(here, [found]))[0])


@router.patch("/{name}", operation_id="rename_collection", response_model=described.CollectionShape)
async def rename(name: Name, body: RenameBody, request: Request) -> Response:
    """Its documents, views and jobs stay with it."""
    here = served(request)
    found = await here.call(here.whimbrel.rename_collection, name, body.name)
    return Json((await _shaped(here, [found]))[0])


@router.delete("/{name}", operation_id="delete_collection", status_code=202, response_model=described.AcceptedShape)
async def delete(name: Name, request: Request) -> Response:
    """Not found from now on; the job says when nothing of it is left."""
    here = served(request)
    return accepted(await here.call(here.whimbrel.delete_collection, name))


async def _shaped(here: Served, found: Sequence[Collection]) -> list[dict[str, Any]]:
    languages = await here.call(here.whimbrel.languages, found)
    return [shapes.collection(one, language) for one, language in zip(found, languages, strict=True)]
