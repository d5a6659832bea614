"""The port: a `Database` has collections; a `Source` reads one, a `Sink` makes one.

A source is never written to, and its metric, its ids and its columns are read from it, never assumed. A sink makes a
table that did not exist, with a mark in it that says which copy made it, and is given rows to keep exactly: what the
database cannot say goes into an envelope beside what it can. Both raise what `whimbrel.stores.base` says of a store.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from whimbrel.errors import BadInput
from whimbrel.stores.metrics import Metric, measure, scores
from whimbrel.stores.records import Vectors

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

Id = str | int | UUID

MARK = "whimbrel:copy"
"""Where a table that a copy made bears its `Mark`."""
MORE = "whimbrel_more"
"""The column with the envelope of a row: the metadata that the other columns do not say, as JSON."""


class IdKind(StrEnum):
    """What all ids of a collection are. A database that has only strings holds the others as their text."""

    STR = "str"
    INT = "int"
    UUID = "uuid"

    def text(self, id_: Id) -> str:
        """Distinct ids of one kind have distinct texts."""
        return str(id_)

    def parse(self, text: str) -> Id:
        """What `text` was made of. Raises ValueError."""
        return text if self is IdKind.STR else int(text) if self is IdKind.INT else UUID(text)


@dataclass(frozen=True, slots=True)
class Names:
    """Of the columns, where a database has columns."""

    id: str = "id"
    text: str = "text"
    vector: str = "vector"


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a user says where a source does not: empty for what it does."""

    id: str = ""
    text: str = ""
    vector: str = ""
    metric: Metric | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """A column of metadata, as the source declares it, or as a sample of its rows has it."""

    type: pa.DataType
    json: bool = False
    """Any JSON value."""
    sql: str = ""
    """The column's type in a source that speaks SQL: for a target that does too."""


class VectorKind(StrEnum):
    DENSE = "dense"
    SPARSE = "sparse"
    MULTI = "multi"
    """As many vectors as a row needs, compared with each other: ColPali's."""


@dataclass(frozen=True, slots=True)
class VectorField:
    """A further vector of the rows, which has a name."""

    kind: VectorKind
    dimensions: int = 0
    """0: sparse."""
    metric: str = ""
    """A `Metric`, or the database's own name of another; empty where it says none."""
    comparator: str = ""
    """Of `MULTI`, as the database names it: `max_sim`."""
    modifier: str = ""
    """Of `SPARSE`, as the database names it: `idf`."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a source says of a collection."""

    name: str
    dimensions: int
    metric: Metric | None
    """None: the database says none."""
    ids: IdKind
    names: Names = field(default_factory=Names)
    has_text: bool = True
    fields: Mapping[str, Field] = field(default_factory=dict)
    """Columns of metadata; of a source without declared columns, none."""
    main: str = ""
    """The name of the vector of `Rows.vectors`, where the source names it."""
    vectors: Mapping[str, VectorField] = field(default_factory=dict)
    """The further vectors, by name: of `Rows.more`."""
    declared: bool = False
    """The fields are the source's own columns, not those of a sample."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the collection says of itself: JSON values."""
    notes: Sequence[str] = ()
    """What of it cannot be carried, in words."""
    identity: str = ""
    """The same as long as it is the same collection, whatever is in it."""
    version: str | None = None
    """Another after each change of its content; None where the database does not tell."""

    def check_single(self) -> None:
        """Raises `BadInput` where rows have several vectors, and nobody has said which one is meant."""
        if self.vectors:
            names = sorted([*([self.main] if self.dimensions else []), *self.vectors])
            raise BadInput(
                f"{self.name!r} has several vectors, or one of several parts: {', '.join(map(repr, names))}."
                " Nothing was copied.",
                "Name the one that is meant: `--vector NAME`. Targets that take all: Qdrant, LanceDB, Parquet.",
            )


@dataclass(frozen=True, slots=True)
class Mark:
    """What a table that a copy made says of its making: enough to read it back as what it was."""

    copy: str
    """The copy's id."""
    ids: IdKind
    metric: Metric | None
    about: Mapping[str, Any] = field(default_factory=dict)
    text: bool = True
    main: str = ""
    """As `Table.main`, and `vectors` as there."""
    vectors: Mapping[str, VectorField] = field(default_factory=dict)

    def written(self) -> str:
        said = {"copy": self.copy, "ids": self.ids, "metric": self.metric, "about": self.about, "text": self.text}
        if self.main:
            said["main"] = self.main
        if self.vectors:
            said["vectors"] = {name: asdict(one) for name, one in self.vectors.items()}
        return json.dumps(said, sort_keys=True)

    @classmethod
    def read(cls, written: str | bytes | None) -> Mark | None:
        """None where there is none, or none that is ours."""
        try:
            said = json.loads(written or "")
            metric = Metric(said["metric"]) if said["metric"] else None
            vectors = {
                name: VectorField(**{**one, "kind": VectorKind(one["kind"])})
                for name, one in said.get("vectors", {}).items()
            }
            main = said.get("main", "")
            return cls(said["copy"], IdKind(said["ids"]), metric, said["about"], said["text"], main, vectors)
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as columns; all of one length."""

    ids: Sequence[Id]
    vectors: Vectors
    """float32[n, d]"""
    texts: Sequence[str | None]
    metadata: Sequence[Mapping[str, Any]]
    """JSON values, and those of `values`. A null of a column is a key that is not there."""
    more: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Further vectors of each row, by name; None where a row has none. Dense: float32[d]; multi: float32[n, d]; sparse:
    (indices, int64[n]; values, float32[n])."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def none(cls, dimensions: int) -> Rows:
        return cls([], np.zeros((0, dimensions), np.float32), [], [])

    def between(self, start: int, stop: int) -> Rows:
        """Rows `[start, stop)`; no vector is copied."""
        return Rows(
            self.ids[start:stop],
            self.vectors[start:stop],
            self.texts[start:stop],
            self.metadata[start:stop],
            {name: values[start:stop] for name, values in self.more.items()},
        )

    def taken(self, rows: Sequence[int]) -> Rows:
        """The rows of these numbers, in this order."""
        return Rows(
            [self.ids[row] for row in rows],
            self.vectors[list(rows)],
            [self.texts[row] for row in rows],
            [self.metadata[row] for row in rows],
            {name: [values[row] for row in rows] for name, values in self.more.items()},
        )


@dataclass(frozen=True, slots=True)
class Fetched:
    rows: Rows
    unfit: Mapping[Id, str] = field(default_factory=dict)
    """Rows that are there and cannot be carried, with the reason."""


class Source(ABC):
    """One collection, to be read."""

    normalised: bool = True
    """Its vectors have length 1: what `nearest` makes of the metrics dot and l2 depends on it. Set by who knows."""

    @abstractmethod
    async def describe(self) -> Table:
        """Raises `NotFound` where it is not there, `BadInput` where it cannot be told what is what in it."""

    @abstractmethod
    def ids(self) -> AsyncIterator[Sequence[Id]]:
        """Every id, in the order of the places that `fetch` is told; one that comes twice in the data, twice."""

    @abstractmethod
    async def fetch(self, ids: Sequence[Id], places: Sequence[int] | None = None) -> Fetched:
        """The rows of those ids that exist, in any order. `places`: where `ids()` gave each, ascending, which some
        databases find quicker; None where that is not known, or not of this version."""

    async def version(self) -> str | None:
        """As `Table.version`, now. Asks the database."""
        return (await self.describe()).version

    @property
    def indexed(self) -> bool:
        """`nearest` is better than comparing vectors that one holds: the database searches by an index of its own."""
        return type(self).nearest is not Source.nearest

    async def nearest(
        self, vector: npt.NDArray[np.float32], k: int, among: Sequence[Id] | None = None
    ) -> Sequence[tuple[Id, float]]:
        """The k nearest rows by the source's own index, best first, each with its score 0..1 by
        `whimbrel.stores.metrics`; `among`: only of these ids. Here: an exact search over all of them."""
        metric = (await self.describe()).metric or Metric.COSINE
        hits: list[tuple[Id, float]] = []
        async for some in self._batches(among):
            rows = (await self.fetch(some)).rows
            if len(rows):
                found = scores(metric, measure(metric, rows.vectors, vector), normalised=self.normalised)
                hits += zip(rows.ids, found.tolist(), strict=True)
                hits = sorted(hits, key=lambda hit: (-hit[1], str(hit[0])))[:k]
        return hits

    async def _batches(self, among: Sequence[Id] | None) -> AsyncIterator[Sequence[Id]]:
        if among is not None:
            for start in range(0, len(among), _NEAREST_ROWS):
                yield among[start : start + _NEAREST_ROWS]
            return
        async for some in self.ids():
            for start in range(0, len(some), _NEAREST_ROWS):
                yield some[start : start + _NEAREST_ROWS]

    @abstractmethod
    async def close(self) -> None: ...


_NEAREST_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Of what a sink takes in one write, and of how it keeps vectors."""

    rows: int = 5_000
    bytes: int = 16 << 20
    needs_metric: bool = False
    """A collection there has a metric; elsewhere only an index has."""
    max_dimensions: int | None = None
    several: bool = False
    """It takes `Rows.more`, and rows whose only vector is one of them."""


class Sink(ABC):
    """One collection, to be made and filled."""

    limits: Limits = Limits()

    @abstractmethod
    async def mark(self) -> Mark | None:
        """The mark of the table of that name; None where there is no table. Raises `Conflict` for one without."""

    @abstractmethod
    async def create(self, table: Table, mark: Mark) -> None:
        """Make it, empty. Raises `Conflict` where there is one, `BadInput` for what it can never hold."""

    @abstractmethod
    async def open(self, table: Table, mark: Mark) -> None:
        """Go on with one that this copy has made, which has the columns that it was made with."""

    @abstractmethod
    def refused(self, rows: Rows) -> Mapping[int, str]:
        """Which rows it cannot hold, by their number, and why."""

    @abstractmethod
    async def write(self, rows: Rows, *, fresh: bool) -> None:
        """`fresh`: none of these ids is there. Raises `Refused` for too large a batch."""

    @abstractmethod
    async def delete(self, ids: Sequence[Id]) -> None: ...

    @abstractmethod
    def ids(self) -> AsyncIterator[Sequence[Id]]: ...

    @abstractmethod
    async def fetch(self, ids: Sequence[Id]) -> Rows:
        """What is there now of these ids, read as any program's table is."""

    def tolerance(self, table: Table) -> float:
        """Of each component of a vector, as a share of its length; 0 where it is kept bit for bit."""
        return 0.0

    async def finish(self) -> None:
        """All rows have come: build what is better built at the end."""

    @abstractmethod
    async def close(self) -> None: ...


class Database(ABC):
    """Where a URI leads to."""

    shown: str
    """For messages; no credentials."""
    describes_quickly: bool = True
    """A collection can be described without reading, or loading, all of it."""
    copied: Path | None = None
    """Where the copy of the files lies that is read in the place of a folder, once it has been taken."""

    @abstractmethod
    async def collections(self) -> Sequence[str]:
        """The names of all that hold vectors, sorted."""

    @abstractmethod
    def source(self, name: str, chosen: Chosen) -> Source: ...

    @abstractmethod
    def sink(self, name: str) -> Sink: ...

    async def close(self) -> None: ...
