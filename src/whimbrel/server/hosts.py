"""Which addresses are this machine's own."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from whimbrel.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import SecretStr


def check_host(host: str, keys: Mapping[str, SecretStr]) -> None:
    """Raises `ConfigError` for an address that others can reach while there are no keys."""
    if keys or is_loopback(host):
        return
    raise ConfigError(
        f"Without API keys, `serve` listens on this machine only, not on {host!r}.",
        "Set WHIMBREL_API_KEYS=NAME:SECRET (several joined by commas), or leave out --host.",
    )


def is_loopback(host: str) -> bool:
    """Whether everything that `host` resolves to is this machine."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False  # what cannot be resolved is refused when it is bound, with its own error
    return bool(host) and all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def is_loopback_name(name: str) -> bool:
    """Whether a browser can only mean this machine by `name`; nothing is resolved."""
    name = name.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
