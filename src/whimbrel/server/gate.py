"""What answers while the home is being opened: `/health`. Everything else waits until it is, then goes through."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from whimbrel.errors import HomeError
from whimbrel.server.problems import PROBLEM, encoded, problem
from whimbrel.server.version import version

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class Gate:
    def __init__(self) -> None:
        self._app: ASGIApp | None = None
        self._opened = asyncio.Event()

    def open(self, app: ASGIApp) -> None:
        self._app = app
        self._opened.set()

    def give_up(self) -> None:
        """The home could not be opened, or the process stops: those who wait are sent away."""
        self._opened.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            if scope["type"] == "http" and scope["path"] == "/health" and scope["method"] == "GET":
                await _answer(send, 200, {"status": "unknown", "version": version(), "owner": False, "services": {}})
                return
            await self._opened.wait()
        if self._app is None:
            error = HomeError("The home was not opened.", "The server's log says why.")
            await _answer(send, error.status, problem(error), PROBLEM)
            return
        await self._app(scope, receive, send)

    async def for_unix(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same, for requests over the home's socket."""
        scope["whimbrel.unix"] = True
        await self(scope, receive, send)


async def _answer(send: Send, status: int, content: Mapping[str, object], kind: str = "application/json") -> None:
    body = encoded(content)
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
