"""Logging to stderr, as text or JSON, with the id of the request that a line belongs to.

A line of a request says method, route, status, time and the name of the key that came with it: never the query string,
a body, a key, or an id of a document.
Of an unexpected error it says the type and where, not the message, which may quote a document.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable, Collection
from contextvars import ContextVar
from typing import TYPE_CHECKING

from whimbrel.config.settings import Log
from whimbrel.errors import place

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("whimbrel.server")

QUIET = frozenset({"/health", "/ready", "/metrics"})

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that this task, or a thread it started, works for; empty outside of requests."""

_GIVEN = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def set_up_logging(settings: Log) -> None:
    """Send every logger's lines to stderr in the configured form. Replaces what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.format == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        other = logging.getLogger(name)
        other.handlers.clear()
        other.propagate = True
    for name in ("uvicorn.error", "httpx", "httpcore", "alembic"):  # their "info" is about themselves
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class RequestLog:
    """Gives each request an id, logs it when it is answered, and answers what nobody expected with a bare 500."""

    def __init__(
        self, app: ASGIApp, observe: Callable[[str, str, int, float], None], quiet: Collection[str] = QUIET
    ) -> None:
        """`observe` is called with method, route, status and seconds of each request that was answered. Those of
        `quiet` routes that went well are logged at `debug` only."""
        self.app = app
        self._observe = observe
        self._quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        identity = given.decode() if _GIVEN.fullmatch(given) else secrets.token_hex(6)
        token = request_id.set(identity)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", identity.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception as error:  # whatever it is: the caller learns its id, the log learns the place
            from starlette.requests import ClientDisconnect

            if isinstance(error, ClientDisconnect):  # nobody is there to be answered
                return
            if not isinstance(error, ConnectionError):  # a client that reads nothing is no defect
                logger.error("unexpected %s", place(error))
            if status:
                raise ConnectionAbortedError("the answer broke off") from None
            from whimbrel.server.answers import refusal
            from whimbrel.server.problems import unexpected

            await refusal(unexpected())(scope, receive, answer)
        finally:
            self._log(scope, status, time.perf_counter() - began)
            request_id.reset(token)

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        method, path = scope["method"], route(scope)
        self._observe(method, path, status, seconds)
        quiet = status < 400 and path in self._quiet
        level = logging.DEBUG if quiet else logging.INFO
        if logger.isEnabledFor(level):
            fields = {"method": method, "route": path, "status": status, "ms": round(seconds * 1000, 1)}
            if caller := scope.get("whimbrel.caller"):
                fields["caller"] = caller
            by = f" by {caller}" if caller else ""
            said = f"{method} {path} {status or '-'} {seconds * 1000:.1f} ms{by}"
            logger.log(level, said, extra={"fields": fields})


def route(scope: Scope) -> str:
    """The route's own path: the one asked for may hold ids and URIs, unless the route takes no parameters."""
    if own := getattr(scope.get("route"), "path", None):
        return str(own)
    return str(scope["path"]) if "endpoint" in scope and not scope.get("path_params") else "(no route)"


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s%(request)s: %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        identity = request_id.get()
        record.request = f" [{identity}]" if identity else ""
        return super().format(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identity := request_id.get():
            line["request_id"] = identity
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
