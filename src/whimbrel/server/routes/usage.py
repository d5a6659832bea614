"""What models took, and what may still be spent."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from whimbrel.server import described
from whimbrel.server.answers import Json
from whimbrel.server.served import served

router = APIRouter(tags=["state"])


@router.get("/v1/usage", operation_id="usage", response_model=described.UsageShape)
async def usage(
    request: Request,
    since: Annotated[
        str | None,
        Query(
            description="`24h`, `7d`, or a date or time in ISO 8601 (UTC). Without it, since the first of the month."
        ),
    ] = None,
    by: Annotated[Literal["model", "key", "day"], Query()] = "model",
) -> Response:
    """Calls of models beyond this machine, with their tokens and price; the budgets; the models that are not asked now
    because they failed. What other processes did is there after about a second."""
    here = served(request)
    return Json(await here.call(here.whimbrel.usage, since, by))
