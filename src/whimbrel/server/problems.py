"""Errors as problem details (RFC 9457), in one shape for every path. Light: the socket's side uses it before FastAPI is
imported.

Beside the standard's `type`, `title`, `status`, `detail` and `instance` a problem has `error` (the class), `message`
(as `detail`), `hint` (the way out) and `request_id`.
"""

from __future__ import annotations

import json
import re
import secrets
from functools import cache
from typing import Any

from whimbrel.config.values import format_size
from whimbrel.errors import HeadersTooLarge, InternalError, WhimbrelError
from whimbrel.server.logs import request_id

PROBLEM = "application/problem+json"


def encoded(content: Any) -> bytes:
    """JSON on one line."""
    try:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(content, separators=(",", ":")).encode()


def problem(error: WhimbrelError) -> dict[str, Any]:
    """An error as problem details. Its `type` leads to the class's description in the page of the API."""
    identity = request_id.get() or secrets.token_hex(6)
    return {
        "type": f"/docs#{error.code}",
        "title": title(error.code),
        "status": error.status,
        "detail": error.message,
        "instance": f"urn:whimbrel:request:{identity}",
        "error": error.code,
        "message": error.message,
        "hint": error.hint,
        "request_id": identity,
    }


@cache
def title(code: str) -> str:
    """`CollectionNotFound` in words."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*", code)
    return " ".join([words[0], *(word if word.isupper() else word.lower() for word in words[1:])])


def unexpected() -> InternalError:
    return InternalError(
        "Something went wrong that nobody expected. Nothing that was committed is lost.",
        f"The log has it under request id {request_id.get()}.",
    )


def headers_too_large(limit: int) -> HeadersTooLarge:
    return HeadersTooLarge(
        f"The address and headers are larger than {format_size(limit)}. Nothing was done.",
        "Send long values in the body, or raise `server.max_header_bytes`.",
    )
