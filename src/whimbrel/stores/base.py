"""The store port: a vector database that can hold a view.

Columnar, so that the hot path moves arrays. Async once; the CLI derives sync. An adapter imports its database inside
its own file, and raises `ViewDamaged` (data missing or unreadable), `StoreUnavailable` (no answer now) or
`BadFilter`, never an empty result in place of an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Matches, Metadata, Position
from whimbrel.filters import Filter

Vectors = npt.NDArray[np.float32]
"""float32[n, dimensions]"""

DENSE = "dense"
"""Name of the one dense vector that a view holds."""


@dataclass(frozen=True, slots=True)
class Records:
    """Rows as columns; all of one length."""

    ids: Sequence[str]
    vectors: Mapping[str, Vectors]
    """Named dense vectors, each float32[n, d]."""
    texts: Sequence[str]
    metadata: Sequence[Metadata]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store says of itself."""

    name: str
    metric: str
    dimensions: int
    single_process: bool = False
    """Only one process may open it: the owner, to which the others send their searches."""
    filter_operators: frozenset[str] = frozenset()
    """Operators compiled natively; others are emulated through ids from the catalog."""
    max_batch_rows: int = 10_000
    capabilities: Mapping[str, Any] = field(default_factory=dict)


class Store(ABC):
    """One table of one database, holding one view.

    Scores: cosine similarity c of normalised vectors becomes `max(0, c)`, whatever the database reports.
    """

    @abstractmethod
    async def create(self) -> None:
        """Make the table, empty. Raises `Conflict` if there is one."""

    @abstractmethod
    async def exists(self) -> bool: ...

    @abstractmethod
    async def upsert(self, records: Records, *, new: bool = False) -> None:
        """Write rows in one commit. `new` promises that no id of them is in the table, which may be faster."""

    @abstractmethod
    async def delete(self, ids: Sequence[str]) -> None:
        """Remove rows; unknown ids are ignored."""

    @abstractmethod
    async def fetch(self, ids: Sequence[str]) -> Records:
        """The rows of those ids that exist, in any order."""

    @abstractmethod
    async def search(
        self, vector: npt.NDArray[np.float32], k: int, where: Filter | None = None, *, ids: Sequence[str] | None = None
    ) -> Matches:
        """The k nearest rows to `vector` (float32[d]) among those that pass `where` and, if given, are in `ids`.

        Returns k rows whenever k rows pass, however few of the table that is.
        """

    @abstractmethod
    def scan(self, batch: int = 5_000) -> AsyncIterator[Records]:
        """Every row, in batches, in any order, at one version where the database has versions."""

    @abstractmethod
    async def ids(self) -> list[str]:
        """Every id."""

    @abstractmethod
    async def count(self) -> int: ...

    @abstractmethod
    def describe(self) -> StoreInfo: ...

    @abstractmethod
    async def position(self) -> Position | None:
        """The position stored with the data; None if none was."""

    @abstractmethod
    async def set_position(self, position: Position) -> None: ...

    async def apply(
        self, upserts: Records | None, deletes: Sequence[str], position: Position, *, new: bool = False
    ) -> None:
        """Write one batch of the log. At least once and idempotent: the position is stored last, or with the data."""
        if deletes:
            await self.delete(deletes)
        if upserts is not None and len(upserts):
            await self.upsert(upserts, new=new)
        await self.set_position(position)

    async def maintain(self, *, full: bool = False) -> None:
        """Compact, and build or update the index, where due (`full`: now). Called by the owner, between batches."""

    async def settle(self) -> None:
        """Nothing has come for a while: what searches still pay for the last writes may be tidied away."""

    async def erase(self, *, grace_s: float) -> None:
        """Physically remove deleted rows and versions older than `grace_s` seconds, as far as the database can."""

    @abstractmethod
    async def drop(self) -> None:
        """Remove the table and its data; nothing else."""

    @abstractmethod
    async def close(self) -> None: ...
