"""Chroma: each collection of a folder, or of a server's database.

Opening a folder with chromadb writes to it, and upgrades an old one. So a source in a folder is read from a copy of its
files, which is taken while no program has it open; the folder itself is only ever read. One of Chroma before 0.4 is
read by `whimbrel.stores.foreign.chroma_old`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.errors import BadInput, StoreUnavailable, ViewDamaged
from whimbrel.stores.base import Reach
from whimbrel.stores.chroma.backend import Collection, UnknownId
from whimbrel.stores.chroma.metadata import OURS
from whimbrel.stores.chroma.rows import from_chroma, present
from whimbrel.stores.chroma.uri import parse_server
from whimbrel.stores.extras import check_client
from whimbrel.stores.foreign.absent import absent
from whimbrel.stores.foreign.base import MARK, Chosen, Database, Fetched, Id, IdKind, Mark, Rows, Sink, Source, Table
from whimbrel.stores.foreign.chroma_backends import AtServer, Everything, InFolder, Whole
from whimbrel.stores.foreign.chroma_files import Snapshot
from whimbrel.stores.foreign.chroma_old import OldFolder, is_old
from whimbrel.stores.foreign.chroma_rows import FROM, key_of, read_metadata
from whimbrel.stores.foreign.layout import not_chosen
from whimbrel.stores.metrics import Metric, scores

_READ_ROWS = 2_000


class ChromaDatabase(Database):
    def __init__(self, backend: Everything, snapshot: Snapshot | None = None, folder: Path | None = None) -> None:
        """`snapshot`: of the folder, where that is a source. `folder`: where that is a target."""
        self.folder = folder
        self.backend = backend
        self.snapshot = snapshot
        self.shown = f"Chroma at {snapshot.folder if snapshot else backend.shown}"

    async def collections(self) -> Sequence[str]:
        await self.ready()
        return sorted(await self.backend.names())

    def source(self, name: str, chosen: Chosen) -> Source:
        not_chosen(chosen, self.shown, "id", "vector", "metric")
        return ChromaSource(self, name)

    def sink(self, name: str) -> Sink:
        from whimbrel.stores.foreign.chroma_sink import ChromaSink

        return ChromaSink(self, name)

    async def close(self) -> None:
        await self.backend.close()

    async def ready(self) -> None:
        if self.snapshot is not None:
            await asyncio.to_thread(self.snapshot.take)
            if self.copied is None:
                await self._upgraded()
            self.copied = self.snapshot.copy

    async def _upgraded(self) -> None:
        """Opening the copy of an older folder upgrades it, and a query that was prepared before then fails: of some
        thirty openings with chromadb 1.5.9, one."""
        for _ in range(2):
            try:
                await self.backend.names()
                return
            except ViewDamaged:
                await self.backend.close()
        await self.backend.names()

    async def find(self, name: str) -> Collection | None:
        await self.ready()
        return await self.backend.find(name)


class ChromaSource(Source):
    def __init__(self, database: ChromaDatabase, name: str) -> None:
        self._database = database
        self._backend = database.backend
        self._name = name
        self._collection: Collection | None = None
        self._kind = IdKind.STR

    async def describe(self) -> Table:
        found = await self._database.find(self._name)
        if found is None:
            raise absent("collection", self._name, self._database.shown, await self._backend.names())
        if found.metric not in FROM:
            raise BadInput(f"The collection {self._name!r} has the metric {found.metric!r}, which is not known here.")
        mark = Mark.read(found.metadata.get(MARK))
        self._collection, self._kind = found, mark.ids if mark else IdKind.STR
        about = {key: value for key, value in found.metadata.items() if not key.startswith(OURS)}
        return Table(
            self._name,
            await self._dimensions(found),
            FROM[found.metric],
            self._kind,
            has_text=mark.text if mark else True,
            about=mark.about if mark else about,
            identity=f"chroma {found.id}",
            version=await self.version(),
        )

    async def version(self) -> str | None:
        """Of a folder: of its files. A server does not tell."""
        snapshot = self._database.snapshot
        return await asyncio.to_thread(snapshot.version) if snapshot else None

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        """All at once: Chroma's offsets shift when rows are deleted meanwhile."""
        collection = await self._known()
        found = await self._backend.get(collection)
        yield [self._from(id_) for id_ in found.ids]

    async def fetch(self, ids: Sequence[Id], places: Sequence[int] | None = None) -> Fetched:
        collection = await self._known()
        parts = []
        for start in range(0, len(ids), _READ_ROWS):
            found = await self._read(collection, [key_of(self._kind, one) for one in ids[start : start + _READ_ROWS]])
            parts.append(found)
        whole = [part for part in parts if part.ids]
        rows = Rows(
            [self._from(id_) for part in whole for id_ in part.ids],
            np.concatenate([part.vectors for part in whole]) if whole else np.zeros((0, 0), np.float32),
            [text for part in whole for text in part.texts],
            [read_metadata(one, uri) for part in whole for one, uri in zip(part.metadata, part.uris, strict=True)],
        )
        return Fetched(rows)

    async def nearest(
        self, vector: npt.NDArray[np.float32], k: int, among: Sequence[Id] | None = None
    ) -> Sequence[tuple[Id, float]]:
        collection = await self._known()
        wanted = None if among is None else [key_of(self._kind, one) for one in among]
        for attempt in range(20):
            some = wanted if wanted is None else await present(self._backend, collection, wanted)
            if k <= 0 or (some is not None and not some):
                return []
            try:
                found = await self._backend.query(collection, vector, k, ids=some)
                break
            except UnknownId:  # deleted within the query
                await asyncio.sleep(0.02 * attempt)
        else:
            raise StoreUnavailable(f"{self._database.shown}: rows are deleted faster than they are read.", "Try again.")
        metric = FROM[collection.metric]
        distances = np.array(found.distances, np.float64)
        measured = np.sqrt(np.maximum(distances, 0.0)) if metric is Metric.L2 else 1.0 - distances
        known = scores(metric, measured, normalised=self.normalised)
        return list(zip([self._from(id_) for id_ in found.ids], known.tolist(), strict=True))

    async def close(self) -> None:
        self._collection = None

    async def _read(self, collection: Collection, ids: Sequence[str]) -> Whole:
        """A row that is deleted within the read fails it: it is asked again."""
        for attempt in range(20):
            try:
                return await self._backend.read(collection, ids)
            except UnknownId:
                await asyncio.sleep(0.02 * attempt)
        raise StoreUnavailable(f"{self._database.shown}: rows are deleted faster than they are read.", "Try again.")

    async def _dimensions(self, found: Collection) -> int:
        if found.dimensions is not None:
            return found.dimensions
        ids = (await self._backend.get(found)).ids[:1]
        return int((await self._backend.read(found, ids)).vectors.shape[1]) if ids else 0

    async def _known(self) -> Collection:
        if self._collection is None:
            await self.describe()
        assert self._collection is not None
        return self._collection

    def _from(self, id_: str) -> Id:
        return self._kind.parse(from_chroma(id_))


def opener(rest: str, base: Path, *, scheme: str, scratch: Path | None, reach: Reach) -> Database:
    """`scratch`: where the copy of a folder that is a source may lie; None for a target."""
    if scheme != "chroma":
        check_client(scheme)
        return ChromaDatabase(AtServer(parse_server(f"{scheme}:{rest}"), reach))
    folder = base / Path(rest or "chroma").expanduser()
    if is_old(folder):
        return OldFolder(folder)
    check_client(scheme)
    if scratch is None:
        return ChromaDatabase(InFolder(folder), folder=folder)
    snapshot = Snapshot(folder, scratch)
    return ChromaDatabase(InFolder(snapshot.copy), snapshot)
