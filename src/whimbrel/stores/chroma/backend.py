"""What the store asks of Chroma, in a folder or behind a server: its collections, as columns.

Each call raises `StoreUnavailable` (no answer now), `StoreRefused`, `ViewDamaged` (the collection or its files are not
there or unreadable), `DiskFull`, `HomeError`; and what the store handles: `Refused` (too large) and `UnknownId`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

FORMAT_KEY, SPACE_KEY = "whimbrel:format", "whimbrel:space"
"""In the metadata of a collection that we made: the version of its form, and the space of its vectors."""


ELSEWHERE = "Name another folder, database or collection."

NAMES = "Names have 3 to 512 characters of a-z, A-Z, 0-9, `.`, `_` and `-`, and a letter or digit at both ends."

HNSW: Mapping[str, Any] = {"space": "cosine", "ef_construction": 100, "max_neighbors": 16, "ef_search": 200}
"""Of a new collection. Twice Chroma's `ef_search`: recall@10 on real embeddings."""


class UnknownId(Exception):
    """An id is not in the index: a query was to look among it, or it was deleted within the read."""


@dataclass(frozen=True, slots=True)
class Collection:
    id: str
    name: str
    metric: str
    """Chroma's name: `cosine`, `l2` (squared) or `ip` (1 - dot product)."""
    dimensions: int | None
    """None until the first row, and where the space is known."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns of one length; those that were not asked for are empty."""

    ids: list[str]
    texts: list[str | None] = field(default_factory=list)
    metadata: list[dict[str, Any] | None] = field(default_factory=list)
    vectors: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))


@dataclass(frozen=True, slots=True)
class Nearest:
    """What a query found, best first."""

    ids: list[str]
    distances: list[float]
    metadata: list[dict[str, Any] | None] = field(default_factory=list)


class Backend(ABC):
    single_process: bool

    @property
    @abstractmethod
    def shown(self) -> str:
        """Where it is, for messages; no credentials."""

    @abstractmethod
    async def max_rows(self) -> int:
        """Most rows of one write."""

    @abstractmethod
    async def find(self, name: str) -> Collection | None: ...

    async def again(self, collection: Collection) -> Collection | None:
        """A collection that was found before, as it is now; None if it is gone."""
        return await self.find(collection.name)

    @abstractmethod
    async def create(self, name: str, metadata: Mapping[str, Any]) -> Collection:
        """Raises `Conflict` if there is one of that name."""

    @abstractmethod
    async def describe(self, collection: Collection, metadata: Mapping[str, Any]) -> None:
        """Replace the collection's own metadata, in one commit."""

    @abstractmethod
    async def drop(self, collection: Collection) -> None: ...

    @abstractmethod
    async def count(self, collection: Collection) -> int: ...

    @abstractmethod
    async def upsert(
        self,
        collection: Collection,
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        texts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None],
    ) -> None:
        """Write rows. Keys of a row's former metadata stay unless they are given as None. Raises `Refused`."""

    @abstractmethod
    async def delete(self, collection: Collection, ids: Sequence[str]) -> None: ...

    @abstractmethod
    async def get(
        self,
        collection: Collection,
        *,
        ids: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        include: Sequence[str] = (),
    ) -> Rows:
        """`include`: of `documents`, `metadatas` and `embeddings`. Unknown ids are left out."""

    @abstractmethod
    async def query(
        self,
        collection: Collection,
        vector: npt.NDArray[np.float32],
        k: int,
        *,
        ids: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        metadata: bool = False,
    ) -> Nearest:
        """Raises `UnknownId`."""

    async def erase(self) -> None:
        """Write out of the files what was deleted, where this can be asked for."""

    @abstractmethod
    async def close(self) -> None: ...


def metric_of(configuration: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None) -> str:
    """The metric that a collection says it has; l2 is what Chroma gives to one that says none."""
    for index in ("hnsw", "spann"):
        space = ((configuration or {}).get(index) or {}).get("space")
        if space:
            return str(space)
    return str((metadata or {}).get("hnsw:space") or "l2")


def as_vectors(rows: Any) -> npt.NDArray[np.float32]:
    """float32[n, d] of n lists; float32[0, 0] of none."""
    found: npt.NDArray[np.float32] = np.asarray(rows if rows is not None else [], np.float32)
    return found if found.ndim == 2 else np.zeros((0, 0), np.float32)
