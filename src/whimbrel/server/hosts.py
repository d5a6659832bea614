"""Which addresses and names are this machine's own."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from whimbrel.config import Settings
from whimbrel.config.values import listed
from whimbrel.errors import ConfigError
from whimbrel.home import host_name


def check_server(settings: Settings) -> None:
    """Raises `ConfigError` for keys that cannot be read, and for every site's pages being let in without any."""
    if "*" in listed(settings.server.cors_origins) and not settings.parsed_api_keys():
        raise ConfigError(
            "`server.cors_origins` is `*` and there are no API keys: any web page could read and change everything.",
            "Set WHIMBREL_API_KEYS=NAME:SECRET, or name the origins.",
        )


def is_loopback_name(name: str) -> bool:
    """Whether a browser can only mean this machine by `name`; nothing is resolved."""
    name = name.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return is_address(name) and ipaddress.ip_address(name).is_loopback


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class OwnNames:
    """The names that a request without a key may use for this machine.

    A page of another site whose name was pointed at this machine after it had been loaded (DNS rebinding) sends that
    name. An address cannot be pointed elsewhere; nor can, from outside, the names that were configured.
    """

    def __init__(self, allowed: str | None) -> None:
        here = host_name().lower()
        self._names = {here, f"{here}.local", *(name.lower().rstrip(".") for name in listed(allowed))}

    def has(self, host: str, *, loopback: bool) -> bool:
        """`host`: a Host header. Over loopback an address must be one of loopback too: a proxy here sends its own."""
        name = _name(host).lower().rstrip(".")
        return is_loopback_name(name) or name in self._names or (not loopback and is_address(name))


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
