"""The files of an export while they are written, and the folder that takes its place when all are."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from whimbrel.catalog.archive import Hashed, sync_folder
from whimbrel.catalog.exported import FileEntry
from whimbrel.errors import BackupError, Conflict, DiskFull, HomeError

GROUP_BYTES = 8 << 20
_LOCK = ".lock"


@dataclass(slots=True)
class File:
    """A Parquet file that is being written, in row groups of about `GROUP_BYTES`, or of one long row."""

    entry: Mapping[str, Any]
    schema: pa.Schema
    out: IO[bytes]
    sink: Hashed
    writer: Any
    rows: int = 0
    _held: list[pa.RecordBatch] = field(default_factory=list)
    _size: int = 0

    def put(self, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            columns = zip(zip(*rows, strict=True), self.schema.types, strict=True)
            self._take([pa.array(values, type=kind) for values, kind in columns])

    def put_vectors(self, ids: Sequence[str], data: Sequence[bytes]) -> None:
        if not ids:
            return
        kind = self.schema.field("vector").type
        packed = b"".join(data)
        if len(packed) != 4 * kind.list_size * len(ids):
            raise BackupError(
                "The catalog has a vector that is not of its space's dimensions. Nothing was exported.",
                "`whimbrel doctor` says more.",
            )
        values = pa.array(np.frombuffer(packed, "<f4"))
        self._take([pa.array(ids, pa.string()), pa.FixedSizeListArray.from_arrays(values, type=kind)])

    def _take(self, arrays: list[pa.Array]) -> None:
        batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        weight = max(batch.nbytes // batch.num_rows, 1)
        step = max(GROUP_BYTES // weight, 1)
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            if self._size + weight * part.num_rows > GROUP_BYTES:
                self.flush()
            self._held.append(part)
            self._size += weight * part.num_rows

    def flush(self) -> None:
        if self._held:
            table = pa.Table.from_batches(self._held)
            self.writer.write_table(table, row_group_size=table.num_rows)
            self.rows += table.num_rows
            self._held, self._size = [], 0


class Files:
    """Those of a folder. On leaving they are whole and on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: list[File] = []

    def add(self, name: str, holds: str, schema: pa.Schema, chunking: str = "", space: str = "") -> File:
        import pyarrow.parquet as pq

        out = (self._folder / name).open("wb")
        sink = Hashed(out)
        # Level 1: level 3 takes twice the time for 3 % less. Vectors are noise to it: a twelfth less, at half the rate.
        options: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
        if holds == "vectors":
            options = {"compression": "none"}
        writer = pq.ParquetWriter(sink, schema, use_dictionary=False, **options)
        said = {"name": name, "holds": holds, "chunking": chunking, "space": space}
        self._open.append(File(said, schema, out, sink, writer))
        return self._open[-1]

    def __enter__(self) -> Files:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for file in self._open if kind is None else ():
                file.flush()
                file.writer.close()
                file.out.flush()
                os.fsync(file.out.fileno())
        finally:
            for file in self._open:
                file.sink.give_up()
                file.writer.close()
                with suppress(OSError):  # what a failed write has left in the buffer fails again
                    file.out.close()
        if kind is None and not self._open[-1].rows:  # nothing was refused
            (self._folder / self._open.pop().entry["name"]).unlink()

    def entries(self) -> list[FileEntry]:
        return [
            FileEntry(**file.entry, rows=file.rows, bytes=file.sink.tell(), sha256=file.sink.digest.hexdigest())
            for file in self._open
        ]


@contextmanager
def in_place_of(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when all is written, and else is removed. What a killed export has
    left is taken away by the next one to the same place."""
    part = target.with_name(f".{target.name}.part")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise Conflict(f"There is something in {target} already. Nothing was written.", "Name another folder.")
        target.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir(exist_ok=True)
        with _locked(part, target):
            for left in part.iterdir():
                if left.name != _LOCK:
                    left.unlink()
            try:
                yield part
                (part / _LOCK).unlink()
                sync_folder(part)
                part.replace(target)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
        sync_folder(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                f"No space left for {target}. The catalog was only read; what was unfinished was removed.",
                "Free some space, or name a folder on another disk.",
            ) from error
        raise HomeError(
            f"{target} cannot be written: {error.strerror or type(error).__name__}.", "Check its owner and permissions."
        ) from error


@contextmanager
def _locked(part: Path, target: Path) -> Iterator[None]:
    if not (part / _LOCK).exists() and any(part.iterdir()):
        raise Conflict(f"There is something in {part} already. Nothing was written.", "Name another folder.")
    with (part / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"Another export to {target} is under way. Nothing was written.", "Wait for it, or name another folder."
            ) from error
        yield
