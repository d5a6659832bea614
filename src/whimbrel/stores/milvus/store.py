"""The store: one Milvus collection holding one view."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Matches, Position, Space
from whimbrel.errors import Conflict, Forbidden, SpaceMismatch, StoreRefused, StoreUnsupported, ViewDamaged
from whimbrel.filters import OPERATORS, Filter
from whimbrel.stores.base import OTHER_SPACE, REBUILD, Metric, Reach, Records, Store, StoreInfo
from whimbrel.stores.batches import Batches
from whimbrel.stores.milvus import rows
from whimbrel.stores.milvus.backend import ELSEWHERE, FORMAT_KEY, SPACE_KEY, Backend, Collection
from whimbrel.stores.milvus.lite import LiteBackend
from whimbrel.stores.milvus.nearest import nearest
from whimbrel.stores.milvus.server import ServerBackend
from whimbrel.stores.milvus.uri import parse_server
from whimbrel.stores.records import checked_query, writable

FORMAT = 1
MAX_DIMENSIONS = 32_768
MAX_BATCH_ROWS = 2_000
PAGE_ROWS = 1_000
"""Of one read."""


class MilvusStore(Store):
    """The collection `name` of the Milvus that `uri` names: `milvus:PATH.db`, `milvus+http://...`, `milvus+https://...`.

    The score is `max(0, c)`, c Milvus' cosine similarity. Raises what `Backend` does, `SpaceMismatch` when the
    collection has vectors of another metric, space or number of dimensions, and `StoreUnsupported` when a newer
    Whimbrel made it.
    """

    def __init__(
        self, uri: str, name: str, space: Space, *, base: Path, read_only: bool = False, reach: Reach | None = None
    ) -> None:
        """`base`: the folder that a relative PATH is under."""
        self._name = rows.collection_name(name)
        self._space = space
        self._read_only = read_only
        self._backend = open_backend(uri, base, reach or Reach())
        self._known: Collection | None = None
        self._writing = asyncio.Lock()
        self._batches = Batches(MAX_BATCH_ROWS)
        self._bulk = False

    # --- the collection itself ---------------------------------------------------------------------------------------

    async def create(self) -> None:
        self._check_writable()
        if self._space.dimensions > MAX_DIMENSIONS:
            raise StoreRefused(
                f"Milvus takes vectors of up to {MAX_DIMENSIONS:,} dimensions; {self._space.model} gives "
                f"{self._space.dimensions:,}.",
                "Name another store, or another model.",
            )
        about = {FORMAT_KEY: FORMAT, SPACE_KEY: self._space.key}
        await self._backend.create(self._name, self._space.dimensions, about)

    async def exists(self) -> bool:
        return await self._backend.find(self._name) is not None

    async def drop(self) -> None:
        self._check_writable()
        found = await self._backend.find(self._name)
        if found is not None:
            self._check_ours(found)
            await self._backend.drop(self._name)
        await self.close()

    async def close(self) -> None:
        self._known = None
        await self._backend.close()

    def describe(self) -> StoreInfo:
        lite = self._backend.single_process
        return StoreInfo(
            name="milvus",
            metric=Metric.COSINE,
            dimensions=self._space.dimensions,
            single_process=lite,
            filter_operators=OPERATORS,
            max_dimensions=MAX_DIMENSIONS,
            max_batch_rows=MAX_BATCH_ROWS,
            max_batch_bytes=self._batches.bytes,
            cannot=[
                "data and position in one commit",
                "a read of one version while others write",
                "ids of more than 65,535 bytes",
                "deleted rows written out of the files on request"
                if lite
                else "deleted rows written out of the files on request: Milvus does when it cleans up",
            ],
        )

    async def count(self) -> int:
        await self._open()
        return await self._backend.count(self._name)

    async def position(self) -> Position | None:
        await self._open()
        stored = await self._backend.read_position(self._name)
        return Position(*json.loads(stored)) if stored else None

    async def set_position(self, position: Position) -> None:
        """A row of its own, after the data's: a process killed between the two leaves a position behind the data, and
        the batch is applied again, which changes nothing. It returns when every reader sees both, but within a bulk
        load, which nobody waits for."""
        self._check_writable()
        await self._open()
        async with self._writing:
            said = json.dumps([position.epoch, position.position, position.stamp])
            await self._backend.write_position(self._name, self._space.dimensions, said, wait=not self._bulk)

    # --- writing -----------------------------------------------------------------------------------------------------

    async def upsert(self, records: Records, *, new: bool = False) -> None:
        self._check_writable()
        if not len(records):
            return
        records = writable(records, self._space.dimensions)
        await self._open()

        async def write(batch: Records) -> None:
            encoded = await asyncio.to_thread(rows.encode, batch, self._backend.facts)
            await self._backend.write(self._name, encoded, more=self._bulk)

        async with self._writing:
            await self._batches.write(records, write, at_once=self._backend.writes_at_once)

    async def delete(self, ids: Sequence[str]) -> None:
        self._check_writable()
        await self._open()
        async with self._writing:
            for some in _pages(sorted({rows.to_milvus(id_) for id_ in ids}), PAGE_ROWS):
                await self._backend.delete(self._name, some)

    async def begin_bulk(self) -> None:
        """Milvus builds its index by itself, over rows that it has gathered; what is left until the end is to wait
        until each batch is seen."""
        self._check_writable()
        self._bulk = True

    async def end_bulk(self) -> None:
        self._check_writable()
        await self._open()
        self._bulk = False
        await self._backend.settle(self._name, wait=True)

    async def maintain(self, *, full: bool = False) -> None:
        self._check_writable()
        await self._open()
        if full:
            await self._backend.settle(self._name, wait=True)

    async def settle(self) -> None:
        if self._read_only:
            return
        await self._open()
        await self._backend.settle(self._name, wait=False)

    async def erase(self, *, grace_s: float) -> None:
        """Milvus is asked to clean up; when it does is its own affair."""
        self._check_writable()
        await self._open()
        async with self._writing:
            await self._backend.erase(self._name)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def fetch(self, ids: Sequence[str]) -> Records:
        await self._open()
        pages = _pages([rows.to_milvus(id_) for id_ in dict.fromkeys(ids)], PAGE_ROWS)
        found = [await self._decoded(await self._backend.get(self._name, some, ["*"])) for some in pages]
        return Records.joined([one for one in found if len(one)], self._space.dimensions)

    async def scan(self, batch: int = 5_000) -> AsyncIterator[Records]:
        await self._open()
        async for page in self._backend.scan(self._name, min(batch, PAGE_ROWS)):
            yield await self._decoded(page)

    async def ids(self) -> list[str]:
        await self._open()
        return list(map(rows.from_milvus, await self._backend.ids(self._name)))

    async def search(
        self, vector: npt.NDArray[np.float32], k: int, where: Filter | None = None, *, ids: Sequence[str] | None = None
    ) -> Matches:
        vector = checked_query(vector, self._space.dimensions)
        await self._open()
        if k <= 0 or (ids is not None and not ids):
            return Matches([], np.zeros(0, np.float32))
        among = None if ids is None else list(dict.fromkeys(ids))
        return await nearest(self._backend, self._name, vector, k, where, among)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _decoded(self, page: Sequence[dict[str, object]]) -> Records:
        return await asyncio.to_thread(rows.decode, page, self._space.dimensions)

    async def _open(self) -> Collection:
        """The collection, looked at once. Raises `ViewDamaged` where there is none."""
        if self._known is None:
            found = await self._backend.find(self._name)
            if found is None:
                raise ViewDamaged(f"There is no collection {self._name!r} in {self._backend.shown}.", REBUILD)
            self._check(found)
            self._known = found
        return self._known

    def _check(self, found: Collection) -> None:
        self._check_ours(found)
        if found.metric not in ("", "COSINE"):
            raise SpaceMismatch(
                f"{self._where()} has the metric {found.metric}; its view needs COSINE. Nothing was changed.", ELSEWHERE
            )
        if found.dimensions != self._space.dimensions:
            raise SpaceMismatch(
                f"{self._where()} holds vectors of {found.dimensions} dimensions; its view's space has "
                f"{self._space.dimensions}.",
                OTHER_SPACE,
            )
        if int(found.about.get(FORMAT_KEY, FORMAT)) > FORMAT:
            raise StoreUnsupported(
                f"{self._where()} was written by a newer version of Whimbrel. Nothing was changed.",
                "Update Whimbrel here.",
            )
        key = found.about.get(SPACE_KEY)
        if key != self._space.key:
            raise SpaceMismatch(
                f"{self._where()} holds vectors of the space {key}; its view's is {self._space.key}, of "
                f"{self._space.model}.",
                OTHER_SPACE,
            )

    def _check_ours(self, found: Collection) -> None:
        if FORMAT_KEY not in found.about:
            raise Conflict(f"{self._where()} was made by another program. Nothing was changed.", ELSEWHERE)

    def _check_writable(self) -> None:
        if self._read_only:
            raise Forbidden(f"{self._where()} was opened to be read only. Nothing was written.")

    def _where(self) -> str:
        return f"Collection {self._name!r} in {self._backend.shown}"


def open_backend(uri: str, base: Path, reach: Reach) -> Backend:
    """What `milvus:PATH.db`, `milvus+http://...` or `milvus+https://...` names. Raises `ConfigError`."""
    if uri.startswith("milvus:"):
        return LiteBackend(base / Path(uri.removeprefix("milvus:") or "milvus.db").expanduser())
    return ServerBackend(parse_server(uri), reach)


def _pages(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
