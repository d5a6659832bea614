"""Parquet: `parquet:DIR` is a folder whose collections are its sub-folders and its `.parquet` files.

A collection is `NAME.parquet`, or the files `*.parquet` of the folder `NAME`, in the order of their names. A sink makes
the folder, with one file a write; each file is there whole or not at all.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from whimbrel.errors import Conflict, DiskFull, HomeError, NotFound, ViewDamaged
from whimbrel.stores.foreign.absent import absent
from whimbrel.stores.foreign.arrow import Columns, Form, dimensions_of, schema_fingerprint
from whimbrel.stores.foreign.base import (
    MARK,
    Chosen,
    Database,
    Fetched,
    Id,
    Limits,
    Mark,
    Rows,
    Sink,
    Source,
    Table,
)

_READ_ROWS = 2_000
_SAMPLE_ROWS = 200


class ParquetFolder(Database):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.shown = f"the folder {folder}"

    async def collections(self) -> Sequence[str]:
        return await asyncio.to_thread(self._collections)

    def source(self, name: str, chosen: Chosen) -> Source:
        return ParquetSource(self._folder, name, chosen)

    def sink(self, name: str) -> Sink:
        return ParquetSink(self._folder / name)

    def _collections(self) -> list[str]:
        if not self._folder.is_dir():
            raise NotFound(f"There is no folder {self._folder}.", "Check the path after `parquet:`.")
        return _names(self._folder)


def _names(folder: Path) -> list[str]:
    files = {path.stem for path in folder.glob("*.parquet")}
    return sorted(files | {path.parent.name for path in folder.glob("*/*.parquet")})


class ParquetSource(Source):
    def __init__(self, folder: Path, name: str, chosen: Chosen) -> None:
        self._folder = folder
        self._name = name
        self._chosen = chosen
        self._columns: Columns | None = None
        self._dimensions = 0
        self._stream: Stream | None = None
        self._turn = asyncio.Lock()

    async def describe(self) -> Table:
        return await asyncio.to_thread(self._describe)

    async def version(self) -> str | None:
        return await asyncio.to_thread(lambda: version_of(self._files()))

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        columns = await self._known()
        for file in self._files():
            batches = batches_of(file, [columns.id])
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                yield columns.ids_of(batch[columns.id])

    async def fetch(self, ids: Sequence[Id], places: Sequence[int] | None = None) -> Fetched:
        columns = await self._known()
        async with self._turn:
            if places is None:
                return await asyncio.to_thread(self._search, columns, set(ids))
            return await asyncio.to_thread(self._take, columns, places)

    async def close(self) -> None:
        self._stream = None

    # --- inside ------------------------------------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        one = self._folder / f"{self._name}.parquet"
        found = [one] if one.is_file() else sorted((self._folder / self._name).glob("*.parquet"))
        if not found:
            raise absent("Parquet collection", self._name, str(self._folder), _names(self._folder))
        return found

    async def _known(self) -> Columns:
        if self._columns is None:
            await self.describe()
        assert self._columns is not None
        return self._columns

    def _describe(self) -> Table:
        files = self._files()
        where = f"The collection {self._name!r} in {self._folder}"
        with parquet_errors(where):
            schemas = [pq.read_schema(file) for file in files]
        columns = Columns.of(schemas[0], self._chosen, where)
        for file, schema in zip(files, schemas, strict=True):
            if schema_fingerprint(schema) != schema_fingerprint(schemas[0]):
                raise ViewDamaged(f"{where}: the file {file.name} has other columns than {files[0].name}.", "Split it.")
        self._columns, self._dimensions = columns, columns.dimensions or self._sampled_dimensions(files, columns)
        return columns.table(self._name, self._dimensions, str(files[0].parent), version_of(files), self._chosen.metric)

    def _sampled_dimensions(self, files: Sequence[Path], columns: Columns) -> int:
        for file in files if columns.vector else ():
            for batch in batches_of(file, [columns.vector]):
                if dimensions := dimensions_of(batch[columns.vector].slice(0, _SAMPLE_ROWS)):
                    return dimensions
        return 0

    def _take(self, columns: Columns, places: Sequence[int]) -> Fetched:
        if self._stream is None or places[0] < self._stream.at:
            self._stream = Stream(batch for file in self._files() for batch in batches_of(file, None))
        return columns.rows(self._stream.take(places), self._dimensions)

    def _search(self, columns: Columns, ids: set[Id]) -> Fetched:
        parts = []
        for file in self._files():
            for batch in batches_of(file, None):
                keep = [id_ in ids for id_ in columns.ids_of(batch[columns.id])]
                if any(keep):
                    parts.append(batch.filter(pa.array(keep)))
        if not parts:
            return Fetched(Rows.none(self._dimensions))
        return columns.rows(pa.concat_tables(parts), self._dimensions)


class ParquetSink(Sink):
    limits = Limits(rows=10_000, bytes=16 << 20, several=True)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._form: Form | None = None
        self._made: Mark | None = None
        self._where: _Where | None = None
        """The file of each row; read when it is needed."""

    async def mark(self) -> Mark | None:
        return await asyncio.to_thread(self._mark)

    async def create(self, table: Table, mark: Mark) -> None:
        def make() -> None:
            with parquet_errors(f"The folder {self._folder} cannot be made"):
                try:
                    self._folder.mkdir(parents=True)
                except FileExistsError:
                    raise self._taken() from None
                self._form, self._made = Form.of(table), mark
                # So that the folder says whose it is, also while it has no rows.
                self._put(self._folder / "part-000000.parquet", self._form.schema(mark).empty_table())

        await asyncio.to_thread(make)

    async def open(self, table: Table, mark: Mark) -> None:
        with parquet_errors(f"The folder {self._folder} cannot be read"):
            schema = await asyncio.to_thread(pq.read_schema, min(self._folder.glob("*.parquet")))
        self._form, self._made = Form.read(schema, table), mark

    def refused(self, rows: Rows) -> Mapping[int, str]:
        return self._known().refused(rows)

    async def write(self, rows: Rows, *, fresh: bool) -> None:
        await asyncio.to_thread(self._append if fresh else self._write, rows)

    async def delete(self, ids: Sequence[Id]) -> None:
        await asyncio.to_thread(self._rewrite, set(ids), None)

    async def ids(self) -> AsyncIterator[Sequence[Id]]:
        source = self._source()
        async for some in source.ids():
            yield some

    async def fetch(self, ids: Sequence[Id]) -> Rows:
        def read() -> Rows:
            columns = self._columns()
            wanted = set(ids)
            parts = []
            for file in sorted(self._index().files(ids)):
                for batch in batches_of(file, None):
                    keep = [id_ in wanted for id_ in columns.ids_of(batch[columns.id])]
                    if any(keep):
                        parts.append(batch.filter(pa.array(keep)))
            form = self._known()
            return columns.rows(pa.concat_tables(parts), form.dimensions).rows if parts else Rows.none(form.dimensions)

        with parquet_errors(f"The folder {self._folder} cannot be read"):
            return await asyncio.to_thread(read)

    async def close(self) -> None:
        self._where = None

    # --- inside ------------------------------------------------------------------------------------------------------

    def _mark(self) -> Mark | None:
        files = sorted(self._folder.glob("*.parquet"))
        if not files:
            if self._folder.with_suffix(".parquet").exists() or (self._folder.exists() and any(self._folder.iterdir())):
                raise self._taken()
            return None
        with parquet_errors(f"The folder {self._folder} cannot be read"):
            mark = Mark.read((pq.read_schema(files[0]).metadata or {}).get(MARK.encode()))
        if mark is None:
            raise self._taken()
        return mark

    def _taken(self) -> Conflict:
        return Conflict(
            f"There is something in {self._folder} already that this copy did not make. Nothing was changed.",
            "Name another collection or folder for the target.",
        )

    def _write(self, rows: Rows) -> None:
        there = self._rewrite(set(rows.ids), rows)
        new = [row for row, id_ in enumerate(rows.ids) if id_ not in there]
        if new:
            self._append(rows.taken(new))

    def _append(self, rows: Rows) -> None:
        """As a file of its own."""
        number = 1 + max(int(path.stem.rpartition("-")[2]) for path in self._folder.glob("part-*.parquet"))
        file = self._folder / f"part-{number:06}.parquet"
        self._put(file, self._table(rows))
        if self._where is not None:
            self._where.add(rows.ids, file)

    def _rewrite(self, ids: set[Id], rows: Rows | None) -> set[Id]:
        """Without these rows; with those of `rows` in their place. Returns the ids that were there."""
        columns = self._columns()
        there: set[Id] = set()
        for file in self._index().files(ids):
            whole = pq.read_table(file, memory_map=False)
            held = columns.ids_of(whole[columns.id])
            if ids.isdisjoint(held):
                continue
            there |= ids & set(held)
            kept = whole.filter(pa.array([id_ not in ids for id_ in held]))
            if rows is not None:
                inside = set(held)
                mine = rows.taken([row for row, id_ in enumerate(rows.ids) if id_ in inside])
                kept = pa.concat_tables([kept, self._table(mine)])
            self._put(file, kept.replace_schema_metadata(whole.schema.metadata))
        return there

    def _put(self, file: Path, table: pa.Table) -> None:
        partial = file.with_suffix(".partial")
        with parquet_errors(f"{file} cannot be written"):
            try:
                with partial.open("wb") as stream:
                    pq.write_table(table, stream, compression="zstd")
                    stream.flush()
                    os.fsync(stream.fileno())
                partial.replace(file)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            folder = os.open(file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _index(self) -> _Where:
        if self._where is None:
            columns, where = self._columns(), _Where()
            for file in sorted(self._folder.glob("*.parquet")):
                for batch in batches_of(file, [columns.id]):
                    where.add(columns.ids_of(batch[columns.id]), file)
            self._where = where
        return self._where

    def _columns(self) -> Columns:
        form, made = self._known(), self._made
        assert made is not None
        names = form.names
        return Columns.of(form.schema(made), Chosen(id=names.id), f"The folder {self._folder}")

    def _table(self, rows: Rows) -> pa.Table:
        assert self._made is not None
        return self._known().table(rows, self._made)

    def _known(self) -> Form:
        assert self._form is not None, "neither made nor opened"
        return self._form

    def _source(self) -> ParquetSource:
        names = self._known().names
        return ParquetSource(self._folder.parent, self._folder.name, Chosen(id=names.id))


class _Where:
    """Which file may hold an id: 12 bytes a row. Of two ids of one hash both files are named."""

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._parts: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]] = []

    def add(self, ids: Sequence[Id], file: Path) -> None:
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
        self._parts.append((hashes, np.full(len(ids), len(self._files) - 1, np.uint32)))

    def files(self, ids: Iterable[Id]) -> set[Path]:
        wanted = np.unique(np.fromiter(map(hash, ids), np.int64))
        if len(self._parts) > 1:
            hashes, numbers = (np.concatenate(column) for column in zip(*self._parts, strict=True))
            order = np.argsort(hashes, kind="stable")
            self._parts = [(hashes[order], numbers[order])]
        if not self._parts:
            return set()
        ((hashes, numbers),) = self._parts
        start, stop = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
        found = [numbers[a:b] for a, b in zip(start, stop, strict=True) if b > a]
        return {self._files[number] for number in np.unique(np.concatenate(found))} if found else set()


class Stream:
    """Reads rows at ascending places, a part of a row group at a time, however large those are."""

    def __init__(self, batches: Iterator[pa.Table]) -> None:
        self._batches = batches
        self._batch: pa.Table | None = None
        self.at = 0
        """Place of the first row of the batch; earlier ones need another stream."""

    def take(self, places: Sequence[int]) -> pa.Table:
        parts = []
        left = list(places)
        while left:
            if self._batch is None or left[0] >= self.at + self._batch.num_rows:
                self.at += self._batch.num_rows if self._batch is not None else 0
                self._batch = next(self._batches, None)
                if self._batch is None:
                    break
                continue
            end = self.at + self._batch.num_rows
            here = [place - self.at for place in left if place < end]
            parts.append(self._batch.take(pa.array(here)))
            left = left[len(here) :]
        if not parts:
            raise ViewDamaged("The Parquet files have fewer rows than before.", "Run the copy again: it looks anew.")
        return pa.concat_tables(parts)


def batches_of(file: Path, columns: list[str] | None) -> Iterator[pa.Table]:
    with parquet_errors(f"{file} cannot be read"), pq.ParquetFile(file, pre_buffer=False) as opened:
        for batch in opened.iter_batches(_READ_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


def version_of(files: Sequence[Path]) -> str:
    stats = [(file.name, found.st_size, found.st_mtime_ns) for file in files for found in [file.stat()]]
    return str(stats)


@contextmanager
def parquet_errors(what: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as error:
        raise ViewDamaged(f"{what}: it is no Parquet file, or is damaged.", "Make it again.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise DiskFull(f"{what}: no space left. What was written before is safe.", "Free some space.") from error
        raise HomeError(
            f"{what}: {error.strerror or type(error).__name__}.", "Check its owner and permissions."
        ) from error


def opener(rest: str, base: Path, **_: Any) -> ParquetFolder:
    return ParquetFolder(base / Path(rest).expanduser())
