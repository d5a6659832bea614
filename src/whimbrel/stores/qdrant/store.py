"""The store: one Qdrant collection holding one view."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Matches, Position, Space
from whimbrel.errors import (
    BadFilter,
    Conflict,
    Forbidden,
    RowRefused,
    SpaceMismatch,
    StoreRefused,
    StoreUnavailable,
    StoreUnsupported,
    ViewDamaged,
    WhimbrelError,
)
from whimbrel.filters import OPERATORS, Filter
from whimbrel.stores.base import DENSE, OTHER_SPACE, REBUILD, Metric, Reach, Records, Store, StoreInfo
from whimbrel.stores.batches import Batches
from whimbrel.stores.qdrant import indexes, rows
from whimbrel.stores.qdrant import where as filters
from whimbrel.stores.qdrant.backend import open_backend
from whimbrel.stores.qdrant.folder import ELSEWHERE
from whimbrel.stores.qdrant.nearest import nearest
from whimbrel.stores.qdrant.payload import ID, Shapes, encode
from whimbrel.stores.qdrant.rules import MARKER, MAX_DIMENSIONS, MAX_REQUEST_BYTES, check_name, to_point
from whimbrel.stores.records import checked_query, writable

FORMAT = 1
_MARK, _FORMAT, _SPACE, _POSITION = "whimbrel", "format", "space", "position"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the collection."""

    about: Mapping[str, Any]
    """The payload of its marker."""
    shapes: Shapes


class QdrantStore(Store):
    """The collection `name` of the Qdrant that `uri` names: `qdrant:PATH`, `qdrant+http://...`, `qdrant+https://...`.

    The score is `max(0, c)`, c Qdrant's cosine similarity. Qdrant keeps vectors at length 1, so that one comes back
    with components up to 1e-6 off. What says of the collection that it is ours lies in a point of its own without a
    vector. Raises `SpaceMismatch` when the collection has vectors of another metric, space or number of dimensions,
    `Conflict` for one that another program made, and `StoreUnsupported` when a newer Whimbrel made it.
    """

    def __init__(
        self, uri: str, name: str, space: Space, *, base: Path, read_only: bool = False, reach: Reach | None = None
    ) -> None:
        """`base`: the folder that a relative PATH is under."""
        self._name = name
        self._space = space
        self._read_only = read_only
        self._backend = open_backend(uri, base, reach or Reach())
        self._known: Known | None = None
        self._opening = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._batches = Batches(rows.WRITE_ROWS, vector_bytes=13)
        self._indexed: set[str] = set()

    # --- the collection itself ---------------------------------------------------------------------------------------

    async def create(self) -> None:
        self._check_writable()
        check_name(self._name)
        if self._space.dimensions > MAX_DIMENSIONS:
            raise StoreRefused(
                f"Qdrant takes vectors of at most {MAX_DIMENSIONS:,} dimensions; the space has "
                f"{self._space.dimensions:,}. Nothing was made.",
                "Take another store, or a model of fewer dimensions.",
            )
        from qdrant_client import models

        config = {DENSE: models.VectorParams(size=self._space.dimensions, distance=models.Distance.COSINE)}
        if not await self._is_half_made():
            await self._backend.do(lambda client: client.create_collection(self._name, vectors_config=config))
            await self._backend.made(self._name)
        about = {_MARK: True, _FORMAT: FORMAT, _SPACE: self._space.key}
        await self._backend.do(lambda client: client.upsert(self._name, points=[rows.marker(about)], wait=True))
        self._indexed = set()
        await indexes.create(self._backend, self._name)
        await self._look()

    async def exists(self) -> bool:
        return await self._is_collection() and not await self._is_half_made()

    async def drop(self) -> None:
        self._check_writable()
        if await self._is_collection():
            about = await self._marker()
            if about is None and not await self._is_half_made():
                raise self._not_ours()
            await self._check_aliases()
            await self._backend.do(lambda client: client.delete_collection(self._name))
        await self.close()

    async def close(self) -> None:
        self._known = None
        await self._backend.close()

    def describe(self) -> StoreInfo:
        local = self._backend.single_process
        return StoreInfo(
            name="qdrant",
            metric=Metric.COSINE,
            dimensions=self._space.dimensions,
            single_process=local,
            filter_operators=OPERATORS,
            max_dimensions=MAX_DIMENSIONS,
            max_batch_rows=rows.WRITE_ROWS,
            max_batch_bytes=MAX_REQUEST_BYTES,
            exact_vectors=False,
            cannot=[
                "data and position in one commit",
                "a read of one version while others write",
                "vectors kept bit for bit: each is brought to length 1",
                "an order of strings: such a filter goes through ids from the catalog",
                *(["an index: local mode compares all rows, and holds them in memory"] if local else []),
                *([] if local else ["deleted rows written out of the files on request"]),
            ],
        )

    def answers(self, where: Filter) -> bool:
        return filters.answers(where)

    async def count(self) -> int:
        await self._open()
        answer = await self._backend.do(lambda client: client.count(self._name, exact=True))
        return int(answer.count) - 1  # the marker

    async def position(self) -> Position | None:
        stored = (await self._look()).about.get(_POSITION)
        return Position(*json.loads(stored)) if stored else None

    async def set_position(self, position: Position) -> None:
        """A write of its own, after the data's and in the same log: a process killed between the two leaves a position
        behind the data, and the batch is applied again, which changes nothing."""
        self._check_writable()
        await self._open()
        stored = json.dumps([position.epoch, position.position, position.stamp])
        await self._say({_POSITION: stored})

    # --- writing -----------------------------------------------------------------------------------------------------

    async def upsert(self, records: Records, *, new: bool = False) -> None:
        self._check_writable()
        await self._open()
        if not len(records):
            return
        records = writable(records, self._space.dimensions)
        self._check_points(records.ids)
        async with self._writing:
            await self._batches.write(records, self._write)

    async def delete(self, ids: Sequence[str]) -> None:
        self._check_writable()
        await self._open()
        async with self._writing:
            for some in rows.pages(sorted(set(map(to_point, ids))), rows.IDS_PER_CALL):
                await rows.delete(self._backend, self._name, some)

    async def begin_bulk(self) -> None:
        """A server's index is left until the end."""
        self._check_writable()
        known = await self._look()
        if not self._backend.single_process and indexes.HELD not in known.about:
            await self._say({indexes.HELD: await indexes.threshold(self._backend, self._name)})
            await indexes.set_threshold(self._backend, self._name, 0)

    async def end_bulk(self) -> None:
        self._check_writable()
        known = await self._look()
        if indexes.HELD in known.about:
            await indexes.set_threshold(self._backend, self._name, known.about[indexes.HELD])
            await self._backend.do(
                lambda client: client.delete_payload(self._name, keys=[indexes.HELD], points=[MARKER], wait=True)
            )
            await indexes.ready(self._backend, self._name)
            await self._look()

    async def maintain(self, *, full: bool = False) -> None:
        """A server keeps its index by itself. `full`: wait until it has."""
        self._check_writable()
        await self._open()
        if full and not self._backend.single_process:
            await indexes.ready(self._backend, self._name)

    async def erase(self, *, grace_s: float) -> None:
        """In a folder, the free pages of its files are written out. A server removes deleted rows from its segments
        when there are enough of them, at its own time."""
        self._check_writable()
        await self._open()
        async with self._writing:
            await self._backend.erase()

    # --- reading -----------------------------------------------------------------------------------------------------

    async def fetch(self, ids: Sequence[str]) -> Records:
        await self._open()
        pages = rows.pages([*dict.fromkeys(ids)], rows.PAGE_ROWS)
        found = [await rows.read(self._backend, self._name, page, self._space.dimensions) for page in pages]
        return Records.joined(found, self._space.dimensions)

    async def scan(self, batch: int = 5_000) -> AsyncIterator[Records]:
        """In the order of the points' ids, from the last one met: what is written or deleted meanwhile moves
        nothing."""
        await self._open()
        async for page in rows.scroll(self._backend, self._name, min(batch, rows.PAGE_ROWS), whole=True):
            yield rows.records(page, self._space.dimensions)

    async def ids(self) -> list[str]:
        await self._open()
        pages = rows.scroll(self._backend, self._name, rows.IDS_PER_CALL, whole=False)
        return [point.payload[ID] async for page in pages for point in page]

    async def search(
        self, vector: npt.NDArray[np.float32], k: int, where: Filter | None = None, *, ids: Sequence[str] | None = None
    ) -> Matches:
        vector = checked_query(vector, self._space.dimensions)
        if where is not None and not filters.answers(where):
            raise BadFilter(
                "Qdrant has no order of strings, and compares a field with few numbers at once.",
                "Such a filter goes through ids from the catalog.",
            )
        known = await self._open()
        if k <= 0 or (ids is not None and not ids):
            return Matches([], np.zeros(0, np.float32))
        among = None if ids is None else list(dict.fromkeys(ids))
        for _ in range(20):
            if where is None:
                return await self._nearest(vector, k, None, known, among)
            # Which paths are odd may have changed since: look meanwhile, and ask again if so.
            found, latest = await asyncio.gather(self._nearest(vector, k, where, known, among), self._look())
            if latest.shapes == known.shapes:
                return found
            known = latest
        raise StoreUnavailable(f"{self._where()} is written to faster than it is searched.", "Try again.")

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _nearest(
        self,
        vector: npt.NDArray[np.float32],
        k: int,
        where: Filter | None,
        known: Known,
        among: Sequence[str] | None,
    ) -> Matches:
        return await nearest(self._backend, self._name, vector, k, where, known.shapes, among)

    async def _write(self, batch: Records) -> None:
        known = await self._open()
        payloads = encode(batch.ids, batch.texts, batch.metadata)
        more = known.shapes.with_(payloads)
        if more is not known.shapes:
            await self._say(more.said())
        if not self._backend.single_process:
            await indexes.add(self._backend, self._name, payloads, self._indexed)
        elif len(batch) == 1 and self._batches.weights(batch)[0] > MAX_REQUEST_BYTES:
            raise RowRefused.of(
                batch.ids[0],
                f"The row {batch.ids[0]!r} is larger than a Qdrant server's 32 MiB. Rows before it are there.",
                "Cut the documents into smaller chunks.",
            )
        await rows.write(self._backend, self._name, batch, payloads)

    async def _say(self, about: Mapping[str, Any]) -> None:
        """Keys of the marker; the others stay."""
        await self._backend.do(
            lambda client: client.set_payload(self._name, payload=dict(about), points=[MARKER], wait=True)
        )
        await self._look()

    async def _open(self) -> Known:
        if self._known is None:
            async with self._opening:
                if self._known is None:
                    return await self._look()
        return self._known

    async def _look(self) -> Known:
        """The collection as it is now. Raises `ViewDamaged` where there is none."""
        about = None
        first = self._known is None
        if not first or await self._is_collection():
            about = await self._marker()
            if about is None and not await self._is_half_made():
                raise self._not_ours()
        if about is None:
            self._known = None
            raise ViewDamaged(f"There is no collection {self._name!r} in {self._backend.shown}.", REBUILD)
        try:
            self._check(about)
            if first:
                await self._check_vectors()
        except WhimbrelError:
            self._known = None
            raise
        self._known = Known(about, Shapes.read(about))
        return self._known

    async def _is_collection(self) -> bool:
        if not await self._backend.is_there():
            return False
        return bool(await self._backend.do(lambda client: client.collection_exists(self._name)))

    async def _marker(self) -> Mapping[str, Any] | None:
        found = await self._backend.do(lambda client: client.retrieve(self._name, ids=[MARKER], with_payload=True))
        about = found[0].payload if found else None
        return about if about and about.get(_MARK) else None

    async def _is_half_made(self) -> bool:
        """Whether a process ended between making the collection and marking it."""
        if not await self._is_collection() or await self._marker() is not None:
            return False
        info = await self._backend.do(lambda client: client.get_collection(self._name))
        vectors = info.config.params.vectors
        counted = await self._backend.do(lambda client: client.count(self._name, exact=True))
        ours = isinstance(vectors, dict) and set(vectors) == {DENSE} and not info.config.params.sparse_vectors
        return ours and counted.count == 0 and vectors[DENSE].size == self._space.dimensions

    def _check(self, about: Mapping[str, Any]) -> None:
        if about[_SPACE] != self._space.key:
            raise SpaceMismatch(
                f"{self._where()} holds vectors of the space {about[_SPACE]}; its view's is {self._space.key}, of "
                f"{self._space.model}.",
                OTHER_SPACE,
            )
        if int(about[_FORMAT]) > FORMAT:
            raise StoreUnsupported(
                f"{self._where()} was written by a newer version of Whimbrel. Nothing was changed.",
                "Update Whimbrel here.",
            )

    async def _check_vectors(self) -> None:
        info = await self._backend.do(lambda client: client.get_collection(self._name))
        vectors = info.config.params.vectors
        dense = vectors.get(DENSE) if isinstance(vectors, dict) else None
        if dense is None or str(dense.distance.value) != "Cosine":
            raise SpaceMismatch(f"{self._where()} has no vectors {DENSE!r} with the metric cosine.", ELSEWHERE)
        if dense.size != self._space.dimensions:
            raise SpaceMismatch(
                f"{self._where()} holds vectors of {dense.size} dimensions; its view's space has "
                f"{self._space.dimensions}.",
                OTHER_SPACE,
            )

    async def _check_aliases(self) -> None:
        found = await self._backend.do(lambda client: client.get_aliases())
        if any(one.alias_name == self._name for one in found.aliases):
            raise Conflict(f"{self._where()} is an alias of another collection. Nothing was removed.", ELSEWHERE)
        to_it = sorted(one.alias_name for one in found.aliases if one.collection_name == self._name)
        if to_it:
            raise Conflict(
                f"{self._where()} has the alias {to_it[0]!r}, which another program may use. Nothing was removed.",
                "Remove the alias, or let it name another collection; then it can be dropped.",
            )

    def _check_points(self, ids: Sequence[str]) -> None:
        """Raises `RowRefused` for a row whose point would be another's."""
        points: dict[str, str] = {}
        for id_ in ids:
            other = points.setdefault(to_point(id_), id_)
            if other != id_:
                raise RowRefused.of(
                    id_, f"The ids {id_!r} and {other!r} have one point in Qdrant. Nothing was written."
                )

    def _not_ours(self) -> Conflict:
        return Conflict(f"{self._where()} was made by another program. Nothing was changed.", ELSEWHERE)

    def _check_writable(self) -> None:
        if self._read_only:
            raise Forbidden(f"{self._where()} was opened to be read only. Nothing was written.")

    def _where(self) -> str:
        return f"Collection {self._name!r} in {self._backend.shown}"
