"""Which other sites' pages may call the API from a browser (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol).

Nothing here uses cookies, so `Access-Control-Allow-Credentials` is never sent: a page has what its key lets it have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whimbrel.config.values import listed

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = b"GET, POST, PUT, PATCH, DELETE"
HEADERS = b"Accept, Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Request-ID"
EXPOSED = b"Location, Retry-After, X-Request-ID"
REMEMBERED_S = b"600"


class Origins:
    """The origins that were configured."""

    def __init__(self, configured: str | None) -> None:
        found = listed(configured)
        self._all = "*" in found
        self._known = {origin.lower().encode() for origin in found}

    def __bool__(self) -> bool:
        return bool(self._known)

    def allow(self, origin: bytes) -> bool:
        return self._all or origin.lower() in self._known


class Cors:
    """Answers preflights of the origins that are let in, and marks what they are answered; others see no difference."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self.app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._origins:
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"")
        marks = [(b"vary", b"Origin")]
        if origin and self._origins.allow(origin):
            marks += [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED)]
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await _preflight(send, marks)
                return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *marks]}
            await send(message)

        await self.app(scope, receive, marked)


async def _preflight(send: Send, marks: list[tuple[bytes, bytes]]) -> None:
    headers = [
        *marks,
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", HEADERS),
        (b"access-control-max-age", REMEMBERED_S),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
