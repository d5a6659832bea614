"""From a view's URI to its store.

| uri | store |
|---|---|
| `lancedb:PATH` | a LanceDB folder; a relative PATH is under the home, none is its folder `views` |
| `lancedb:s3://BUCKET/PATH` | LanceDB on object storage; also `gs://`, `az://` and others that LanceDB knows |
| `postgresql://…` | Postgres with pgvector |
| `chroma:PATH` | a Chroma folder, opened by one process |
| `chroma+http://HOST:PORT`, `chroma+https://…` | a Chroma server |
| `qdrant:PATH` | a folder of Qdrant's local mode, opened by one process |
| `qdrant+http://HOST:PORT`, `qdrant+https://…` | a Qdrant server |
| `milvus:PATH.db` | Milvus Lite, opened by one process |
| `milvus+http://HOST:PORT`, `milvus+https://…` | a Milvus server |

Other packages add schemes by entry points of the group `whimbrel.stores`: its name is the scheme, what it names an
`Opener`. Each adapter is imported by its own branch, so that what is not used costs nothing.

A URI may hold credentials. The catalog holds it without: `without_credentials` is what a view's row says, and opening
takes them from the configuration again, where they may have been changed since.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

from whimbrel.config.values import canonical_store, mask_url, without_credentials
from whimbrel.domain import Space
from whimbrel.errors import ConfigError
from whimbrel.stores.base import Reach, Store
from whimbrel.stores.extras import check_client

GROUP = "whimbrel.stores"
"""Of entry points: scheme = "package.module:opener"."""

REACH = Reach()


class Opener(Protocol):
    """What makes a store of a URI; it opens nothing yet. Raises `ConfigError` for one that cannot be, `MissingExtra`
    where its client is not installed."""

    def __call__(self, uri: str, name: str, space: Space, *, base: Path, read_only: bool, reach: Reach) -> Store:
        """`uri` is whole, with its scheme; relative paths are under `base`."""
        ...


def open_store(
    uri: str,
    name: str,
    space: Space,
    *,
    base: Path,
    read_only: bool = False,
    reach: Reach = REACH,
    configured: Iterable[str] = (),
) -> Store:
    """The store of the table `name` at `uri`. Opens nothing yet. Raises `ConfigError` for a URI that names no store,
    `MissingExtra` where its client is not installed.

    `configured`: URIs of the configuration; one of the same place gives the credentials.
    """
    scheme, _ = parse_uri(uri)
    check_client(scheme)
    place = without_credentials(uri)
    whole = uri if place != canonical_store(uri) else next((one for one in configured if same_place(one, uri)), uri)
    return _opener(scheme)(whole.strip(), name, space, base=base, read_only=read_only, reach=reach)


def parse_uri(uri: str, also: Sequence[str] = ()) -> tuple[str, str]:
    """(scheme, the rest) of a store's URI. Raises `ConfigError` for one that names no store. `also`: schemes that may
    be named here, though they are no stores."""
    scheme, colon, rest = canonical_store(uri).partition(":")
    if scheme not in (*_BUILT_IN, *also) and scheme not in (others := _others()):
        known = [*_BUILT_IN, *also, *others]
        near = get_close_matches(scheme.lower(), known, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"There is no store {scheme!r}.{guess}", f"Stores: {', '.join(known)} (as `scheme:where`).")
    if not colon:
        raise ConfigError(f"{scheme!r} is not a store's URI.", f"For example: `{scheme}:{_EXAMPLES.get(scheme, '')}`.")
    if _is_server(scheme) and not re.match("//" if scheme == "postgresql" else "//[^/?]", rest):
        raise ConfigError(
            f"The store's URI names no server: {mask_url(uri)!r}.", f"For example: `{scheme}:{_EXAMPLES[scheme]}`."
        )
    path, _, options = rest.partition("?")
    is_folder = scheme in _EXAMPLES and not _is_server(scheme) and "://" not in path
    if is_folder and re.match("[^/]*=", options):
        raise no_options(options)
    if _is_server(scheme) and re.match(r"//[^/?@]*:(?!\d*[/?])[^/?@]*[/?].*@", rest):
        raise ConfigError(
            "The password in the store's URI has a character that ends it: `/` or `?`.",
            "Write these as %2F and %3F.",
        )
    return scheme, rest


def no_options(given: str) -> ConfigError:
    """Of what comes after the `?` of a folder's URI, where it would be a part of the path."""
    return ConfigError(
        f"The URI of a folder takes no options: {mask_url('?' + given)!r}.",
        "Leave out the `?` and what comes after it; options are of servers.",
    )


def same_place(uri: str, other: str) -> bool:
    """Whether two URIs name one database, whatever credentials they hold."""
    return _place(uri) == _place(other)


def _place(uri: str) -> str:
    place = without_credentials(uri).rstrip("/")
    return "lancedb:views" if place == "lancedb:" else place


def _is_server(scheme: str) -> bool:
    return scheme in _EXAMPLES and _EXAMPLES[scheme].startswith("//")


def _opener(scheme: str) -> Opener:
    added = _BUILT_IN.get(scheme) is None
    entry = _others()[scheme] if added else EntryPoint(scheme, _BUILT_IN[scheme], GROUP)
    try:
        found: Opener = entry.load()
    except Exception as error:
        if not added:
            raise
        raise ConfigError(
            f"The package that adds the store {scheme!r} cannot be loaded: {type(error).__name__} in {entry.value}.",
            "Install it again, or import it in Python to see what is wrong with it.",
        ) from error
    return found


def _others() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


_BUILT_IN = {
    "lancedb": "whimbrel.stores.lancedb:LanceStore.at",
    "postgresql": "whimbrel.stores.postgres:PostgresStore",
    "chroma": "whimbrel.stores.chroma:ChromaStore",
    "chroma+http": "whimbrel.stores.chroma:ChromaStore",
    "chroma+https": "whimbrel.stores.chroma:ChromaStore",
    "qdrant": "whimbrel.stores.qdrant:QdrantStore",
    "qdrant+http": "whimbrel.stores.qdrant:QdrantStore",
    "qdrant+https": "whimbrel.stores.qdrant:QdrantStore",
    "milvus": "whimbrel.stores.milvus:MilvusStore",
    "milvus+http": "whimbrel.stores.milvus:MilvusStore",
    "milvus+https": "whimbrel.stores.milvus:MilvusStore",
}
"""Openers by scheme, as entry points name them."""

_EXAMPLES = {
    "lancedb": "vectors",
    "postgresql": "//user@localhost/app",
    "chroma": "vectors",
    "chroma+http": "//localhost:8000",
    "chroma+https": "//chroma.example.org",
    "qdrant": "vectors",
    "qdrant+http": "//localhost:6333",
    "qdrant+https": "//qdrant.example.org:6333",
    "milvus": "vectors.db",
    "milvus+http": "//localhost:19530",
    "milvus+https": "//milvus.example.org",
}
