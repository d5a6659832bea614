"""Reading collections of Qdrant: from the files of a folder, or by the calls of a client."""

from __future__ import annotations

import asyncio
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from whimbrel.errors import ViewDamaged
from whimbrel.stores.foreign.base import IdKind
from whimbrel.stores.foreign.qdrant_points import Config, Point
from whimbrel.stores.qdrant import files
from whimbrel.stores.qdrant.backend import Backend
from whimbrel.stores.qdrant.folder import held, holder, import_qdrant
from whimbrel.stores.qdrant.payload import ID
from whimbrel.stores.qdrant.rules import MARKER

_IDS = 5_000
_FIRST_UUID = "00000000-0000-0000-0000-000000000000"


class Reader(ABC):
    @abstractmethod
    async def names(self) -> Sequence[str]: ...

    @abstractmethod
    async def config(self, name: str) -> Config | None:
        """None where there is no such collection."""

    @abstractmethod
    async def is_view(self, name: str) -> bool:
        """Whether it is a view of ours."""

    @abstractmethod
    async def version(self, name: str) -> str | None: ...

    @abstractmethod
    async def kinds(self, name: str) -> frozenset[IdKind]:
        """Of the points' ids."""

    @abstractmethod
    def ids(self, name: str) -> AsyncIterator[Sequence[Point]]:
        """Every point but a marker of ours, with the id that its payload has."""

    @abstractmethod
    async def sample(self, name: str, rows: int) -> Sequence[Point]:
        """Some, with their payload."""

    @abstractmethod
    async def fetch(self, name: str, points: Sequence[int | str]) -> Sequence[Point]: ...


class FolderReader(Reader):
    """Of the files; at most the numbers of the rows are held."""

    def __init__(self, folder: Path, scratch: Path | None) -> None:
        self._folder = folder
        self._scratch = scratch
        self._indexes: dict[str, Mapping[int | str, tuple[int, str | None]]] = {}
        self._places: dict[str, Path] = {}

    async def names(self) -> Sequence[str]:
        return list(await asyncio.to_thread(self._collections))

    async def config(self, name: str) -> Config | None:
        said = (await asyncio.to_thread(self._collections)).get(name)
        return None if said is None else Config.of(said)

    async def is_view(self, name: str) -> bool:
        return MARKER in await self._index(name)

    async def version(self, name: str) -> str | None:
        def look() -> str:
            places = [self._folder / files.META, files.storage(self._folder, name)]
            stats = [place.stat() for place in places if place.exists()]
            return str([(stat.st_size, stat.st_mtime_ns) for stat in stats])

        return await asyncio.to_thread(look)

    async def kinds(self, name: str) -> frozenset[IdKind]:
        index = await self._index(name)
        return frozenset(IdKind.INT if isinstance(id_, int) else IdKind.UUID for id_ in index)

    async def ids(self, name: str) -> AsyncIterator[Sequence[Point]]:
        page: list[Point] = []
        for id_, (_, row) in (await self._index(name)).items():
            if id_ != MARKER:
                page.append(Point(id_, {} if row is None else {ID: row}))
            if len(page) == _IDS:
                yield page
                page = []
        yield page

    async def sample(self, name: str, rows: int) -> Sequence[Point]:
        return await self.fetch(name, [id_ for id_ in list(await self._index(name))[:rows] if id_ != MARKER])

    async def fetch(self, name: str, points: Sequence[int | str]) -> Sequence[Point]:
        index = await self._index(name)
        numbers = sorted(index[id_][0] for id_ in points if id_ in index)

        def read() -> list[Point]:
            found = files.some(self._place(name), numbers)
            return [Point.of(_spelt(row.id), row.payload, row.vector) for row in found]

        return await asyncio.to_thread(read)

    def _collections(self) -> Mapping[str, Mapping[str, Any]]:
        """Raises `AlreadyOwned` where a program has the folder open."""
        if not self._places and holder(self._folder):
            raise held(self._folder)
        return files.collections(self._folder)

    async def _index(self, name: str) -> Mapping[int | str, tuple[int, str | None]]:
        """The number of each point's row, and the id that its payload has; every row is read, and checked, for it."""
        if name not in self._indexes:
            self._indexes[name] = await asyncio.to_thread(self._read_index, name)
        return self._indexes[name]

    def _read_index(self, name: str) -> Mapping[int | str, tuple[int, str | None]]:
        self._collections()
        place = self._place(name)
        found: dict[int | str, tuple[int, str | None]] = {}
        if not place.is_file():
            raise ViewDamaged(
                f"The file of the collection {name!r} is not there: {place}. Nothing was copied.",
                "Restore the folder. If a Qdrant client before 1.1.7 wrote it (`storage.dbm`), open a copy of it once "
                "with a version that still reads these.",
            )
        for number, row in files.rows(place):
            said = row.payload.get(ID)
            found[_spelt(row.id)] = number, said if isinstance(said, str) else None
        return found

    def _place(self, name: str) -> Path:
        """The collection's file; where a killed program left it half written, a copy in which that is undone."""
        if name not in self._places:
            place = files.storage(self._folder, name)
            left = [place.with_name(place.name + end) for end in ("-journal", "-wal")]
            if self._scratch is not None and any(one.is_file() and one.stat().st_size for one in left):
                copy = files.storage(self._scratch / "files", name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                for one in [place, *left]:
                    if one.is_file():
                        shutil.copyfile(one, copy.with_name(one.name))
                files.recover(copy)
                place = copy
            self._places[name] = place
        return self._places[name]


def _spelt(id_: int | str) -> int | str:
    """A UUID as Qdrant writes it: local mode once took other spellings."""
    return id_ if isinstance(id_, int) else str(UUID(id_))


class ServerReader(Reader):
    """By the calls of a client, of a server or of a folder that this process has open."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._page = 1_000

    async def names(self) -> Sequence[str]:
        import_qdrant()
        found = await self._backend.do(lambda client: client.get_collections())
        return [one.name for one in found.collections]

    async def config(self, name: str) -> Config | None:
        if not await self._backend.is_there():
            return None
        if not await self._backend.do(lambda client: client.collection_exists(name)):
            return None
        info = await self._backend.do(lambda client: client.get_collection(name))
        said = info.config.params.model_dump(mode="json")
        return Config.of({**said, "metadata": getattr(info.config, "metadata", None)})

    async def is_view(self, name: str) -> bool:
        return bool(await self._backend.do(lambda client: client.retrieve(name, ids=[MARKER])))

    async def version(self, name: str) -> str | None:
        return None

    async def kinds(self, name: str) -> frozenset[IdKind]:
        """Integers come before UUIDs."""
        first = await self._scroll(name, 1, None, payload=False, vectors=False)
        uuids = await self._scroll(name, 1, _FIRST_UUID, payload=False, vectors=False)
        found = {IdKind.INT for point in first[0] if isinstance(point.id, int)}
        return frozenset(found | {IdKind.UUID for _ in uuids[0]})

    async def ids(self, name: str) -> AsyncIterator[Sequence[Point]]:
        offset: Any = None
        while True:
            found, offset = await self._scroll(name, _IDS, offset, payload=[ID], vectors=False)
            yield [Point(_plain(one.id), one.payload or {}) for one in found if str(one.id) != MARKER]
            if offset is None:
                return

    async def sample(self, name: str, rows: int) -> Sequence[Point]:
        found, _ = await self._scroll(name, rows, None, payload=True, vectors=False)
        return [Point(_plain(one.id), one.payload or {}) for one in found if str(one.id) != MARKER]

    async def fetch(self, name: str, points: Sequence[int | str]) -> Sequence[Point]:
        found: list[Point] = []
        for start in range(0, len(points), self._page):
            found += await self._retrieve(name, list(points[start : start + self._page]))
        return found

    async def _retrieve(self, name: str, points: list[int | str]) -> list[Point]:
        rows = await self._backend.do(
            lambda client: client.retrieve(name, ids=points, with_payload=True, with_vectors=True)
        )

        def read() -> list[Point]:
            return [Point.of(_plain(one.id), one.payload, one.vector) for one in rows]

        return await asyncio.to_thread(read)

    async def nearest(
        self, name: str, using: str, vector: npt.NDArray[np.float32], k: int, among: Sequence[int | str] | None
    ) -> list[tuple[Point, float]]:
        """Each with what its metric measures, best first."""
        from qdrant_client import models

        within = None if among is None else models.Filter(must=[models.HasIdCondition(has_id=list(among))])
        answer = await self._backend.do(
            lambda client: client.query_points(
                name, query=vector.tolist(), using=using or None, query_filter=within, limit=k, with_payload=[ID]
            )
        )
        return [(Point(_plain(one.id), one.payload or {}), float(one.score)) for one in answer.points]

    async def _scroll(self, name: str, rows: int, offset: Any, *, payload: Any, vectors: bool) -> tuple[list[Any], Any]:
        found = await self._backend.do(
            lambda client: client.scroll(name, limit=rows, offset=offset, with_payload=payload, with_vectors=vectors)
        )
        return list(found[0]), found[1]


def _plain(id_: Any) -> int | str:
    return id_ if isinstance(id_, int) else str(id_)
