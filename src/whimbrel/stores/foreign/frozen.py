"""A frozen view: a collection of another program's database, searched where it is and as it is.

Its rows are known by their ids there; to the catalog by a hash of these (`domain.row_id`). Nothing is ever written to
it. A source without an index is searched in a file of its vectors of record, which is made from the catalog.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Matches, Position, row_id
from whimbrel.errors import Forbidden, NotFound, StoreUnavailable, UserError, ViewDamaged, ViewError
from whimbrel.filters import Filter
from whimbrel.stores.base import Store, StoreInfo
from whimbrel.stores.foreign import exact
from whimbrel.stores.foreign.base import Database, Id, IdKind, Source
from whimbrel.stores.metrics import Metric, scores
from whimbrel.stores.records import DENSE, Records, Vectors, checked_query

MOST_PASSING = 1_000_000
"""Rows that may pass a filter."""
_FEW = 1_000
"""As many ids are named to the database; of more, it is asked for nearer rows than are wanted."""
BEGINNING = 10_000
"""While rows are being taken in, up to as many are compared here: the rows that the database finds are hardly ever
among the first of many."""
READ_AGAIN_S = 2.0
"""They are read anew where more have come, when as many have as there were, or after this time."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of the collection since it was adopted."""

    name: str
    """Of the database, for people."""
    dimensions: int
    metric: Metric
    ids: IdKind
    normalised: bool
    """All vectors have length 1."""
    single_process: bool
    indexed: bool
    """Its database finds the nearest rows itself."""
    copied: bool = False
    """A copy of its files is searched, in whose place another may come."""


class Record(Protocol):
    """What the catalog knows of its rows. Each call reads it."""

    def source_ids(self, public_ids: Sequence[str]) -> Mapping[str, str]: ...

    def count(self) -> int: ...

    def position(self) -> Position | None: ...

    def generation(self) -> int:
        """Another after the rows were taken in again."""
        ...

    def folder(self) -> Path:
        """Where the exact index lies: another one after the rows have changed."""
        ...

    def coming(self) -> int | None:
        """At most as many rows are known, while they are being taken in; None once all are."""
        ...

    def vectors(self) -> Iterator[tuple[Sequence[str], Vectors]]: ...

    def forget(self) -> None:
        """Remove what was made to search it."""
        ...


@dataclass(frozen=True, slots=True)
class _Early:
    """What was known while rows were coming in."""

    known: int
    read_at: float
    index: exact.ExactIndex


@dataclass(slots=True)
class _Opened:
    database: Database
    source: Source
    generation: int


class FrozenStore(Store):
    """For reading; its text and metadata are what the database says now, not what the catalog does."""

    def __init__(self, shape: Shape, record: Record, open_it: Callable[[], tuple[Database, Source]]) -> None:
        self._shape = shape
        self._record = record
        self._open_it = open_it
        self._opened: _Opened | None = None
        self._opening = asyncio.Lock()
        self._exact: tuple[Path, exact.ExactIndex] | None = None
        self._early: _Early | None = None
        self._whole = False
        """All rows have been taken in, once at least."""

    def describe(self) -> StoreInfo:
        shape = self._shape
        single = shape.single_process and shape.indexed
        return StoreInfo(
            shape.name,
            shape.metric,
            shape.dimensions,
            single_process=single,
            max_ids=MOST_PASSING,
            cannot=("writing: it is another program's",),
        )

    async def exists(self) -> bool:
        """Raises `StoreUnavailable` where it is gone: that it comes back is up to whoever has it."""
        if self._shape.indexed:
            await self._source()
        return True

    async def search(
        self, vector: npt.NDArray[np.float32], k: int, where: Filter | None = None, *, ids: Sequence[str] | None = None
    ) -> Matches:
        vector = checked_query(vector, self._shape.dimensions)
        assert where is None, "it answers no filter itself"
        if k <= 0 or (ids is not None and not ids):
            return Matches([], np.zeros(0, np.float32))
        if not self._whole and (early := await asyncio.to_thread(self._first)) is not None:
            found = _cosines(early.nearest(vector, k, ids))
        elif not self._shape.indexed:
            found = await asyncio.to_thread(self._compared, vector, k, ids)
        elif ids is None:
            found = await self._nearest(vector, k)
        else:
            found = await self._among(vector, k, ids)
        best = sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]
        return Matches([id_ for id_, _ in best], np.array([score for _, score in best], np.float32))

    async def fetch(self, ids: Sequence[str]) -> Records:
        named = await asyncio.to_thread(self._record.source_ids, ids)
        source = await self._source()
        with self._errors():
            rows = (await source.fetch([self._shape.ids.parse(one) for one in named.values()])).rows
        return Records(
            [self._public(id_) for id_ in rows.ids],
            {DENSE: rows.vectors},
            [text or "" for text in rows.texts],
            [dict(one) for one in rows.metadata],
        )

    async def scan(self, batch: int = 5_000) -> AsyncIterator[Records]:
        every = await self.ids()
        for start in range(0, len(every), batch):
            found = await self.fetch(every[start : start + batch])
            if len(found):
                yield found

    async def ids(self) -> list[str]:
        source = await self._source()
        with self._errors():
            return [self._public(id_) async for some in source.ids() for id_ in some]

    async def count(self) -> int:
        return await asyncio.to_thread(self._record.count)

    async def position(self) -> Position | None:
        return await asyncio.to_thread(self._record.position)

    async def drop(self) -> None:
        """Of the database nothing: it is not ours. Only what was made here to search it."""
        await self.close()
        await asyncio.to_thread(self._record.forget)

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        self._exact = None
        if opened is not None:
            await opened.source.close()
            await opened.database.close()

    # --- nothing is written ------------------------------------------------------------------------------------------

    async def create(self) -> None:
        raise _frozen()

    async def upsert(self, records: Records, *, new: bool = False) -> None:
        raise _frozen()

    async def delete(self, ids: Sequence[str]) -> None:
        raise _frozen()

    async def set_position(self, position: Position) -> None:
        raise _frozen()

    async def erase(self, *, grace_s: float) -> None:
        raise _frozen()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _first(self) -> exact.ExactIndex | None:
        """Of the rows that are known, while they are few; else None."""
        shape = self._shape
        by_cosine = not shape.indexed or shape.normalised or shape.metric is Metric.COSINE
        known = self._record.coming() if by_cosine else None
        if known is None or known > BEGINNING:
            self._early, self._whole = None, known is None
            return None
        early, now = self._early, time.monotonic()
        if early is None or known >= 2 * early.known or (known > early.known and now - early.read_at > READ_AGAIN_S):
            self._early = early = _Early(known, now, exact.ExactIndex.of(self._record.vectors()))
        return early.index

    async def _nearest(
        self, vector: npt.NDArray[np.float32], k: int, among: Sequence[Id] | None = None
    ) -> list[tuple[str, float]]:
        source = await self._source()
        try:
            with self._errors():
                found = await source.nearest(vector, k, among)
        except ViewError:
            await self.close()  # what is open may be of another time: the next search opens it anew
            raise
        return [(self._public(id_), score) for id_, score in found]

    async def _among(self, vector: npt.NDArray[np.float32], k: int, ids: Sequence[str]) -> list[tuple[str, float]]:
        if len(ids) <= _FEW:
            named = await asyncio.to_thread(self._record.source_ids, ids)
            return await self._nearest(vector, k, [self._shape.ids.parse(one) for one in named.values()])
        passing = set(ids)
        total = max(await self.count(), 1)
        wanted = max(2 * k, 2 * k * total // len(passing))
        while True:
            found = await self._nearest(vector, wanted)
            hits = [(id_, score) for id_, score in found if id_ in passing]
            if len(hits) >= k or len(found) < wanted:
                return hits
            wanted *= 4

    def _compared(self, vector: Vectors, k: int, ids: Sequence[str] | None) -> list[tuple[str, float]]:
        folder = self._record.folder()
        held = self._exact
        if held is None or held[0] != folder:
            if not folder.is_dir():
                exact.build(folder, self._record.vectors())
            held = self._exact = folder, exact.ExactIndex.read(folder, self._shape.dimensions)
        return _cosines(held[1].nearest(vector, k, ids))

    async def _source(self) -> Source:
        async with self._opening:
            generation = await asyncio.to_thread(self._record.generation) if self._shape.copied else 0
            if self._opened is not None and self._opened.generation != generation:
                await self.close()
            if self._opened is None:
                database, source = await asyncio.to_thread(self._open_it)
                source.normalised = self._shape.normalised
                try:
                    with self._errors():
                        table = await source.describe()
                    if table.dimensions != self._shape.dimensions:
                        raise ViewDamaged(
                            f"The adopted {self._shape.name} has vectors of {table.dimensions:,} dimensions now; they "
                            f"had {self._shape.dimensions:,} when it was adopted.",
                            "Adopt it anew as another collection.",
                        )
                except BaseException:
                    await source.close()
                    await database.close()
                    raise
                self._opened = _Opened(database, source, generation)
            return self._opened.source

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What is wrong with the source is no fault of who searches."""
        try:
            yield
        except UserError as error:
            gone = " It is gone from where it was adopted." if isinstance(error, NotFound) else ""
            raise StoreUnavailable(
                f"{error.message}{gone}",
                "Bring it back, or move the collection: `whimbrel move start` builds it from the catalog.",
            ) from error

    def _public(self, id_: Id) -> str:
        return row_id(self._shape.ids.text(id_))


def _cosines(found: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """(id, score) of (id, cosine similarity)."""
    known = scores(Metric.COSINE, np.array([cosine for _, cosine in found], np.float64))
    return list(zip([id_ for id_, _ in found], known.tolist(), strict=True))


def _frozen() -> Forbidden:
    return Forbidden(
        "The view is frozen: it is a database that another program made. Nothing was written to it.",
        "Move the collection to a store of its own: `whimbrel move start`.",
    )
