"""From a view's URI to its store.

| uri | store |
|---|---|
| `lancedb:PATH` | a LanceDB folder; a relative PATH is under the home, none is its folder `views` |

Each adapter is imported by its own branch, so that what is not used costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from whimbrel.domain import Space
from whimbrel.errors import ConfigError
from whimbrel.stores.base import Store


def open_store(uri: str, name: str, space: Space, *, base: Path, read_only: bool = False) -> Store:
    """The store of the table `name` at `uri`. Opens nothing yet. Raises `ConfigError` for a URI that names no store."""
    scheme, rest = parse_uri(uri)
    return _SCHEMES[scheme](rest, name, space, base, read_only)


def parse_uri(uri: str) -> tuple[str, str]:
    """(scheme, the rest) of a store's URI. Raises `ConfigError` for one that names no store."""
    scheme, colon, rest = uri.strip().partition(":")
    if scheme not in _SCHEMES:
        near = get_close_matches(scheme.lower(), _SCHEMES, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(_SCHEMES)
        raise ConfigError(f"There is no store {scheme!r}.{guess}", f"Stores: {known} (as `scheme:where`).")
    if not colon:
        raise ConfigError(f"{uri!r} is not a store's URI.", f"For example: `{scheme}:vectors`.")
    return scheme, rest


def _lancedb(path: str, name: str, space: Space, base: Path, read_only: bool) -> Store:
    from whimbrel.stores.lancedb import LanceStore

    return LanceStore(base / Path(path or "views").expanduser(), name, space, read_only=read_only)


_SCHEMES: dict[str, Callable[[str, str, Space, Path, bool], Store]] = {"lancedb": _lancedb}
