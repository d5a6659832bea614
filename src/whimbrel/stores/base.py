"""The store port: a vector database that can hold a view.

Columnar, so that the hot path moves arrays. Async once; the CLI derives sync. An adapter imports its database inside
its own file, and never answers with an empty result in place of an error: it raises `ViewDamaged` (data missing or
unreadable), `StoreUnavailable` (no answer now), `StoreRefused` and `StoreUnsupported` (not before its operator acts),
`BadFilter`, `SpaceMismatch`, `DiskFull`. It is done when it passes `whimbrel.testing.StoreConformance`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Matches, Position
from whimbrel.filters import Filter, operators
from whimbrel.stores.metrics import Metric
from whimbrel.stores.records import DENSE, Records, Vectors

OTHER_SPACE = "Nothing was changed. Name another place; `whimbrel move start` takes a collection to another model."
"""The hint of `SpaceMismatch` where a table was made for another space."""

REBUILD = "The catalog holds everything: run `whimbrel view rebuild`."
"""The hint of `ViewDamaged`."""

__all__ = ["DENSE", "Metric", "Reach", "Records", "Store", "StoreInfo", "Vectors"]


@dataclass(frozen=True, slots=True)
class Reach:
    """How long, and by how many connections, a store asks a database that is a server."""

    connect_timeout_s: float = 5.0
    timeout_s: float = 30.0
    """Until a read is answered; a write, which waits for an index too, has longer where the adapter says so."""
    max_connections: int = 8
    """Of one process to one server; more requests wait for one."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store says of itself, without asking its database."""

    name: str
    metric: Metric
    dimensions: int
    single_process: bool = False
    """Only one process may open it: the owner, to which the others send their searches."""
    filter_operators: frozenset[str] = frozenset()
    """Operators that `search` answers itself, exactly: of `whimbrel.filters.OPERATORS`. A filter with any other is
    emulated through ids from the catalog."""
    max_ids: int = 10_000
    """Most ids that `search` takes. A filter that is emulated and lets more rows pass is refused."""
    max_dimensions: int | None = None
    max_batch_rows: int | None = None
    """Of one write to the database; a larger batch is cut by the store. None: no limit but memory."""
    max_batch_bytes: int | None = None
    exact_vectors: bool = True
    """Vectors are read back bit for bit; else within 1e-6 of each component."""
    atomic: bool = False
    """`apply` is one commit, its position included; else the position comes last, and a batch may be applied again."""
    snapshots: bool = False
    """`scan` reads one version of the table; else what is written or deleted meanwhile may or may not be in it."""
    cannot: Sequence[str] = ()
    """What cannot be had of the database, in words that follow "Not possible:"; what is behind a colon explains it."""


class Store(ABC):
    """One table of one database, holding one view.

    Scores are 0..1, by the formulas of `whimbrel.stores.metrics`; a table that we make measures cosine similarity.
    Ids, texts and keys are any valid Unicode without NUL, and are kept as they are. Metadata comes back as it was
    given: see `whimbrel.stores.envelope`. Of filters `whimbrel.filters.matches` says what they mean.

    Every method but `create`, `exists` and `drop` raises `ViewDamaged` where there is no table, and `SpaceMismatch`
    where its vectors are of another space; each that changes it raises `Forbidden` on a handle to be read only.
    """

    @abstractmethod
    async def create(self) -> None:
        """Make the table, empty. Raises `Conflict` if there is one."""

    @abstractmethod
    async def exists(self) -> bool:
        """Whether the table is there, whole. Raises `StoreUnavailable` where nobody can tell: never False then."""

    @abstractmethod
    async def upsert(self, records: Records, *, new: bool = False) -> None:
        """Write rows; of an id that comes twice, the last. `new` promises that no id of them is in the table, which
        may be faster."""

    @abstractmethod
    async def delete(self, ids: Sequence[str]) -> None:
        """Remove rows; unknown ids are ignored."""

    @abstractmethod
    async def fetch(self, ids: Sequence[str]) -> Records:
        """The rows of those ids that exist, each once, in any order."""

    @abstractmethod
    async def search(
        self, vector: npt.NDArray[np.float32], k: int, where: Filter | None = None, *, ids: Sequence[str] | None = None
    ) -> Matches:
        """The k nearest rows to `vector` (float32[d]) among those that pass `where` and, if given, are in `ids`.

        Returns k rows whenever k rows pass, however few of the table that is. Best first, ties by id. Raises
        `BadFilter` for a filter that it does not answer.
        """

    def answers(self, where: Filter) -> bool:
        """Whether `search` takes this filter. Else the caller gives it the ids of the rows that pass."""
        return operators(where) <= self.describe().filter_operators

    @abstractmethod
    def scan(self, batch: int = 5_000) -> AsyncIterator[Records]:
        """Every row once, in batches of at most `batch`, in any order. A row that is there from the first batch to the
        last is in one of them, whatever is written or deleted meanwhile."""

    @abstractmethod
    async def ids(self) -> list[str]:
        """Every id, once."""

    @abstractmethod
    async def count(self) -> int:
        """How many rows there are, exactly."""

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

    async def begin_bulk(self) -> None:
        """Many new rows are about to come: what can be done once at their end may be left until `end_bulk`, such as
        the index. Rows are found meanwhile all the same. Called again after a restart in the middle."""

    async def end_bulk(self) -> None:
        """The rows have come: build what was left, to the end. Also where this process did not see the beginning."""

    async def maintain(self, *, full: bool = False) -> None:
        """Compact, and build or update the index, where due (`full`: now). Called by the owner, between batches."""

    async def settle(self) -> None:
        """Nothing has come for a while: what searches still pay for the last writes may be tidied away."""

    async def erase(self, *, grace_s: float) -> None:
        """Physically remove deleted rows and versions older than `grace_s` seconds, as far as the database can."""

    @abstractmethod
    async def drop(self) -> None:
        """Remove the table and its data; nothing else, and nothing that we did not make. Where there is none, nothing
        happens."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of what is open; a later call opens it again."""
