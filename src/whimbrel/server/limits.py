"""Bounds on one request: how large it is, and how long each of its phases may take."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from whimbrel.config.values import format_size
from whimbrel.errors import InvalidRequest, SlowAnswer, SlowRequest, TooLarge, WhimbrelError
from whimbrel.server.answers import refusal
from whimbrel.server.problems import headers_too_large

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from whimbrel.config.settings import Server

LINGER_BYTES = 4 << 20
LINGER_S = 2.0
"""A client that is cut off while it sends never reads why. So much more is read, and dropped, after the refusal."""

BODY_RATE = 16 << 10
"""Bytes a second that a body must come at, after its grace."""
SEND_S = 60.0
"""How long a client may read nothing of an answer before it is given up."""


class Bounds:
    """Refuses what is too large: a body by its Content-Length before any of it is read, else where it passes the limit.
    Gives up what is too slow: a body that drips, an answer that does not begin, a client that does not read.
    """

    def __init__(self, app: ASGIApp, limits: Server) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self._body_limit(scope)
        error = self._refused_unread(scope, limit)
        if error is None:
            error = await _Exchange(scope, receive, send, self.limits, limit).run(self.app)
        if error is not None:
            await _refuse(error, receive, send)

    def _body_limit(self, scope: Scope) -> int:
        kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        upload = kind.lower().startswith(b"multipart/")
        return self.limits.max_upload_bytes if upload else self.limits.max_body_bytes

    def _refused_unread(self, scope: Scope, limit: int) -> WhimbrelError | None:
        if b"%00" in scope["query_string"] or "\0" in scope["path"]:
            return InvalidRequest("The address holds a zero byte.", "Leave it out.")
        head = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        for name, value in scope["headers"]:
            head += len(name) + len(value)
            if name == b"content-length" and value.isdigit() and int(value) > limit:
                return too_large(limit)
        return headers_too_large(self.limits.max_header_bytes) if head > self.limits.max_header_bytes else None


class _Exchange:
    """One request and its answer, with a deadline for what they are waiting for."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Server, limit: int) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._limits = limits
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._deadline = asyncio.timeout_at(self._began + limits.body_timeout_s)
        self._seen = 0
        self._read = False
        self._started = False

    async def run(self, app: ASGIApp) -> WhimbrelError | None:
        """The error to answer with, if there is one."""
        try:
            async with self._deadline:
                await app(self._scope, self.receive, self.send)
        except _Passed:
            if self._started:
                raise
            return too_large(self._limit)
        except TimeoutError:
            if not self._deadline.expired():
                raise
            if self._started:
                raise ConnectionAbortedError("the client reads nothing") from None
            return self._too_slow()
        return None

    async def receive(self) -> Message:
        message = await self._receive()
        if not self._read:
            self._seen += len(message.get("body", b""))
            if self._seen > self._limit:
                raise _Passed
            self._read = not message.get("more_body", False)
            if not self._started:
                self._expect()
        return message

    async def send(self, message: Message) -> None:
        self._started = True
        self._deadline.reschedule(self._loop.time() + SEND_S)
        await self._send(message)
        self._deadline.reschedule(None)

    def _expect(self) -> None:
        """More of the body, at its rate; when it is complete, the answer."""
        if self._read:
            self._deadline.reschedule(self._loop.time() + self._limits.request_timeout_s)
        else:
            self._deadline.reschedule(self._began + self._limits.body_timeout_s + self._seen / BODY_RATE)

    def _too_slow(self) -> WhimbrelError:
        if self._read:
            return SlowAnswer(
                f"The answer has not begun in {self._limits.request_timeout_s:g} s. What was committed stays.",
                "Ask for less, or raise `server.request_timeout_s`.",
            )
        return SlowRequest(
            "The body came too slowly. Nothing was written.", "Send it again, or raise `server.body_timeout_s`."
        )


def too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The body is larger than {format_size(limit)}. Nothing was written.",
        "Send less at once, or raise `server.max_body_bytes`, for files `server.max_upload_bytes`.",
    )


async def _refuse(error: WhimbrelError, receive: Receive, send: Send) -> None:
    """Answer, read some of what is still being sent, and close."""
    response = refusal(error)
    response.headers["Connection"] = "close"
    await send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
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
