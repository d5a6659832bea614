"""Who may call, and what.

With keys, whoever has one may do everything. Without any, this machine may, over loopback; any other address allows
only reading; and no web page of another site gets anything. A request over the home's Unix socket needs no key: only
the home's user can open that file.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from whimbrel.errors import Forbidden, Unauthorized, WhimbrelError
from whimbrel.guards.calls import caller
from whimbrel.server.answers import refusal
from whimbrel.server.hosts import OwnNames, is_loopback_name

if TYPE_CHECKING:
    from fastapi import Request
    from pydantic import SecretStr
    from starlette.types import ASGIApp, Receive, Scope, Send

    from whimbrel.server.cors import Origins

OPEN = frozenset({"/health", "/ready", "/docs", "/docs/page.js", "/docs/page.css"})
"""Routes that tell nobody anything: they need no key."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})
ASKING = frozenset({"/v1/search", "/v1/query"})
"""Routes that are posted to and change nothing; but a question of a conversation is stored."""
PRIVATE = ("/v1/conversations", "/v1/usage")
"""What people asked, and what it cost, is not for everybody who can reach this address."""

READS_ONLY = "whimbrel.reads_only"
"""In the scope of a request that may change nothing."""
CALLER = "whimbrel.caller"
"""In the scope of a request that came with a key: the key's name."""

_SET_KEYS = "Set WHIMBREL_API_KEYS=NAME:SECRET where `serve` runs, and send `Authorization: Bearer SECRET`."


class Guard:
    """Lets a request through, or answers 401 or 403."""

    def __init__(self, app: ASGIApp, keys: Mapping[str, SecretStr], own_names: OwnNames, origins: Origins) -> None:
        self.app = app
        self._keys = {name: _digest(key.get_secret_value().encode()) for name, key in keys.items()}
        self._own_names = own_names
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope.get("whimbrel.unix", False):
            headers = dict(scope["headers"])
            error = self._without_key(scope, headers) if self._keys else self._as_stranger(scope, headers)
            if error is not None:
                await refusal(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _without_key(self, scope: Scope, headers: Mapping[bytes, bytes]) -> WhimbrelError | None:
        if scope["path"] in OPEN:
            return None
        hint = "Send `Authorization: Bearer SECRET`, with the secret of one of WHIMBREL_API_KEYS."
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not given.strip():
            return Unauthorized("An API key is needed.", hint)
        digest = _digest(given.strip())
        for name, key in self._keys.items():  # every one, over digests of one length: the time tells nothing
            if hmac.compare_digest(digest, key):
                scope[CALLER] = name
                caller.set(name)
        return None if CALLER in scope else Unauthorized("This API key is not known.", hint)

    def _as_stranger(self, scope: Scope, headers: Mapping[bytes, bytes]) -> WhimbrelError | None:
        host = headers.get(b"host", b"").decode("latin-1")
        loopback = is_loopback_name((scope.get("server") or ("",))[0])
        if host and not self._own_names.has(host, loopback=loopback):
            return Forbidden(
                "Without API keys, only requests to this machine by its own name or address are answered.",
                "Use http://localhost or the address; or name the host in `server.allowed_hosts`; or set "
                "WHIMBREL_API_KEYS and send a key.",
            )
        reading = scope["method"] in READING
        if not reading and self._from_elsewhere(headers, host):
            return Forbidden(
                "A web page of another site may not call this API.",
                "Name its origin in `server.cors_origins`, or set WHIMBREL_API_KEYS and send a key.",
            )
        if loopback:
            return None
        scope[READS_ONLY] = True
        if scope["path"].startswith(PRIVATE):
            return Forbidden("Without API keys, conversations and usage are not shown beyond this machine.", _SET_KEYS)
        return None if reading or scope["path"] in ASKING else no_writing()

    def _from_elsewhere(self, headers: Mapping[bytes, bytes], host: str) -> bool:
        origin = headers.get(b"origin")
        if origin is not None and self._origins.allow(origin):
            return False
        if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
            return True
        return origin is not None and _netloc(origin.decode("latin-1")) != host.lower()


def may_write(request: Request) -> None:
    """Raises `Forbidden` where a reading route is asked to store something and this caller may not."""
    if request.scope.get(READS_ONLY, False):
        raise no_writing()


def no_writing() -> Forbidden:
    return Forbidden("Without API keys, this address allows only reading. Nothing was written.", _SET_KEYS)


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _digest(secret: bytes) -> bytes:
    return sha256(secret).digest()
