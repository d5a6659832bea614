"""Bounds on what is read of a request."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from whimbrel.config.values import format_size
from whimbrel.errors import InvalidRequest, TooLarge
from whimbrel.server.answers import refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_BYTES = 4 << 20
LINGER_S = 2.0
"""A client that is cut off while it sends never reads why. So much more is read, and dropped, after the refusal."""


class BodyLimit:
    """Refuses a larger body: by its Content-Length before any of it is read, else where it passes the limit."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if b"%00" in scope["query_string"] or "\0" in scope["path"]:
            await refusal(InvalidRequest("The address holds a zero byte.", "Leave it out."))(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self.limit:
                await self._refuse(scope, receive, send)
                return
        seen = 0
        started = False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise _Passed
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except _Passed:
            if started:
                raise
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = TooLarge(
            f"The body is larger than {format_size(self.limit)}. Nothing was written.",
            "Send fewer documents at once, or raise `server.max_body_bytes`.",
        )
        response = refusal(error)
        response.headers["Connection"] = "close"
        start = {"type": "http.response.start", "status": error.status, "headers": response.raw_headers}
        await send(start)
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                left = LINGER_BYTES
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
        await send({"type": "http.response.body", "body": b""})


class _Passed(BaseException):
    """Not an Exception: the framework turns those that come out of reading a body into an answer of its own."""
