"""Conversations: questions and answers that follow each other, and what users thought of the answers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from whimbrel.errors import TurnNotFound
from whimbrel.server import described, examples, shapes
from whimbrel.server.answers import Json
from whimbrel.server.requests import ConversationBody, FeedbackBody
from whimbrel.server.served import served

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

ConversationId = Annotated[str, Path(max_length=200, examples=[examples.CONVERSATION_ID])]
TurnId = Annotated[str, Path(max_length=200, examples=[examples.TURN_ID])]


@router.get("", operation_id="list_conversations", response_model=described.ConversationsShape)
async def conversations(
    request: Request,
    collection: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> Response:
    """The last used first; of one collection, or of all."""
    here = served(request)
    found = await here.call(here.whimbrel.conversations, collection, limit=limit, offset=offset)
    return Json({"conversations": [shapes.conversation(one) for one in found], "limit": limit, "offset": offset})


@router.post("", operation_id="start_conversation", status_code=201, response_model=described.ConversationShape)
async def start(body: ConversationBody, request: Request) -> Response:
    """An empty one. A question with `conversation_id: "new"` begins one too."""
    here = served(request)
    made = await here.call(here.whimbrel.start_conversation, body.collection)
    return Json(shapes.conversation(made), 201, {"Location": f"/v1/conversations/{made.id}"})


@router.get("/{conversation_id}", operation_id="get_conversation", response_model=described.ConversationTurnsShape)
async def conversation(conversation_id: ConversationId, request: Request) -> Response:
    """With its turns, oldest first."""
    here = served(request)
    found, turns = await here.call(here.whimbrel.conversation, conversation_id)
    return Json({**shapes.conversation(found), "turns": [shapes.turn(one) for one in turns]})


@router.delete("/{conversation_id}", operation_id="delete_conversation", status_code=204, response_class=Response)
async def delete(conversation_id: ConversationId, request: Request) -> Response:
    """With its turns and feedback, for good."""
    here = served(request)
    await here.call(here.whimbrel.delete_conversation, conversation_id)
    return Response(status_code=204)


@router.put(
    "/{conversation_id}/turns/{turn_id}/feedback",
    operation_id="give_feedback",
    status_code=204,
    response_class=Response,
)
async def feedback(conversation_id: ConversationId, turn_id: TurnId, body: FeedbackBody, request: Request) -> Response:
    """What a user thinks of an answer; given again, it replaces what was there."""
    here = served(request)
    _, turns = await here.call(here.whimbrel.conversation, conversation_id)
    if all(one.id != turn_id for one in turns):
        raise TurnNotFound("There is no such answer in this conversation.", f"{router.prefix}/ID lists those there.")
    await here.call(here.whimbrel.add_feedback, turn_id, body.rating, body.comment)
    return Response(status_code=204)
