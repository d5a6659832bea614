"""The store: one Chroma collection holding one view."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Matches, Position, Space
from whimbrel.errors import (
    Conflict,
    Forbidden,
    SpaceMismatch,
    StoreUnavailable,
    StoreUnsupported,
    ViewDamaged,
    WhimbrelError,
)
from whimbrel.filters import OPERATORS, Filter
from whimbrel.stores.base import OTHER_SPACE, REBUILD, Metric, Reach, Records, Store, StoreInfo
from whimbrel.stores.batches import Batches
from whimbrel.stores.chroma import rows
from whimbrel.stores.chroma.backend import ELSEWHERE, FORMAT_KEY, SPACE_KEY, Backend, Collection, UnknownId
from whimbrel.stores.chroma.embedded import EmbeddedBackend
from whimbrel.stores.chroma.metadata import Shapes, encode
from whimbrel.stores.chroma.nearest import nearest
from whimbrel.stores.chroma.server import ServerBackend
from whimbrel.stores.chroma.uri import parse_server
from whimbrel.stores.records import checked_query, writable

FORMAT = 1
MAX_BATCH_ROWS = 5_461
"""Chroma's: SQLite's variables by six. A server says its own."""

_POSITION = "whimbrel:position"
_SCAN_ROWS = 1_000
"""Of a batch of a scan: several pages, whose vectors are small once they are no digits any more."""


class ChromaStore(Store):
    """The collection `name` of the Chroma that `uri` names: `chroma:PATH`, `chroma+http://...`, `chroma+https://...`.

    The score is `max(0, 1 - d)`, d Chroma's cosine distance. Chroma keeps vectors at length 1, so that one comes back
    with components up to 1e-6 off. Raises what `Backend` does, `SpaceMismatch` when the collection has vectors of
    another metric, space or number of dimensions, and `StoreUnsupported` when a newer Whimbrel made it.
    """

    def __init__(
        self, uri: str, name: str, space: Space, *, base: Path, read_only: bool = False, reach: Reach | None = None
    ) -> None:
        """`base`: the folder that a relative PATH is under."""
        self._name = name
        self._space = space
        self._read_only = read_only
        self._backend = open_backend(uri, base, reach or Reach())
        self._collection: Collection | None = None
        self._opening = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._batches: Batches | None = None

    # --- the collection itself ---------------------------------------------------------------------------------------

    async def create(self) -> None:
        self._check_writable()
        about = {FORMAT_KEY: FORMAT, SPACE_KEY: self._space.key}
        self._collection = await self._backend.create(self._name, about)

    async def exists(self) -> bool:
        return await self._backend.find(self._name) is not None

    async def drop(self) -> None:
        self._check_writable()
        found = await self._backend.find(self._name)
        if found is not None:
            self._check_ours(found)
            await rows.delete_arrays(self._backend, found)
            await self._backend.drop(found)
        await self.close()

    async def close(self) -> None:
        self._collection = None
        await self._backend.close()

    def describe(self) -> StoreInfo:
        return StoreInfo(
            name="chroma",
            metric=Metric.COSINE,
            dimensions=self._space.dimensions,
            single_process=self._backend.single_process,
            filter_operators=OPERATORS,
            max_batch_rows=MAX_BATCH_ROWS,
            exact_vectors=False,
            cannot=[
                "data and position in one commit",
                "a read of one version while others write",
                "vectors kept bit for bit: each is brought to length 1",
                "vectors of deleted rows written out of the index before it is built again",
                *(() if self._backend.single_process else ["deleted rows written out of the files on request"]),
            ],
        )

    async def count(self) -> int:
        return await self._backend.count(await self._open())

    async def position(self) -> Position | None:
        stored = (await self._look()).metadata.get(_POSITION)
        return Position(*json.loads(stored)) if stored else None

    async def set_position(self, position: Position) -> None:
        """A commit of its own, after the data's: a process killed between the two leaves a position behind the data,
        and the batch is applied again, which changes nothing."""
        self._check_writable()
        async with self._writing:
            collection = await self._look()
            stored = json.dumps([position.epoch, position.position, position.stamp])
            await self._backend.describe(collection, {**collection.metadata, _POSITION: stored})

    # --- writing -----------------------------------------------------------------------------------------------------

    async def upsert(self, records: Records, *, new: bool = False) -> None:
        self._check_writable()
        if not len(records):
            return
        records = writable(records, self._space.dimensions)
        async with self._writing:
            await self._open()
            if self._batches is None:
                self._batches = Batches(await self._backend.max_rows(), vector_bytes=6)
            await self._batches.write(records, self._write)

    async def delete(self, ids: Sequence[str]) -> None:
        self._check_writable()
        collection = await self._open()
        async with self._writing:
            for some in rows.pages(sorted({rows.to_chroma(id_) for id_ in ids}), MAX_BATCH_ROWS):
                await self._backend.delete(collection, some)

    async def maintain(self, *, full: bool = False) -> None:
        """Chroma keeps its index with each write."""
        self._check_writable()

    async def erase(self, *, grace_s: float) -> None:
        """In a folder: Chroma's log, its word index and the free pages of its file are written out. The vectors of
        deleted rows stay in the index file until the view is built again; behind a server, all of it does until
        `chroma vacuum` is run there."""
        self._check_writable()
        async with self._writing:
            await self._backend.erase()

    # --- reading -----------------------------------------------------------------------------------------------------

    async def fetch(self, ids: Sequence[str]) -> Records:
        collection = await self._open()
        found = [await self._rows(collection, some) for some in rows.pages([*dict.fromkeys(ids)], rows.PAGE_ROWS)]
        return Records.joined(found, self._space.dimensions)

    async def scan(self, batch: int = 5_000) -> AsyncIterator[Records]:
        """By a list of the ids taken first: Chroma's offsets shift when rows are deleted meanwhile. A row that comes
        later is not in it, one that goes meanwhile is left out. Two pages are on their way at a time."""
        collection = await self._open()
        waiting: deque[asyncio.Task[Records]] = deque()
        came: list[Records] = []
        pages = iter(rows.pages(await self.ids(), min(batch, rows.PAGE_ROWS)))
        try:
            while True:
                for page in islice(pages, 2 - len(waiting)):
                    waiting.append(asyncio.create_task(self._rows(collection, page)))
                if not waiting:
                    break
                came.append(await waiting.popleft())
                if sum(map(len, came)) + rows.PAGE_ROWS > min(batch, _SCAN_ROWS):
                    joined, came = Records.joined(came, self._space.dimensions), []
                    if len(joined):
                        yield joined
            if len(joined := Records.joined(came, self._space.dimensions)):
                yield joined
        finally:
            for task in waiting:
                task.cancel()

    async def ids(self) -> list[str]:
        return list(map(rows.from_chroma, (await rows.get(self._backend, await self._open())).ids))

    async def search(
        self, vector: npt.NDArray[np.float32], k: int, where: Filter | None = None, *, ids: Sequence[str] | None = None
    ) -> Matches:
        vector = checked_query(vector, self._space.dimensions)
        if k <= 0 or (ids is not None and not ids):
            return Matches([], np.zeros(0, np.float32))
        among = None if ids is None else [rows.to_chroma(id_) for id_ in dict.fromkeys(ids)]
        collection = await self._open()
        for attempt in range(20):
            try:
                if where is None:
                    return await self._nearest(collection, vector, k, None, among)
                # Which values there are may have changed since: look meanwhile, and ask again if so.
                found, latest = await asyncio.gather(self._nearest(collection, vector, k, where, among), self._look())
                if Shapes.read(latest.metadata) == Shapes.read(collection.metadata):
                    return found
                collection = latest
            except UnknownId:  # deleted since they were looked up
                await asyncio.sleep(0.02 * attempt)
        raise StoreUnavailable(f"{self._where()}: rows are deleted faster than they are searched.", "Try again.")

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _nearest(
        self,
        collection: Collection,
        vector: npt.NDArray[np.float32],
        k: int,
        where: Filter | None,
        among: Sequence[str] | None,
    ) -> Matches:
        return await nearest(self._backend, collection, vector, k, where, self._shapes(collection), among)

    async def _rows(self, collection: Collection, ids: Sequence[str]) -> Records:
        return await rows.read(self._backend, collection, ids, self._space.dimensions)

    async def _write(self, batch: Records) -> None:
        collection = await self._open()
        metadata = encode(batch.metadata)
        shapes = Shapes.read(collection.metadata)
        more = shapes.with_(metadata)
        if more is not shapes:
            await self._backend.describe(collection, {**collection.metadata, **more.said()})
            collection = await self._look()
        await rows.write(self._backend, collection, batch, metadata)

    async def _open(self) -> Collection:
        if self._collection is None:
            async with self._opening:
                if self._collection is None:
                    return await self._look()
        return self._collection

    async def _look(self) -> Collection:
        """The collection as it is now. Raises `ViewDamaged` where there is none."""
        known = self._collection
        found = await (self._backend.find(self._name) if known is None else self._backend.again(known))
        self._collection = found
        if found is None:
            raise ViewDamaged(f"There is no collection {self._name!r} in {self._backend.shown}.", REBUILD)
        try:
            self._check(found)
        except WhimbrelError:
            self._collection = None
            raise
        return found

    def _shapes(self, collection: Collection) -> Shapes:
        """Of a collection of another program, nothing is known."""
        return Shapes.read(collection.metadata) if FORMAT_KEY in collection.metadata else Shapes(any=True)

    def _check(self, found: Collection) -> None:
        if found.metric != "cosine":
            raise SpaceMismatch(
                f"{self._where()} has the metric {found.metric!r}; its view needs 'cosine'. Nothing was changed.",
                ELSEWHERE,
            )
        if found.dimensions not in (None, self._space.dimensions):
            raise SpaceMismatch(
                f"{self._where()} holds vectors of {found.dimensions} dimensions; its view's space has "
                f"{self._space.dimensions}.",
                OTHER_SPACE,
            )
        key = found.metadata.get(SPACE_KEY, self._space.key)
        if key != self._space.key:
            raise SpaceMismatch(
                f"{self._where()} holds vectors of the space {key}; its view's is {self._space.key}, of "
                f"{self._space.model}.",
                OTHER_SPACE,
            )
        if int(found.metadata.get(FORMAT_KEY, FORMAT)) > FORMAT:
            raise StoreUnsupported(
                f"{self._where()} was written by a newer version of Whimbrel. Nothing was changed.",
                "Update Whimbrel here.",
            )
        if not self._read_only:
            self._check_ours(found)

    def _check_ours(self, found: Collection) -> None:
        if FORMAT_KEY not in found.metadata:
            raise Conflict(
                f"{self._where()} was made by another program. Nothing was changed.",
                ELSEWHERE,
            )

    def _check_writable(self) -> None:
        if self._read_only:
            raise Forbidden(f"{self._where()} was opened to be read only. Nothing was written.")

    def _where(self) -> str:
        return f"Collection {self._name!r} in {self._backend.shown}"


def open_backend(uri: str, base: Path, reach: Reach) -> Backend:
    """What `chroma:PATH`, `chroma+http://...` or `chroma+https://...` names. Raises `ConfigError`."""
    if uri.startswith("chroma:"):
        return EmbeddedBackend(base / Path(uri.removeprefix("chroma:") or "chroma").expanduser())
    return ServerBackend(parse_server(uri), reach)
