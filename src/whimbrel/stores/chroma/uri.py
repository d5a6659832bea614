"""Where a Chroma collection lies, read from a view's URI and the environment.

    chroma:PATH                                     a folder, opened by this process
    chroma+http://[TOKEN@|USER:PASSWORD@]HOST[:PORT][/PREFIX][?tenant=NAME&database=NAME]
    chroma+https://...

What the URI does not say is taken from `CHROMA_TENANT`, `CHROMA_DATABASE`, `CHROMA_API_KEY` (a token) and
`CHROMA_CLIENT_AUTH_CREDENTIALS` (a token, or `user:password`), which chromadb reads too.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from whimbrel.errors import ConfigError

PORTS = {"http": 8000, "https": 443}
_OPTIONS = ("tenant", "database")
_EXAMPLE = "For example: `chroma+http://localhost:8000`."


@dataclass(frozen=True, slots=True)
class Server:
    """A Chroma server and what to say to it. The credentials are in no repr."""

    url: str
    """`http://HOST:PORT`, with the prefix of a proxy if there is one; no credentials."""
    tenant: str = "default_tenant"
    database: str = "default_database"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What authenticates each request."""


def parse_server(uri: str, environment: Mapping[str, str] | None = None) -> Server:
    """The server that `chroma+http://...` or `chroma+https://...` names. Raises `ConfigError`."""
    known = os.environ if environment is None else environment
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        raise ConfigError("The URI of the Chroma server cannot be read.", _EXAMPLE) from None
    scheme = parts.scheme.removeprefix("chroma+")
    if scheme not in PORTS or not parts.hostname:
        raise ConfigError("The URI of the Chroma server names no host.", _EXAMPLE)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            raise ConfigError(
                f"The Chroma server's URI has an unknown option {name!r}.", f"Options: {', '.join(_OPTIONS)}."
            )
    return Server(
        url=f"{scheme}://{host}:{port or PORTS[scheme]}{parts.path.rstrip('/')}",
        tenant=options.get("tenant") or known.get("CHROMA_TENANT") or "default_tenant",
        database=options.get("database") or known.get("CHROMA_DATABASE") or "default_database",
        headers=_authentication(parts.username, parts.password, known),
    )


def _authentication(user: str | None, password: str | None, known: Mapping[str, str]) -> dict[str, str]:
    """A token goes by both names that Chroma's own authentication and the proxies before it read."""
    if user and password is not None:
        return _basic(f"{unquote(user)}:{unquote(password)}")
    credentials = unquote(user) if user else known.get("CHROMA_API_KEY") or known.get("CHROMA_CLIENT_AUTH_CREDENTIALS")
    if not credentials:
        return {}
    if not user and not known.get("CHROMA_API_KEY") and ":" in credentials:
        return _basic(credentials)
    return {"Authorization": f"Bearer {credentials}", "X-Chroma-Token": credentials}


def _basic(credentials: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(credentials.encode()).decode()}"}
