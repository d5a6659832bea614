"""Chroma, as a folder and as a server. What its files are called is known without a client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whimbrel.stores.chroma.store import ChromaStore

__all__ = ["ChromaStore"]


def __getattr__(name: str) -> Any:
    if name == "ChromaStore":
        from whimbrel.stores.chroma.store import ChromaStore

        return ChromaStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
