"""Whether the client of a database is installed: what opens one asks first, so that nothing is begun in vain."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from whimbrel.errors import MissingExtra

_CLIENTS = {
    "chroma": ("Chroma", "chromadb", "chroma"),
    "chroma+http": ("Chroma", "chromadb", "chroma"),
    "chroma+https": ("Chroma", "chromadb", "chroma"),
    "qdrant": ("Qdrant", "qdrant_client", "qdrant"),
    "qdrant+http": ("Qdrant", "qdrant_client", "qdrant"),
    "qdrant+https": ("Qdrant", "qdrant_client", "qdrant"),
    "milvus": ("Milvus Lite", "milvus_lite", "milvus"),
    "milvus+http": ("Milvus", "pymilvus", "milvus"),
    "milvus+https": ("Milvus", "pymilvus", "milvus"),
}
"""Whose database it is, the package, and the extra, by scheme."""


def check_client(scheme: str) -> None:
    """Raises `MissingExtra` where the client that a URI of this scheme needs is not installed."""
    if scheme == "postgresql":
        _import_psycopg()
    elif scheme in _CLIENTS:
        whose, package, extra = _CLIENTS[scheme]
        if not _is_there(package):  # not imported: that takes long, and another process may have it open
            raise MissingExtra(
                f"The package of {whose} is not installed. Nothing was begun.", f"pip install 'whimbrel[{extra}]'"
            )


def _import_psycopg() -> None:
    """Imported, for it may be there without libpq. Raises `MissingExtra` where it cannot be."""
    try:
        import_module("psycopg")
    except ImportError as error:
        raise MissingExtra(
            "Postgres needs the driver psycopg, which is not installed. Nothing was begun.",
            "pip install 'whimbrel[postgres]'",
        ) from error


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:
        return False
