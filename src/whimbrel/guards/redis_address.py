"""The address of a Redis: `redis://USER:PASSWORD@HOST:PORT/DATABASE`, or `rediss://` with TLS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from whimbrel.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import SecretStr

PORT = 6379


@dataclass(frozen=True, slots=True)
class RedisAddress:
    host: str
    port: int
    database: int
    tls: bool
    user: str = field(repr=False)
    password: str = field(repr=False)

    @property
    def shown(self) -> str:
        """Without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (f"/{self.database}" if self.database else "")


def parse_redis(url: SecretStr) -> RedisAddress:
    """Raises `ConfigError`, which repeats nothing of the address: the fault may be in what stands before its `@`."""
    found = _parsed(url.get_secret_value().strip())
    if isinstance(found, RedisAddress):
        return found
    raise ConfigError(
        f"`guards.redis` is no address of a Redis: {found}.",
        "Write `redis://HOST:6379/0`, `redis://:PASSWORD@HOST`, or `rediss://` for TLS. "
        "In a password `@`, `/`, `:`, `?` and `#` are written as %40, %2F, %3A, %3F and %23.",
    )


def _parsed(text: str) -> RedisAddress | str:
    """The address, or what is wrong with it."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:  # UnicodeError, where it is no name that can be looked up, is one
        return "its host or its port cannot be read"
    if parts.scheme not in ("redis", "rediss"):
        return "it does not begin with `redis://` or `rediss://`"
    if not host or port == 0:
        return "it names no host, or port 0"
    if parts.query or parts.fragment:
        return "it has parameters (`?` or `#`), and none are read"
    database = parts.path.strip("/")
    if database and not (database.isascii() and database.isdecimal() and len(database) < 6):
        return "what follows the host is no number of a database"
    return RedisAddress(
        host,
        PORT if port is None else port,
        int(database or 0),
        parts.scheme == "rediss",
        unquote(parts.username or ""),
        unquote(parts.password or ""),
    )
