"""A move that could be: what a collection would go from and to."""

from __future__ import annotations

from dataclasses import dataclass

from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.moves import Request
from whimbrel.domain import Space
from whimbrel.stores.base import StoreInfo


@dataclass(frozen=True, slots=True)
class Wish:
    collection: Collection
    store: ViewRow
    """The live store view."""
    request: Request
    space: Space
    source_space: Space
    source_embedder: str
    source_chunking: str
    source_kind: StoreInfo | None = None
    """Of an adopted database: what a store of ours of that kind says of itself; None where there is none, or not here.
    Of itself it says only that it is not written to."""

    @property
    def other_space(self) -> bool:
        return self.space.key != self.source_space.key

    @property
    def other_chunking(self) -> bool:
        return self.request.chunking != self.source_chunking
