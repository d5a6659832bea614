"""A store in a dictionary: the smallest that passes the suite, and the example of docs/stores/adding.md.

It answers only filters of equality itself, so that the others are emulated through ids.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Matches, Metadata, Position, Space
from whimbrel.errors import BadFilter, Conflict, Forbidden, SpaceMismatch, ViewDamaged
from whimbrel.filters import Filter, matches
from whimbrel.stores.base import DENSE, Metric, Reach, Records, Store, StoreInfo
from whimbrel.stores.envelope import dumps, loads
from whimbrel.stores.metrics import measure, scores
from whimbrel.stores.records import checked_query, writable


@dataclass
class Row:
    vector: npt.NDArray[np.float32]
    text: str
    metadata: str


@dataclass
class Table:
    space: Space
    rows: dict[str, Row] = field(default_factory=dict)
    position: Position | None = None


TABLES: dict[tuple[str, str], Table] = {}
"""By URI and name: what a database would keep."""


class MemoryStore(Store):
    def __init__(self, uri: str, name: str, space: Space, *, base: Path, read_only: bool, reach: Reach) -> None:
        self._key = (uri, name)
        self._space = space
        self._read_only = read_only

    def describe(self) -> StoreInfo:
        return StoreInfo(
            name="memory",
            metric=Metric.COSINE,
            dimensions=self._space.dimensions,
            filter_operators=frozenset({"$eq", "$in", "$and"}),
            atomic=True,
            snapshots=True,
            cannot=["rows that outlive its process"],
        )

    # --- the table itself --------------------------------------------------------------------------------------------

    async def create(self) -> None:
        self._check_writable()
        if self._key in TABLES:
            raise Conflict(f"There is a table {self._key[1]!r} already. Nothing was changed.")
        TABLES[self._key] = Table(self._space)

    async def exists(self) -> bool:
        return self._key in TABLES

    async def drop(self) -> None:
        self._check_writable()
        TABLES.pop(self._key, None)

    async def close(self) -> None:
        pass

    # --- writing -----------------------------------------------------------------------------------------------------

    async def upsert(self, records: Records, *, new: bool = False) -> None:
        table = self._table(writing=True)
        rows = writable(records, self._space.dimensions)
        for id_, vector, text, metadata in zip(rows.ids, rows.vectors[DENSE], rows.texts, rows.metadata, strict=True):
            table.rows[id_] = Row(vector, text, dumps(metadata))

    async def delete(self, ids: Sequence[str]) -> None:
        table = self._table(writing=True)
        for id_ in ids:
            table.rows.pop(id_, None)

    async def set_position(self, position: Position) -> None:
        self._table(writing=True).position = position

    # --- reading -----------------------------------------------------------------------------------------------------

    async def position(self) -> Position | None:
        return self._table().position

    async def count(self) -> int:
        return len(self._table().rows)

    async def ids(self) -> list[str]:
        return list(self._table().rows)

    async def fetch(self, ids: Sequence[str]) -> Records:
        rows = self._table().rows
        return self._records({id_: rows[id_] for id_ in ids if id_ in rows})

    async def scan(self, batch: int = 5_000) -> AsyncIterator[Records]:
        rows = list(self._table().rows.items())
        for start in range(0, len(rows), batch):
            yield self._records(dict(rows[start : start + batch]))

    async def search(
        self, vector: npt.NDArray[np.float32], k: int, where: Filter | None = None, *, ids: Sequence[str] | None = None
    ) -> Matches:
        query = checked_query(vector, self._space.dimensions)
        if where is not None and not self.answers(where):
            raise BadFilter("This store does not answer the filter.", "Give it the ids of the rows that pass.")
        rows = self._table().rows
        among = rows.keys() if ids is None else [id_ for id_ in dict.fromkeys(ids) if id_ in rows]
        passing = [id_ for id_ in among if where is None or matches(where, _metadata(rows[id_]))]
        if not passing or k <= 0:
            return Matches([], np.zeros(0, np.float32))
        found = scores(Metric.COSINE, measure(Metric.COSINE, np.stack([rows[id_].vector for id_ in passing]), query))
        best = sorted(range(len(passing)), key=lambda row: (-found[row], passing[row]))[:k]
        return Matches([passing[row] for row in best], found[best])

    # --- inside ------------------------------------------------------------------------------------------------------

    def _table(self, *, writing: bool = False) -> Table:
        if writing:
            self._check_writable()
        table = TABLES.get(self._key)
        if table is None:
            raise ViewDamaged(f"There is no table {self._key[1]!r}.", "Build the view again.")
        if table.space.key != self._space.key:
            raise SpaceMismatch(f"Table {self._key[1]!r} holds vectors of {table.space.model}.")
        return table

    def _records(self, rows: dict[str, Row]) -> Records:
        if not rows:
            return Records.none(self._space.dimensions)
        vectors = {DENSE: np.stack([row.vector for row in rows.values()])}
        texts = [row.text for row in rows.values()]
        return Records(list(rows), vectors, texts, [_metadata(row) for row in rows.values()])

    def _check_writable(self) -> None:
        if self._read_only:
            raise Forbidden("This table was opened to be read only. Nothing was written.")


def _metadata(row: Row) -> Metadata:
    return loads(row.metadata)
