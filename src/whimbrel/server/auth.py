"""Who may call: a key where keys are configured; without any, only this machine, and no web page of another site.

A request over the home's Unix socket needs no key: only the home's user can open that file.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from whimbrel.errors import Forbidden, Unauthorized, WhimbrelError
from whimbrel.server.answers import refusal
from whimbrel.server.hosts import is_loopback_name

if TYPE_CHECKING:
    from pydantic import SecretStr
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = frozenset({"/health", "/ready"})
"""Routes that tell nobody anything: they need no key."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Lets a request through, or answers 401 or 403."""

    def __init__(self, app: ASGIApp, keys: Mapping[str, SecretStr]) -> None:
        self.app = app
        self._keys = [_digest(key.get_secret_value().encode()) for key in keys.values()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope.get("whimbrel.unix", False):
            error = self._refuses(scope)
            if error is not None:
                await refusal(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refuses(self, scope: Scope) -> WhimbrelError | None:
        headers = dict(scope["headers"])
        if self._keys:
            return None if scope["path"] in OPEN else self._without_key(headers.get(b"authorization", b""))
        host = headers.get(b"host", b"").decode("latin-1")
        if host and not is_loopback_name(_name(host)):
            # A page of another site whose name was pointed at 127.0.0.1 after it had been loaded.
            return Forbidden(
                "Without API keys, only requests to this machine by its own name are answered.",
                "Use http://localhost or http://127.0.0.1; or set WHIMBREL_API_KEYS and send a key.",
            )
        if scope["method"] not in READING and _from_elsewhere(headers, host):
            return Forbidden(
                "A web page of another site may not call this API.", "Set WHIMBREL_API_KEYS and send a key."
            )
        return None

    def _without_key(self, authorization: bytes) -> WhimbrelError | None:
        scheme, _, given = authorization.partition(b" ")
        hint = "Send `Authorization: Bearer SECRET`, with the secret of one of WHIMBREL_API_KEYS."
        if scheme.lower() != b"bearer" or not given.strip():
            return Unauthorized("An API key is needed.", hint)
        digest = _digest(given.strip())
        known = False
        for key in self._keys:  # every one, over digests of one length: the time tells nothing
            known |= hmac.compare_digest(digest, key)
        return None if known else Unauthorized("This API key is not known.", hint)


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _from_elsewhere(headers: Mapping[bytes, bytes], host: str) -> bool:
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return True
    origin = headers.get(b"origin")
    return origin is not None and _netloc(origin.decode("latin-1")) != host.lower()


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _digest(secret: bytes) -> bytes:
    return sha256(secret).digest()
