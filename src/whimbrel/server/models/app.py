"""The HTTP application of models. Bare ASGI: a request of one short text costs less than the model's own time for it
only where nothing much stands between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from whimbrel.errors import MethodNotAllowed, NotFound, WhimbrelError
from whimbrel.server.auth import Guard
from whimbrel.server.cors import Origins
from whimbrel.server.hosts import OwnNames
from whimbrel.server.limits import Bounds
from whimbrel.server.logs import RequestLog
from whimbrel.server.models import openai, tei
from whimbrel.server.models.models import Models
from whimbrel.server.models.replies import Reply, loading, openai_error, said, tei_error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from whimbrel.config import Settings

Handler = Callable[[Models, bytes, Mapping[bytes, bytes]], Awaitable[Reply]]

PATIENCE_S = 1.0
"""After so long, a request's client is watched: who has gone is not computed for."""

ROUTES: Mapping[str, Mapping[str, Handler]] = {
    "/info": {"GET": tei.info},
    "/embed": {"POST": tei.embed},
    "/rerank": {"POST": tei.rerank},
    "/": {"POST": tei.either},
    "/v1/embeddings": {"POST": openai.embeddings},
    "/v1/models": {"GET": openai.models_list},
}
STATE = ("/health", "/metrics")


def create_app(models: Models, settings: Settings) -> ASGIApp:
    """An ASGI application over `models`, which somebody else loads and closes."""
    server = settings.server
    app: ASGIApp = _App(models)
    app = Bounds(app, limits=server)
    names, origins = OwnNames(server.allowed_hosts), Origins(server.cors_origins)
    app = Guard(app, keys=settings.parsed_api_keys(), own_names=names, origins=origins)
    return RequestLog(app, observe=models.metrics.answered_request, quiet=frozenset({*ROUTES, *STATE}))


class _App:
    def __init__(self, models: Models) -> None:
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path in ROUTES or path in STATE:
            scope["endpoint"] = self  # the path is a route's own, and may stand in the log
        try:
            reply = await self._reply(scope, receive)
        except WhimbrelError as error:
            reply = openai_error(error) if path.startswith("/v1/") else tei_error(error)
        headers = [
            (b"content-type", reply.kind.encode()),
            (b"content-length", str(len(reply.body)).encode()),
            *reply.headers,
        ]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})

    async def _reply(self, scope: Scope, receive: Receive) -> Reply:
        path, method = scope["path"], scope["method"]
        headers = dict(scope["headers"])
        if path in STATE:
            if method not in ("GET", "HEAD"):
                raise MethodNotAllowed("This route does not take that method.", "Allowed: GET, HEAD.")
            return self._state(path, headers)
        handlers = ROUTES.get(path)
        if handlers is None:
            raise NotFound("There is no such route.", f"There are: {', '.join((*ROUTES, *STATE))}.")
        if method not in handlers:
            raise MethodNotAllowed("This route does not take that method.", f"Allowed: {', '.join(handlers)}.")
        body = await _body(receive)
        if not self._models.ready:
            raise loading()
        return await _unless_gone(handlers[method](self._models, body, headers), receive)

    def _state(self, path: str, headers: Mapping[bytes, bytes]) -> Reply:
        if path == "/metrics":
            text, kind = self._models.metrics.text(headers.get(b"accept", b"").decode("latin-1"))
            return Reply(text, kind=kind)
        if not self._models.ready:
            raise loading()
        return said({"status": "healthy"}, HTTPStatus.OK)


async def _body(receive: Receive) -> bytes:
    from starlette.requests import ClientDisconnect

    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _unless_gone(work: Awaitable[Reply], receive: Receive) -> Reply:
    """The reply; but a client that has gone takes its texts out of the queue."""
    assert isinstance(work, Coroutine)
    task: asyncio.Task[Reply] = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
        if not done:
            await _watch(task, receive)
        return await task
    finally:
        task.cancel()


async def _watch(task: asyncio.Task[Reply], receive: Receive) -> None:
    from starlette.requests import ClientDisconnect

    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
    finally:
        gone.cancel()
