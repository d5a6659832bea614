"""How the API answers: JSON, and errors in one shape: `{"error", "message", "hint", "status"}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from whimbrel.errors import InvalidRequest, MalformedJSON, NotFound, Unauthorized, WhimbrelError

RETRY_AFTER_S = 2


class Json(Response):
    """JSON in UTF-8. A text that UTF-8 cannot hold (half of a surrogate pair) goes out escaped, not changed."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        try:
            return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            return json.dumps(content, separators=(",", ":")).encode()


def refusal(error: WhimbrelError) -> Response:
    headers = {}
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return Json(error.as_dict(), error.status, headers)


def unexpected(request_id: str) -> Response:
    body = {
        "error": "InternalError",
        "message": "Something went wrong that nobody expected. Nothing that was committed is lost.",
        "hint": f"The log has it under request id {request_id}.",
        "status": 500,
        "request_id": request_id,
    }
    return Json(body, 500)


async def on_whimbrel_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, WhimbrelError)
    return refusal(error)


async def on_http_error(_request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: no such route, another method, a body that it cannot read."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return refusal(NotFound("There is no such route.", "/openapi.json lists those that there are."))
    if error.status_code == HTTPStatus.BAD_REQUEST:
        return refusal(MalformedJSON("The body cannot be read as JSON in UTF-8.", "Send one JSON object."))
    phrase = HTTPStatus(error.status_code).phrase
    allowed = (error.headers or {}).get("Allow")
    body = {
        "error": phrase.title().replace(" ", ""),
        "message": f"{phrase}.",
        "hint": f"Allowed: {allowed}." if allowed else "",
        "status": error.status_code,
    }
    return Json(body, error.status_code, error.headers)


async def on_invalid(_request: Request, error: Exception) -> Response:
    """Says where and what is wrong, without repeating the value: it may be a document."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(one["type"] == "json_invalid" for one in found):
        where = found[0]["loc"][-1]
        return refusal(MalformedJSON(f"The body is no JSON: character {where} is wrong or missing.", "Send an object."))
    if any(one["loc"] == ("body",) and one["type"] in ("model_attributes_type", "missing") for one in found):
        return refusal(
            InvalidRequest(
                "The body is not a JSON object.", "Send one, with the header `Content-Type: application/json`."
            )
        )
    said = "; ".join(_described(one) for one in found[:5]) + ("; ..." if len(found) > 5 else "")
    return refusal(InvalidRequest(f"Not as documented: {said}", "/openapi.json describes every field."))


def _described(problem: Mapping[str, Any]) -> str:
    kind, *path = problem["loc"]
    where = ".".join(str(part) for part in path) if kind == "body" else f"{kind} parameter {'.'.join(map(str, path))}"
    said = str(problem["msg"])
    return f"{where}: {said}" if where else said
