"""Moves: a collection on its way to another store, embedder or chunking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from whimbrel.domain import Job, MoveState
from whimbrel.errors import Forbidden
from whimbrel.server import described, examples
from whimbrel.server.answers import Json
from whimbrel.server.openapi import events
from whimbrel.server.requests import MoveBody
from whimbrel.server.served import Served, served
from whimbrel.server.streams import Event, stream, wants_events
from whimbrel.stores.resolve import same_place

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel
    from whimbrel.catalog.moves import Move

router = APIRouter(prefix="/v1/moves", tags=["moves"])

LOOK_S = 0.25

MoveId = Annotated[str, Path(max_length=64, examples=[examples.MOVE_ID])]


class Step(StrEnum):
    """What can be done to a move."""

    PAUSE = "pause"
    RESUME = "resume"
    VERIFY = "verify"
    ACCEPT = "accept"
    SWITCH = "switch"
    ROLLBACK = "rollback"
    FINALISE = "finalise"
    ABORT = "abort"


@router.get("", operation_id="list_moves", response_model=described.MovesShape)
async def moves(
    request: Request,
    active: Annotated[bool, Query(description="Only those that have not ended.")] = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Newest first."""
    here = served(request)
    found = await here.call(here.whimbrel.moves, under_way=active, limit=limit)
    return Json({"moves": [await here.call(here.whimbrel.move_dict, move) for move in found]})


@router.post("", operation_id="start_move", status_code=202, response_model=described.SteeredShape)
async def start(body: MoveBody, request: Request) -> Response:
    """Builds and verifies another view beside the live one, which goes on answering. Nothing is switched yet, unless
    `auto_switch` says so. The target is a store that the server's configuration names."""
    here = served(request)
    settings = here.whimbrel.settings
    if body.to is not None and not any(same_place(body.to, one) for one in settings.configured_stores()):
        raise Forbidden(
            "Over the API, a collection moves only to a store that the configuration names. Nothing was begun.",
            "Name it in `stores.others` (WHIMBREL_STORES_OTHERS) of the server, or use `whimbrel move start` there.",
        )
    move, job = await here.call(
        here.whimbrel.start_move,
        body.collection,
        to=body.to,
        embedder=body.embedder,
        chunking=body.chunking,
        rate=body.rate,
        auto_switch=body.auto_switch,
    )
    shown = await here.call(here.whimbrel.move_dict, move)
    return Json({**shown, "job_id": job.id}, 202, {"Location": f"{router.prefix}/{move.id}"})


@router.get(
    "/{move_id}",
    operation_id="get_move",
    response_model=described.MoveShape,
    responses={
        200: events(
            "Where it stands. With `Accept: text/event-stream`: `move` now and each time that it has changed, until it "
            "ends or waits for a person.",
            {"move": described.MoveShape, "error": described.Problem},
        )
    },
)
async def move(move_id: MoveId, request: Request) -> Response:
    """Where it stands, what was checked, what it waits for."""
    here = served(request)
    if wants_events(request):
        return await stream(_changes(here, move_id), here.whimbrel.settings.server.heartbeat_s)
    return Json(await _shown(here, move_id))


@router.post("/{move_id}/{step}", operation_id="steer_move", status_code=202, response_model=described.SteeredShape)
async def steer(move_id: MoveId, step: Step, request: Request) -> Response:
    """`verify`, `switch`, `rollback` and `resume` are done by the owner: follow the move, and look at the job that is
    named, which says why it failed. The others are done at once. 409 where the move's state does not allow it."""
    here = served(request)
    found = await here.call(here.whimbrel.move_by_id, move_id)
    job = await here.call(_steer, here.whimbrel, step, found)
    return Json({**await _shown(here, move_id), "job_id": job.id if job is not None else None}, 202)


def _steer(whimbrel: Whimbrel, step: Step, move: Move) -> Job | None:
    """The job that does it; None where it is done."""
    match step:
        case Step.VERIFY:
            return whimbrel.verify_move(move)
        case Step.SWITCH:
            return whimbrel.switch_move(move)
        case Step.ROLLBACK:
            return whimbrel.rollback_move(move)
        case Step.RESUME:
            _, job = whimbrel.resume_move(move)
            return job
        case Step.PAUSE:
            whimbrel.pause_move(move)
        case Step.ACCEPT:
            whimbrel.accept_move(move)
        case Step.FINALISE:
            whimbrel.finalise_move(move)
        case Step.ABORT:
            whimbrel.abort_move(move)
    return None


async def _shown(here: Served, move_id: str) -> dict[str, Any]:
    found = await here.call(here.whimbrel.move_by_id, move_id)
    return await here.call(here.whimbrel.move_dict, found)


_WAITS = (MoveState.READY, MoveState.FAILED, MoveState.SWITCHED, MoveState.ROLLED_BACK)


async def _changes(here: Served, move_id: str) -> AsyncGenerator[Event, None]:
    shown: dict[str, Any] = {}
    while True:
        now = await _shown(here, move_id)
        if now != shown:
            yield "move", now
            shown = now
        state = MoveState(now["state"])
        if state.ended or (state in _WAITS and not now["busy"]):
            return
        await asyncio.sleep(LOOK_S)
