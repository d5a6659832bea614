"""Where a Milvus collection lies, read from a view's URI and the environment.

    milvus:PATH.db                                  Milvus Lite, opened by this process
    milvus+http://[TOKEN@|USER:PASSWORD@]HOST[:PORT][?database=NAME]
    milvus+https://...

What the URI does not say is taken from `MILVUS_TOKEN` (a key, or `user:password`) and `MILVUS_DATABASE`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from whimbrel.errors import ConfigError

PORTS = {"http": 19530, "https": 443}
_OPTIONS = ("database",)
_EXAMPLE = "For example: `milvus+http://localhost:19530`."


@dataclass(frozen=True, slots=True)
class Server:
    """A Milvus server and what to say to it. The token is in no repr."""

    host: str
    port: int
    secure: bool
    database: str = ""
    """Empty: the server's default."""
    token: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """`http://HOST:PORT`; no credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}"


def parse_server(uri: str, environment: Mapping[str, str] | None = None) -> Server:
    """The server that `milvus+http://...` or `milvus+https://...` names. Raises `ConfigError`."""
    known = os.environ if environment is None else environment
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        raise ConfigError("The URI of the Milvus server cannot be read.", _EXAMPLE) from None
    scheme = parts.scheme.removeprefix("milvus+")
    if scheme not in PORTS or not parts.hostname:
        raise ConfigError("The URI of the Milvus server names no host.", _EXAMPLE)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            raise ConfigError(
                f"The Milvus server's URI has an unknown option {name!r}.", f"Options: {', '.join(_OPTIONS)}."
            )
    if parts.path.strip("/"):
        raise ConfigError(
            "The URI of the Milvus server has a path.",
            "Name the database by an option: `milvus+http://localhost:19530?database=NAME`.",
        )
    return Server(
        host=parts.hostname,
        port=port or PORTS[scheme],
        secure=scheme == "https",
        database=options.get("database") or known.get("MILVUS_DATABASE") or "",
        token=_token(parts.username, parts.password) or known.get("MILVUS_TOKEN") or "",
    )


def _token(user: str | None, password: str | None) -> str:
    if user and password is not None:
        return f"{unquote(user)}:{unquote(password)}"
    return unquote(user or "")
