"""The two sides that take turns: a view, and the database's own client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from bench.stores.rows import DIMENSIONS
from whimbrel.domain import Position, Space
from whimbrel.filters import Filter, parse
from whimbrel.stores.base import Records, Store

SPACE = Space("bench", "1", DIMENSIONS)


class Side(ABC):
    """Holds rows in one table. `site` and `year` filter: that site, that year or later."""

    @abstractmethod
    async def create(self) -> None: ...

    @abstractmethod
    async def write(self, rows: Records) -> None:
        """Rows whose ids are all new, before there is an index."""

    @abstractmethod
    async def index(self) -> None: ...

    @abstractmethod
    async def upsert(self, rows: Records) -> None: ...

    @abstractmethod
    async def search(
        self, query: npt.NDArray[np.float32], k: int, *, site: str | None = None, year: int | None = None
    ) -> list[str]: ...

    @abstractmethod
    async def read_out(self) -> int:
        """The number of rows, each read with its id, text, metadata and vector as an array."""


@dataclass(frozen=True, slots=True)
class Database:
    store: Store
    direct: Side
    indexes_as_it_likes: bool = False
    """Both sides' indexes at once, in a server that they share: whose turn it is cannot be told."""


class Ours(Side):
    """As an owner fills and feeds a view: the position comes once with the end of a bulk load, then with each batch."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._position = 0

    async def create(self) -> None:
        await self._store.create()
        await self._store.begin_bulk()

    async def write(self, rows: Records) -> None:
        await self._store.upsert(rows, new=True)

    async def index(self) -> None:
        await self._store.end_bulk()
        await self._store.set_position(self._next())

    async def upsert(self, rows: Records) -> None:
        await self._store.apply(rows, (), self._next())

    async def search(
        self, query: npt.NDArray[np.float32], k: int, *, site: str | None = None, year: int | None = None
    ) -> list[str]:
        return list((await self._store.search(query, k, _filter(site, year))).ids)

    async def read_out(self) -> int:
        return sum([len(batch) async for batch in self._store.scan()])

    def _next(self) -> Position:
        self._position += 1
        return Position("bench", self._position, "")


@cache
def _filter(site: str | None, year: int | None) -> Filter | None:
    """As a search of the engine has it: parsed when the request came."""
    where: dict[str, object] = {} if site is None else {"site": site}
    if year is not None:
        where["year"] = {"$gte": year}
    return parse(where or None)
