"""LanceDB, the embedded default: opens at once, lets other processes read while one writes."""

from whimbrel.stores.lancedb.store import LanceStore

__all__ = ["LanceStore"]
