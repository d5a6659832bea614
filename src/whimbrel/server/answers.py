"""How the API answers: JSON; and what is refused, whoever refuses it, as problem details."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from whimbrel.errors import InvalidRequest, MalformedJSON, MethodNotAllowed, NotFound, Unauthorized, WhimbrelError
from whimbrel.server.problems import PROBLEM, encoded, problem

RETRY_AFTER_S = 2

_NO_OBJECT = ("model_attributes_type", "model_type", "missing")
"""What pydantic calls it when a body is something else, or nothing."""


class Json(Response):
    """JSON in UTF-8. A text that UTF-8 cannot hold (half of a surrogate pair) goes out escaped, not changed."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encoded(content)


class Problem(Json):
    media_type = PROBLEM


def refusal(error: WhimbrelError) -> Response:
    headers = {}
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        asked = getattr(error, "retry_after_s", None)  # of a model's provider, or its breaker
        headers["Retry-After"] = str(math.ceil(asked) if asked else RETRY_AFTER_S)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return Problem(problem(error), error.status, headers)


async def on_whimbrel_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, WhimbrelError)
    return refusal(error)


async def on_http_error(_request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: no such route, another method, a body that it cannot read."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return refusal(NotFound("There is no such route.", "/openapi.json lists those that there are."))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        answer = refusal(MethodNotAllowed("This route does not take that method.", f"Allowed: {allowed}."))
        answer.headers["Allow"] = allowed
        return answer
    return refusal(MalformedJSON("The body cannot be read as JSON in UTF-8.", "Send one JSON object."))


async def on_invalid(_request: Request, error: Exception) -> Response:
    """Says where and what is wrong, without repeating the value: it may be a document."""
    assert isinstance(error, RequestValidationError)
    return refusal(invalid(error.errors()))


def invalid(found: Sequence[Mapping[str, Any]]) -> WhimbrelError:
    """The error for what pydantic found wrong."""
    if any(one["type"] == "json_invalid" for one in found):
        where = found[0]["loc"][-1]
        return MalformedJSON(f"The body is no JSON: character {where} is wrong or missing.", "Send an object.")
    if any(one["loc"] == ("body",) and one["type"] in _NO_OBJECT for one in found):
        return InvalidRequest(
            "The body is not a JSON object.", "Send one, with the header `Content-Type: application/json`."
        )
    said = "; ".join(_described(one) for one in found[:5]) + ("; ..." if len(found) > 5 else "")
    return InvalidRequest(f"Not as documented: {said}", "/openapi.json describes every field.")


def _described(found: Mapping[str, Any]) -> str:
    kind, *path = found["loc"]
    where = ".".join(str(part) for part in path) if kind == "body" else f"{kind} parameter {'.'.join(map(str, path))}"
    said = str(found["msg"])
    return f"{where}: {said}" if where else said
