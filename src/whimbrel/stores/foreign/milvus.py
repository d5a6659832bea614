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
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from whimbrel.errors import AlreadyOwned, BadInput, Conflict, NotFound, RowRefused
from whimbrel.stores.base import Reach
from whimbrel.stores.envelope import Dialect
from whimbrel.stores.foreign import chroma_files
from whimbrel.stores.foreign.absent import absent
from whimbrel.stores.foreign.base import (
    MARK,
    MORE,
    Chosen,
    Database,
    Fetched,
    Id,
    IdKind,
    Limits,
    Mark,
    Names,
    Rows,
    Sink,
    Source,
    Table,
)
from whimbrel.stores.foreign.layout import text_column, vector_column
from whimbrel.stores.foreign.milvus_collections import (
    Collections,
    Column,
    Key,
    LiteCollections,
    Made,
    ServerCollections,
    Shape,
    among,
)
from whimbrel.stores.foreign.milvus_old import OldCollections, is_old
from whimbrel.stores.foreign.values import as_text, dumps, loads
from whimbrel.stores.metrics import Metric, measure, scores
from whimbrel.stores.milvus import rows as ours
from whimbrel.stores.milvus.backend import ABOUT, FORMAT_KEY, MAX_LENGTH, POSITION
from whimbrel.stores.milvus.uri import parse_server
from whimbrel.stores.milvus.where import PLAIN

T = TypeVar("T")

TEXT_REST, NO_TEXT = "whimbrel_text", "whimbrel_no_text"
_FROM = {"COSINE": Metric.COSINE, "L2": Metric.L2, "IP": Metric.DOT}
_TO = {metric: name for name, metric in _FROM.items()}
_SAMPLE, _READ_ROWS = 100, 1_000
_LOCK = "LOCK"
NAMES = ("id", "vector", "text")


class MilvusDatabase(Database):
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
    def __init__(self, database: MilvusDatabase, name: str, chosen: Chosen) -> None:
        self._database = database
        self._name = name
        self._chosen = chosen
        self._layout: Layout | None = None

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
        for start in range(0, len(ids), _READ_ROWS):
            keys = [layout.key_of(one) for one in ids[start : start + _READ_ROWS]]
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


class Layout:
    """What is what in a collection."""

    def __init__(self, shape: Shape, vector: Column, text: str | None, mark: Mark | None, view: bool) -> None:
        self.shape = shape
        self.vector = vector
        self.text = text
        self.mark = mark
        self.view = view
        """It is a view of Whimbrel's."""
        self.metric = _FROM.get(vector.metric)
        kind = IdKind.INT if shape.key.kind == "INT64" else IdKind.STR
        self.ids = mark.ids if mark else kind
        self._vectors = {one.name for one in shape.columns if "VECTOR" in one.kind}

    @classmethod
    def of(cls, shape: Shape, chosen: Chosen, sample: Sequence[Mapping[str, Any]], where: str) -> Layout:
        said = shape.said()
        mark = Mark.read(said[MARK]) if isinstance(said.get(MARK), str) else None
        view = FORMAT_KEY in (said.get(ABOUT) or {}) if isinstance(said.get(ABOUT), dict) else False
        candidates = {one.name: one for one in shape.columns if one.kind == "FLOAT_VECTOR"}
        if len(candidates) > 1 and not chosen.vector:
            raise BadInput(
                f"{where} has several vectors of each row: {', '.join(candidates)}. Nothing was copied.",
                "Name the one to copy with `--vector NAME`.",
            )
        vector = candidates[vector_column(list(candidates), chosen, where)]
        strings = [one.name for one in shape.columns if one.kind == "VARCHAR" and not one.is_key]
        declared = {one.name for one in shape.columns}
        strings += sorted({key for row in sample for key, value in row.items() if isinstance(value, str)} - declared)
        if chosen.id and chosen.id != shape.key.name:
            raise BadInput(
                f"{where} has the key {shape.key.name!r}; no other column can be the id.", "Leave out `--id`."
            )
        text = strings[0] if mark and strings else text_column(strings, chosen, where)
        return cls(shape, vector, text, mark, view)

    def table(self, chosen: Chosen) -> Table:
        names = Names(self.shape.key.name, self.text or "text", self.vector.name)
        about = self.mark.about if self.mark else {} if self.view else self.shape.said()
        if not about and self.shape.description and not self.mark and not self.view:
            about = {"description": self.shape.description} if not self.shape.said() else self.shape.said()
        return Table(
            self.shape.name,
            self.vector.dimensions,
            chosen.metric or self.metric,
            self.ids,
            names,
            has_text=self.mark.text if self.mark else self.text is not None,
            about=about,
            notes=self._notes(),
            identity=self.shape.identity,
        )

    def _notes(self) -> list[str]:
        if self.view:
            return []
        others = sorted(self._vectors - {self.vector.name})
        notes = [f"the vectors {name!r} are not copied" for name in others]
        parts = [name for name in self.shape.partitions if name != "_default"]
        if parts:
            notes.append(f"which of its {len(parts) + 1} partitions a row is in is not kept")
        return notes

    def id_of(self, key: Key) -> Id:
        if self.view:
            return ours.from_milvus(str(key))
        if isinstance(key, int):
            return key
        return self.ids.parse(ours.from_milvus(key) if self.mark else key)

    def key_of(self, id_: Id) -> Key:
        if self.view:
            return ours.to_milvus(str(id_))
        if isinstance(id_, int) and self.shape.key.kind == "INT64":
            return id_
        text = self.ids.text(id_)
        return ours.to_milvus(text) if self.mark else text

    def fetched(self, found: Sequence[Mapping[str, Any]]) -> Fetched:
        unfit = {
            self.id_of(row[self.shape.key.name]): "it has no vector" for row in found if not _has(row, self.vector)
        }
        rows = [row for row in found if _has(row, self.vector)]
        vectors = np.asarray([row[self.vector.name] for row in rows], np.float32)
        ids = [self.id_of(row[self.shape.key.name]) for row in rows]
        if not rows:
            return Fetched(Rows.none(self.vector.dimensions), unfit)
        if self.view:
            decoded = ours.decode(rows, self.vector.dimensions)
            return Fetched(Rows(ids, vectors, list(decoded.texts), list(decoded.metadata)), unfit)
        return Fetched(Rows(ids, vectors, [*map(self._text, rows)], [*map(self._metadata, rows)]), unfit)

    def _text(self, row: Mapping[str, Any]) -> str | None:
        if self.text is None or row.get(NO_TEXT):
            return None
        first = row.get(self.text)
        return "".join([first, *row.get(TEXT_REST, [])]) if isinstance(first, str) else None

    def _metadata(self, row: Mapping[str, Any]) -> dict[str, Any]:
        known = {self.shape.key.name, *self._vectors, NO_TEXT}
        if isinstance(row.get(self.text or ""), str):
            known.add(self.text or "")
        if self.mark:
            known |= {TEXT_REST, MORE}
        found = {key: _plain(value) for key, value in row.items() if key not in known}
        more = "".join(row.get(MORE) or []) if self.mark else ""
        if more:
            found |= loads(more)
        return {key: value for key, value in found.items() if value is not None or key in _nulls(more)}


class MilvusSink(Sink):
    limits = Limits(rows=1_000, bytes=8 << 20, needs_metric=True, max_dimensions=32_768)

    def __init__(self, database: MilvusDatabase, name: str) -> None:
        self._database = database
        self._name = name
        self._layout: Layout | None = None

    async def mark(self) -> Mark | None:
        shape = await self._database.do(lambda milvus: milvus.shape(self._name))
        if shape is None:
            return None
        said = shape.said()
        mark = Mark.read(said[MARK]) if isinstance(said.get(MARK), str) else None
        if mark is None:
            raise Conflict(
                f"There is a collection {self._name!r} in {self._database.shown} already that this copy did not make. "
                "Nothing was changed.",
                "Name another collection or database for the target.",
            )
        return mark

    async def create(self, table: Table, mark: Mark) -> None:
        assert table.metric is not None, "a collection of Milvus has a metric"
        if table.dimensions < 1:
            raise BadInput(f"The collection {table.name!r} has no vectors. Nothing was copied.", "")
        key = "INT64" if table.ids is IdKind.INT else "VARCHAR"
        description = dumps({MARK: mark.written()})
        metric = _TO[table.metric]
        made = Made(self._name, key, table.dimensions, metric, NAMES, [TEXT_REST, MORE], description)
        await self._database.do(lambda milvus: milvus.make(made))
        await self.open(table, mark)

    async def open(self, table: Table, mark: Mark) -> None:
        shape = await self._database.do(lambda milvus: milvus.shape(self._name))
        assert shape is not None, "neither made nor opened"
        vector = next(one for one in shape.columns if one.name == NAMES[1])
        self._layout = Layout(shape, vector, NAMES[2], mark, view=False)

    def refused(self, rows: Rows) -> Mapping[int, str]:
        finite = np.isfinite(rows.vectors).all(axis=1)
        found = {int(row): "its vector has a component that is no finite number" for row in np.flatnonzero(~finite)}
        for row, (id_, text) in enumerate(zip(rows.ids, rows.texts, strict=True)):
            try:
                if len(str(id_).encode()) > MAX_LENGTH // 2:
                    found[row] = "its id is longer than Milvus takes"
                (text or "").encode()
            except UnicodeEncodeError:
                found[row] = "its id or text is no valid Unicode"
            if isinstance(id_, int) and not -(2**63) <= id_ < 2**63:
                found[row] = "its id is beyond 64 bits"
        return found

    async def write(self, rows: Rows, *, fresh: bool) -> None:
        layout = self._known()
        written = await asyncio.to_thread(_written, layout, rows)
        await self._database.do(lambda milvus: milvus.put(layout.shape, written))

    async def delete(self, ids: Sequence[Id]) -> None:
        layout = self._known()
        keys = [layout.key_of(one) for one in ids]
        for start in range(0, len(keys), _READ_ROWS):
            some = keys[start : start + _READ_ROWS]
            await self._database.do(lambda milvus, some=some: milvus.delete(layout.shape, some))  # type: ignore[misc]

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        async for some in self._source().ids():
            yield some

    async def fetch(self, ids: Sequence[Id]) -> Rows:
        return (await self._source().fetch(ids)).rows

    async def finish(self) -> None:
        layout = self._known()
        await self._database.do(lambda milvus: milvus.finish(layout.shape))

    async def close(self) -> None:
        self._layout = None

    def _source(self) -> MilvusSource:
        source = MilvusSource(self._database, self._name, Chosen())
        source._layout = self._known()
        return source

    def _known(self) -> Layout:
        assert self._layout is not None, "neither made nor opened"
        return self._layout


def _takes_key(key: str) -> bool:
    taken = (*NAMES, TEXT_REST, MORE, NO_TEXT)
    return PLAIN.fullmatch(key) is not None and len(key) <= 200 and key not in taken


DIALECT = Dialect(takes_key=_takes_key, takes_text=lambda text: len(text) <= 1_000 and "\0" not in text)


def _written(layout: Layout, rows: Rows) -> list[dict[str, Any]]:
    found = []
    for id_, vector, text, metadata in zip(rows.ids, rows.vectors.tolist(), rows.texts, rows.metadata, strict=True):
        plain = {key: value for key, value in metadata.items() if DIALECT.takes_key(key) and DIALECT.takes(value)}
        if plain and len(dumps(plain)) > ours.MAX_DYNAMIC:
            plain = {}
        odd = {key: value for key, value in metadata.items() if key not in plain}
        shown = {key: said for key, value in odd.items() if DIALECT.takes_key(key) and (said := as_text(value))}
        first, *rest = ours.pieces(text or "") or [""]
        more = ours.pieces(dumps(odd)) if odd else []
        if len(more) > 4_096 or len(rest) > 4_096:
            raise RowRefused.of(str(id_), f"The row {id_!r} is larger than Milvus takes. Rows before it are there.")
        row = {NAMES[0]: layout.key_of(id_), NAMES[1]: vector, NAMES[2]: first, TEXT_REST: rest, MORE: more}
        found.append({**shown, **plain, **row, **({NO_TEXT: True} if text is None else {})})
    return found


def _sample(milvus: Collections, shape: Shape) -> list[dict[str, Any]]:
    """Some rows: what their dynamic fields are called."""
    if not shape.dynamic:
        return []
    for keys in milvus.keys(shape):
        return milvus.rows(shape, [key for key in keys[:_SAMPLE] if key != POSITION])
    return []


def _nearest(
    milvus: Collections, layout: Layout, vector: npt.NDArray[np.float32], k: int, keys: Sequence[Key] | None
) -> list[Key]:
    if keys is not None and len(keys) <= _READ_ROWS:
        return list(keys)  # as quickly measured as asked for
    if isinstance(milvus, OldCollections) or not layout.vector.metric:
        return list(keys) if keys is not None else [key for some in milvus.keys(layout.shape) for key in some]
    where = "" if keys is None else among(layout.shape, keys)
    return milvus.nearest(layout.shape, layout.vector, vector, k + 1, where)


def _has(row: Mapping[str, Any], vector: Column) -> bool:
    return row.get(vector.name) is not None and len(row[vector.name]) == vector.dimensions


def _plain(value: Any) -> Any:
    return list(value) if hasattr(value, "append") else value.item() if isinstance(value, np.generic) else value


def _nulls(more: str) -> set[str]:
    return {key for key, value in loads(more).items() if value is None} if more else set()


def opener(rest: str, base: Path, *, scheme: str, scratch: Path | None, reach: Reach) -> MilvusDatabase:
    """`scratch`: where the copy of a file that is a source may lie; None for a target."""
    if scheme != "milvus":
        server = parse_server(f"{scheme}:{rest}")
        return MilvusDatabase(lambda: ServerCollections(server, reach), server.url)
    path = base / Path(rest or "milvus.db").expanduser()

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
    lock = path / _LOCK
    with lock.open("rb") if lock.is_file() else nullcontext() as held:
        try:
            if held is not None:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyOwned(
                f"The Milvus Lite database {path} is open in another process: its files cannot be read as they are "
                "now. Nothing was changed.",
                "Stop that program, and copy again.",
            ) from None
        copy, note = scratch / "files.db", scratch / "version"
        now = chroma_files.version(path)
        if not note.is_file() or note.read_text() != now:
            shutil.rmtree(scratch, ignore_errors=True)
            chroma_files.copy_files(path, copy)
            note.write_text(now)
        return copy
