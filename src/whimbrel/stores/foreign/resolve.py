"""From the URI of a collection to its database.

    lancedb:PATH/COLLECTION     lancedb:s3://BUCKET/PATH/COLLECTION
    parquet:DIR/COLLECTION
    llamaindex:DIR/COLLECTION   (read only)
    chroma:PATH/COLLECTION      chroma+http://HOST:PORT/COLLECTION?tenant=...&database=...
    qdrant:PATH/COLLECTION      qdrant+http://HOST:PORT/COLLECTION?grpc=1
    postgresql://USER@HOST/DATABASE/COLLECTION?schema=...
    milvus:PATH.db/COLLECTION   milvus+http://HOST:PORT/COLLECTION?database=...

The last segment of the path, before the `?` of a server's, is the collection; `*` is all of them. Of a Qdrant server,
one that is not said is taken from `QDRANT_COLLECTION_NAME`. Each database is imported by its own branch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from whimbrel.config.values import canonical_store, mask_url, without_credentials
from whimbrel.errors import ConfigError
from whimbrel.stores.base import Reach
from whimbrel.stores.extras import check_client
from whimbrel.stores.foreign.base import Database
from whimbrel.stores.resolve import no_options, parse_uri

ALL = "*"
FOLDERS = ("lancedb", "parquet", "chroma", "llamaindex", "qdrant", "milvus")
NO_STORES = ("parquet", "llamaindex")
"""Schemes of what holds rows to be read, and no view."""
EXAMPLES = (
    "`lancedb:PATH/NAME`, `parquet:DIR/NAME`, `chroma:PATH/NAME`, `qdrant:PATH/NAME`, `qdrant+http://HOST/NAME`, "
    "`milvus:PATH.db/NAME`, `milvus+http://HOST/NAME`, `postgresql://HOST/DB/NAME`"
)


@dataclass(frozen=True, slots=True)
class Address:
    """A collection, or all, of a database."""

    scheme: str
    place: str
    """The database's URI, with its scheme; may hold credentials."""
    collection: str

    @property
    def shown(self) -> str:
        return f"{mask_url(self.place)} {self.collection!r}"

    @property
    def is_folder(self) -> bool:
        return self.scheme in FOLDERS and "://" not in self.place

    def folder(self, base: Path) -> Path:
        return base / Path(self.place.partition(":")[2]).expanduser()

    def bare(self, base: Path) -> str:
        """The place without credentials: the same for the same place."""
        return f"{self.scheme}:{self.folder(base).resolve()}" if self.is_folder else without_credentials(self.place)


def parse(uri: str) -> Address:
    """Raises `ConfigError` where the URI names no collection of a known database."""
    whole = canonical_store(uri)
    scheme = whole.partition(":")[0]
    parse_uri(uri, also=NO_STORES)
    head, mark, query = whole.partition("?")
    if mark and scheme in FOLDERS and "://" not in head:
        raise no_options(query)
    where, slash, name = head.rpartition("/")
    if where.endswith("/") and scheme != "postgresql":  # `chroma+http://host`: its slashes are the server's
        name = ""
    if scheme == "postgresql" and head.count("/") < 4 and not head.startswith("postgresql:///"):
        name = ""
    if not name and scheme.startswith("qdrant") and (named := os.environ.get("QDRANT_COLLECTION_NAME", "").strip()):
        return Address(scheme, f"{whole.partition('?')[0].rstrip('/')}{mark}{query}", named)
    if not name or not slash:
        raise ConfigError(f"{mask_url(uri)!r} names no collection.", f"For example {EXAMPLES}; `*` is all.")
    decoded = unquote(name) if where.partition(":")[2].startswith("//") else name
    return Address(scheme, f"{where}{mark}{query}", decoded)


def open_database(address: Address, *, base: Path, scratch: Path | None, reach: Reach) -> Database:
    """Opens nothing yet. `scratch`: of a source, where a copy of its files may lie; None for a target.

    Raises `ConfigError`, and `MissingExtra` where the client is not installed.
    """
    rest = address.place.partition(":")[2]
    match address.scheme:
        case "lancedb":
            from whimbrel.stores.foreign import lancedb

            return lancedb.opener(rest, base)
        case "parquet":
            from whimbrel.stores.foreign import parquet

            return parquet.opener(rest, base)
        case "llamaindex":
            from whimbrel.stores.foreign import llamaindex

            return llamaindex.opener(rest, base)
        case "chroma" | "chroma+http" | "chroma+https":
            from whimbrel.stores.foreign import chroma

            return chroma.opener(rest, base, scheme=address.scheme, scratch=scratch, reach=reach)
        case "qdrant" | "qdrant+http" | "qdrant+https":
            from whimbrel.stores.foreign import qdrant

            return qdrant.opener(rest, base, scheme=address.scheme, scratch=scratch, reach=reach)
        case "milvus" | "milvus+http" | "milvus+https":
            from whimbrel.stores.foreign import milvus

            return milvus.opener(rest, base, scheme=address.scheme, scratch=scratch, reach=reach)
        case "postgresql":
            check_client(address.scheme)
            from whimbrel.stores.foreign import postgres

            return postgres.opener(address.place, reach)
    raise ConfigError(f"Collections cannot be copied from or to {address.scheme!r}.", f"For example: {EXAMPLES}.")
