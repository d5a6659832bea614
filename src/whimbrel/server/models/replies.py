"""What the routes answer, and how an error looks to the clients of each protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import to_json

from whimbrel.errors import ModelBusy, ModelError, TextRefused, UserError, WhimbrelError
from whimbrel.models.embedders.wires import float32_of

JSON = "application/json"
RETRY_AFTER_S = 2

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reply:
    body: bytes
    status: int = 200
    kind: str = JSON
    headers: Sequence[tuple[bytes, bytes]] = field(default_factory=list)


def said(content: Any, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> Reply:
    """JSON; a float32 is written with as many digits as bring it back bit for bit."""
    return Reply(to_json(content), status, headers=headers)


def packed(vectors: Vectors, space: str) -> Reply:
    """For our own client: float32, little-endian, one vector after the other, and the key of their space."""
    return Reply(np.ascontiguousarray(vectors, "<f4").tobytes(), kind=float32_of(space))


def status_of(error: WhimbrelError) -> int:
    """TEI's status of an error: 413 for a text that is not read, 429 for a full queue."""
    if isinstance(error, ModelBusy):
        return 429
    return 413 if isinstance(error, TextRefused) else error.status


def tei_error(error: WhimbrelError) -> Reply:
    """`{"error", "error_type"}`."""
    if isinstance(error, ModelBusy):
        kind = "Overloaded"
    elif isinstance(error, UserError | TextRefused):
        kind = "Validation"
    else:
        kind = "Unhealthy" if error.status == 503 else "Backend"
    return _error(error, {"error": f"{error.message} {error.hint}".strip(), "error_type": kind, "code": error.code})


def openai_error(error: WhimbrelError) -> Reply:
    """`{"error": {"message", "type", "param", "code"}}`."""
    if isinstance(error, ModelBusy):
        kind = "rate_limit_error"
    elif isinstance(error, UserError | TextRefused):
        kind = "invalid_request_error"
    else:
        kind = "server_error"
    message = f"{error.message} {error.hint}".strip()
    body = {"error": {"message": message, "type": kind, "param": None, "code": error.code}}
    return _error(error, body, 400 if isinstance(error, TextRefused) else None)


def _error(error: WhimbrelError, body: Mapping[str, Any], status: int | None = None) -> Reply:
    status = status or status_of(error)
    headers = []
    if status in (429, 503):
        asked = getattr(error, "retry_after_s", None)
        wait = math.ceil(asked) if asked is not None else RETRY_AFTER_S
        headers.append((b"retry-after", str(wait).encode()))
    return said(body, status, headers)


def loading() -> ModelError:
    return ModelError("The model is being loaded.", "Wait as long as Retry-After says.")
