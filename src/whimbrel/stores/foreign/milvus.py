"""Milvus: each collection of a server's database, of a file of Milvus Lite, or of one of Milvus Lite 2 (read only).

Opening a file of Milvus Lite writes to it. So a source in a file is read from a copy of it, which is taken while no
program has it open; the file itself is only ever read.

A collection that a copy makes has the columns of the source's names, dynamic fields for what Milvus can say, and arrays
of strings for the rest of a long text (`whimbrel_text`) and for what the dynamic fields cannot say (`whimbrel_more`).
"""

from __future__ import annotations

import asyncio
import fcntl
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from whimbrel.errors import AlreadyOwned, NotFound
from whimbrel.stores.base import Reach
from whimbrel.stores.extras import check_client
from whimbrel.stores.folders import user_of
from whimbrel.stores.foreign import chroma_files
from whimbrel.stores.foreign.absent import absent
from whimbrel.stores.foreign.base import Chosen, Database, Fetched, Id, Sink, Source, Table
from whimbrel.stores.foreign.milvus_collections import (
    Collections,
    Key,
    LiteCollections,
    ServerCollections,
    Shape,
    among,
)
from whimbrel.stores.foreign.milvus_layout import Layout
from whimbrel.stores.foreign.milvus_old import OldCollections, is_old
from whimbrel.stores.metrics import Metric, measure, scores
from whimbrel.stores.milvus.backend import POSITION
from whimbrel.stores.milvus.folder import LOCK
from whimbrel.stores.milvus.uri import parse_server

T = TypeVar("T")

_SAMPLE, READ_ROWS = 100, 1_000


class MilvusDatabase(Database):
    describes_quickly = False

    def __init__(self, open_: Callable[[], Collections], shown: str) -> None:
        """`open_`: called once, in a thread."""
        self._open = open_
        self._opened: Collections | None = None
        self._turn = asyncio.Lock()
        self.shown = f"Milvus at {shown}"

    async def collections(self) -> Sequence[str]:
        return sorted(await self.do(lambda milvus: milvus.names()))

    def source(self, name: str, chosen: Chosen) -> Source:
        return MilvusSource(self, name, chosen)

    def sink(self, name: str) -> Sink:
        from whimbrel.stores.foreign.milvus_sink import MilvusSink

        return MilvusSink(self, name)

    async def do(self, work: Callable[[Collections], T]) -> T:
        async with self._turn:
            if self._opened is None:
                self._opened = await asyncio.to_thread(self._open)
        opened = self._opened
        return await asyncio.to_thread(lambda: work(opened))

    @property
    def local(self) -> bool:
        """Once it has been asked for anything."""
        return self._opened is not None and self._opened.local

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await asyncio.to_thread(opened.close)


class MilvusSource(Source):
    def __init__(self, database: MilvusDatabase, name: str, chosen: Chosen, layout: Layout | None = None) -> None:
        """`layout`: where it is known already."""
        self._database = database
        self._name = name
        self._chosen = chosen
        self._layout = layout

    async def describe(self) -> Table:
        shape = await self._database.do(lambda milvus: milvus.shape(self._name))
        if shape is None:
            there = await self._database.collections() if self._database.local else None
            raise absent("collection", self._name, self._database.shown, there)
        where = f"The collection {self._name!r} in {self._database.shown}"
        sample = await self._database.do(lambda milvus: _sample(milvus, shape))
        self._layout = Layout.of(shape, self._chosen, sample, where)
        return self._layout.table(self._chosen)

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        layout = await self._known()
        keys = await self._database.do(lambda milvus: milvus.keys(layout.shape))
        while (some := await asyncio.to_thread(next, keys, None)) is not None:
            found = [layout.id_of(key) for key in some if not (layout.view and key == POSITION)]
            if found:
                yield found

    async def fetch(self, ids: Sequence[Id], places: Sequence[int] | None = None) -> Fetched:
        layout = await self._known()
        parts = []
        for start in range(0, len(ids), READ_ROWS):
            keys = [layout.key_of(one) for one in ids[start : start + READ_ROWS]]
            parts += await self._database.do(lambda milvus, keys=keys: milvus.rows(layout.shape, keys))  # type: ignore[misc]
        return layout.fetched(parts)

    @property
    def indexed(self) -> bool:
        return not self._database.local  # comparing what one holds is as quick, and leaves the file to its program

    async def nearest(
        self, vector: npt.NDArray[np.float32], k: int, among: Sequence[Id] | None = None
    ) -> Sequence[tuple[Id, float]]:
        """The k nearest rows by the collection's own index, best first, each with its score 0..1 by
        `whimbrel.stores.metrics`; `among`: only of these ids."""
        layout = await self._known()
        keys = None if among is None else [layout.key_of(one) for one in among]
        found = await self._database.do(lambda milvus: _nearest(milvus, layout, vector, k, keys))
        rows = (await self.fetch([layout.id_of(key) for key in found if key != POSITION])).rows
        if not len(rows):
            return []
        metric = layout.metric or Metric.COSINE
        normalised = bool(np.allclose(np.linalg.norm(rows.vectors, axis=1), 1.0, atol=1e-3))
        measured = scores(metric, measure(metric, rows.vectors, vector), normalised=normalised)
        best = sorted(zip(rows.ids, measured.tolist(), strict=True), key=lambda hit: (-hit[1], str(hit[0])))
        return best[:k]

    async def close(self) -> None:
        self._layout = None

    async def _known(self) -> Layout:
        if self._layout is None:
            await self.describe()
        assert self._layout is not None
        return self._layout


def _sample(milvus: Collections, shape: Shape) -> list[dict[str, Any]]:
    """Some rows: what their dynamic fields are called."""
    if not shape.dynamic:
        return []
    keys = [key for key in milvus.some_keys(shape, _SAMPLE) if key != POSITION]
    return milvus.rows(shape, keys) if keys else []


def _nearest(
    milvus: Collections, layout: Layout, vector: npt.NDArray[np.float32], k: int, keys: Sequence[Key] | None
) -> list[Key]:
    if keys is not None and len(keys) <= READ_ROWS:
        return list(keys)  # as quickly measured as asked for
    if isinstance(milvus, OldCollections) or not layout.vector.metric:
        return list(keys) if keys is not None else [key for some in milvus.keys(layout.shape) for key in some]
    where = "" if keys is None else among(layout.shape, keys)
    return milvus.nearest(layout.shape, layout.vector, vector, k + 1, where)


def opener(rest: str, base: Path, *, scheme: str, scratch: Path | None, reach: Reach) -> MilvusDatabase:
    """`scratch`: where the copy of a file that is a source may lie; None for a target."""
    if scheme != "milvus":
        check_client(scheme)
        server = parse_server(f"{scheme}:{rest}")
        return MilvusDatabase(lambda: ServerCollections(server, reach), server.url)
    path = base / Path(rest or "milvus.db").expanduser()
    if not is_old(path):
        check_client(scheme)

    def open_() -> Collections:
        if is_old(path):
            return OldCollections(path)
        if scratch is None:
            return LiteCollections(path)
        return LiteCollections(_copied(path, scratch))

    return MilvusDatabase(open_, str(path))


def _copied(path: Path, scratch: Path) -> Path:
    """A copy of the files of Milvus Lite, taken once of the same files, while no program has them open."""
    if not (path / "collections").is_dir():
        raise NotFound(f"There is no Milvus Lite database {path}.", "Check the path after `milvus:`.")
    with _unused(path):
        copy, note = scratch / "files.db", scratch / "version"
        now = chroma_files.version(path)
        if not note.is_file() or note.read_text() != now:
            shutil.rmtree(scratch, ignore_errors=True)
            chroma_files.copy_files(path, copy)
            note.write_text(now)
        return copy


@contextmanager
def _unused(path: Path) -> Iterator[None]:
    """No program may open it meanwhile. Raises `AlreadyOwned` where one has it open."""
    lock = path / LOCK
    with lock.open("rb") if lock.is_file() else nullcontext() as file:
        if file is None or _is_locked(file):
            yield
            return
    who = f"process {user}" if (user := user_of(lock)) else "another process"
    raise AlreadyOwned(
        f"The Milvus Lite database {path} is open in {who}: its files cannot be read as they are now. Nothing was "
        "changed.",
        "Stop that program, and copy again.",
    )


def _is_locked(file: IO[bytes]) -> bool:
    """By us, from now on."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
