"""Where a Qdrant lies, read from a view's URI and the environment.

    qdrant:PATH                                     a folder of Qdrant's local mode, opened by this process
    qdrant+http://[KEY@]HOST[:PORT][/PREFIX][?grpc=1&grpc_port=PORT]
    qdrant+https://...

A key that the URI does not say is taken from `QDRANT_API_KEY`. With `grpc=1`, or a `grpc_port`, rows and searches go
over gRPC (6334), everything else over HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from whimbrel.errors import ConfigError

PORT, GRPC_PORT = 6333, 6334
_OPTIONS = ("grpc", "grpc_port")
_EXAMPLE = "For example: `qdrant+http://localhost:6333`, or `qdrant+https://KEY@HOST:6333` of a cloud."
_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Server:
    """A Qdrant server and how to speak to it. The key is in no repr."""

    url: str
    """`http://HOST:PORT`, with the prefix of a proxy if there is one; no key."""
    grpc_port: int | None = None
    """None: HTTP alone."""
    key: str = field(default="", repr=False)


def parse_server(uri: str, environment: Mapping[str, str] | None = None) -> Server:
    """The server that `qdrant+http://...` or `qdrant+https://...` names. Raises `ConfigError`."""
    known = os.environ if environment is None else environment
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        raise ConfigError("The URI of the Qdrant server cannot be read.", _EXAMPLE) from None
    scheme = parts.scheme.removeprefix("qdrant+")
    if scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("The URI of the Qdrant server names no host.", _EXAMPLE)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            raise ConfigError(
                f"The Qdrant server's URI has an unknown option {name!r}.", f"Options: {', '.join(_OPTIONS)}."
            )
    key = parts.password or parts.username
    return Server(
        url=f"{scheme}://{host}:{port or PORT}{parts.path.rstrip('/')}",
        grpc_port=_grpc_port(options),
        key=unquote(key) if key else known.get("QDRANT_API_KEY", ""),
    )


def _grpc_port(options: Mapping[str, str]) -> int | None:
    said, port = options.get("grpc"), options.get("grpc_port", "")
    if port and not (port.isdecimal() and 0 < int(port) < 65_536):
        raise ConfigError("`grpc_port` in the Qdrant server's URI is no port.", "For example: `?grpc_port=6334`.")
    if said is not None and said.lower() not in (*_ON, *_OFF):
        raise ConfigError("`grpc` in the Qdrant server's URI is neither 0 nor 1.", "For example: `?grpc=1`.")
    if said is not None and said.lower() in _OFF:
        return None
    return int(port) if port else GRPC_PORT if said is not None else None
