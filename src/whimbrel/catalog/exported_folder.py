"""Reading an exported collection: checked wholly first, then in batches for writing.

What a folder says of itself is not believed: every row is read and held against the others before the first one is
written, by the same pass that reads them for writing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from whimbrel.catalog.exported import (
    CHUNK_COLUMNS,
    DOCUMENT_COLUMNS,
    DOCUMENTS,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    META,
    REFUSED_COLUMNS,
    FileEntry,
    Manifest,
    lying,
    read_manifest,
    vector_columns,
)
from whimbrel.domain import DocumentState
from whimbrel.errors import BackupError, BadInput, HomeError, PathNotFound

Progress = Callable[[str, int, int], None]
"""Called with what is done, the rows done so far and the rows in all."""

_GROUP_BYTES = 64 << 20
_ROW_BYTES = 2 << 30
"""What a row group may unpack to, and one that is a single row. Export writes 8 MiB, or one long row."""
_DOCUMENTS_AT_ONCE = 500
_CHUNKS_AT_ONCE = 2_000
_ID = re.compile("[0-9a-f]{32}")
_STATES = {state.value for state in DocumentState} - {DocumentState.GONE.value, DocumentState.INDEXED.value}

Cursor = Mapping[str, int]
"""Rows done, by file."""


@dataclass(slots=True)
class Batch:
    documents: list[Mapping[str, Any]] = field(default_factory=list)
    """By the names of `DOCUMENT_COLUMNS`; `metadata` and `pages` as Python values, times in seconds."""
    chunks: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    """By chunking: the number of the document in the batch, and then as `CHUNK_COLUMNS`."""
    vectors: dict[tuple[str, str], tuple[list[int], npt.NDArray[np.float32]]] = field(default_factory=dict)
    """By chunking and space: which of its chunks have one, and float32[n, d]."""
    refused: dict[tuple[str, str], dict[int, str]] = field(default_factory=dict)
    """By chunking and space: why the model refused a chunk."""
    cursor: Cursor = field(default_factory=dict)
    """After it."""

    @property
    def rows(self) -> int:
        return len(self.documents) + sum(len(ids) for ids, _ in self.vectors.values())


class ExportFolder:
    """An exported collection, to be read."""

    def __init__(self, folder: Path) -> None:
        """Reads the manifest. Raises `PathNotFound`, `BadInput` where there is none, `BackupError`."""
        self.folder = folder
        if not folder.is_dir():
            raise PathNotFound(f"There is no folder {folder}.", "Check the path.")
        written = self._manifest_file()
        self.digest = hashlib.sha256(written).hexdigest()
        self.manifest: Manifest = read_manifest(written, str(folder))

    @property
    def rows(self) -> int:
        """In all files but those of chunks, which progress is counted by."""
        return sum(file.rows for file in self.manifest.files if file.holds in ("documents", "vectors"))

    def signature(self) -> list[list[Any]]:
        """Names, sizes and times of the files: what has not changed need not be checked again."""
        found = []
        for file in self.manifest.files:
            with self.reading(file.name):
                stat = (self.folder / file.name).stat()
            found.append([file.name, stat.st_size, stat.st_mtime_ns])
        return found

    def check(self, progress: Progress | None = None) -> None:
        """Everything: checksums, forms, and each row beside the others. Raises `BackupError`, which names what is wrong
        in which file."""
        done = 0
        for entry in self.manifest.files:
            self._check_file(entry)
            self.opened(entry)
            done += entry.rows
            if progress is not None:
                progress("checksums", done, sum(file.rows for file in self.manifest.files))
        documents, ids = bytearray(), {spec: bytearray() for spec in self.manifest.chunkings}
        done = 0
        for batch in self.batches():
            documents += b"".join(bytes.fromhex(one["id"]) for one in batch.documents)
            for spec, rows in batch.chunks.items():
                ids[spec] += b"".join(bytes.fromhex(row[1]) for row in rows)
            done += batch.rows
            if progress is not None:
                progress("checking", done, self.rows)
        for what, packed in {"documents": documents, **ids}.items():
            found = np.frombuffer(bytes(packed), "V16")
            if len(np.unique(found)) < len(found):
                raise self._lying(f"an id comes twice among {what}")

    def batches(self, after: Cursor | None = None) -> Iterator[Batch]:
        """From where a cursor stands. Raises `BackupError` where rows do not fit together."""
        after = after or {}
        readers = _Readers(self, after)
        while batch := readers.next_batch():
            yield batch
        readers.check_ended()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _lying(self, what: str) -> BackupError:
        return lying(str(self.folder), what)

    def _manifest_file(self) -> bytes:
        path = self.folder / MANIFEST
        if not path.is_file() or path.is_symlink():
            raise BadInput(
                f"{self.folder} is no export: it has no {MANIFEST}. Nothing was written.",
                "Name the folder that `whimbrel export` made.",
            )
        with self.reading(MANIFEST), path.open("rb") as file:
            written = file.read(MAX_MANIFEST_BYTES + 1)
        if len(written) > MAX_MANIFEST_BYTES:
            raise self._lying(f"{MANIFEST} is unreasonably large")
        return written

    def _check_file(self, entry: FileEntry) -> None:
        path = self.folder / entry.name
        if path.is_symlink() or not path.is_file():
            raise self._lying(f"{entry.name} is missing")
        found = hashlib.sha256()
        with self.reading(entry.name), path.open("rb") as file:
            size = path.stat().st_size
            while size == entry.bytes and (block := file.read(1 << 20)):
                found.update(block)
        if size != entry.bytes or found.hexdigest() != entry.sha256:
            raise self._lying(f"{entry.name} has a wrong checksum")

    def opened(self, entry: FileEntry) -> pq.ParquetFile:
        """A file of the form that the manifest says. Raises `BackupError`."""
        with self.reading(entry.name):
            file = pq.ParquetFile(self.folder / entry.name)
            about, schema = file.metadata, file.schema_arrow
        if about.num_rows != entry.rows:
            raise self._lying(f"{entry.name} has {about.num_rows:,} rows; {MANIFEST} says {entry.rows:,}")
        wanted = self._columns(entry)
        extra = [one.name for one in schema if one.name not in wanted.names and entry.holds == "documents"]
        fixed = pa.schema([one for one in schema if one.name not in extra])
        if not fixed.equals(wanted) or any(not name.startswith(META) for name in extra):
            raise self._lying(f"{entry.name} has other columns than an export has")
        for number in range(about.num_row_groups):
            group = about.row_group(number)
            columns = [group.column(at) for at in range(group.num_columns)]
            unpacked = max(group.total_byte_size, sum(one.total_uncompressed_size for one in columns))
            if unpacked > (_GROUP_BYTES if group.num_rows > 1 else _ROW_BYTES) or any(
                one.has_dictionary_page for one in columns
            ):
                raise self._lying(f"{entry.name} would unpack to an unreasonable size")
        return file

    def _columns(self, entry: FileEntry) -> pa.Schema:
        match entry.holds:
            case "documents":
                return DOCUMENT_COLUMNS
            case "chunks":
                return CHUNK_COLUMNS
            case "refused":
                return REFUSED_COLUMNS
        return vector_columns(self.manifest.space_of(entry).dimensions)

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """By its name what the reader of Parquet raises at bytes that are none."""
        try:
            yield
        except (pa.ArrowException, ValueError, OverflowError, EOFError) as error:
            raise self._lying(f"{name} cannot be read ({type(error).__name__})") from error
        except FileNotFoundError as error:
            raise self._lying(f"{name} is missing") from error
        except OSError as error:
            raise HomeError(
                f"{self.folder / name} cannot be read: {error.strerror or type(error).__name__}.", "Check its disk."
            ) from error


class _Readers:
    """All files of a folder side by side."""

    def __init__(self, folder: ExportFolder, after: Cursor) -> None:
        self._folder = folder
        manifest = folder.manifest
        self._documents = _Rows(folder, manifest.of("documents")[0], DOCUMENT_COLUMNS.names, after)
        self._chunks = {
            file.chunking: _Rows(folder, file, CHUNK_COLUMNS.names, after) for file in manifest.of("chunks")
        }
        self._vectors = {
            (file.chunking, file.space): _VectorRows(folder, file, after) for file in manifest.of("vectors")
        }
        self._refused: dict[str, dict[str, str]] = {}
        for file in manifest.of("refused"):
            rows = _Rows(folder, file, REFUSED_COLUMNS.names, {})
            while (row := rows.head) is not None:
                self._refused.setdefault(row[1], {})[row[0]] = row[2]
                rows.step()

    def next_batch(self) -> Batch | None:
        batch = Batch(chunks={spec: [] for spec in self._chunks})
        taken = 0
        while len(batch.documents) < _DOCUMENTS_AT_ONCE and taken < _CHUNKS_AT_ONCE:
            row = self._documents.head
            if row is None:
                break
            self._documents.step()
            said = self._document(row)
            for spec, chunks in self._chunks.items():
                taken += self._take_chunks(chunks, said, len(batch.documents), batch.chunks[spec])
            batch.documents.append(said)
        if not batch.documents:
            return None
        for pair, rows in self._vectors.items():
            ids = [row[1] for row in batch.chunks[pair[0]]]
            batch.vectors[pair] = rows.of(ids)
            if said := self._refused.get(rows.entry.name, {}):
                batch.refused[pair] = {number: said[id_] for number, id_ in enumerate(ids) if id_ in said}
        streams = (self._documents, *self._chunks.values(), *self._vectors.values())
        batch.cursor = {stream.entry.name: stream.at for stream in streams}
        return batch

    def check_ended(self) -> None:
        """Raises where there is more in a file than the others know of."""
        streams: list[_Rows | _VectorRows] = [*self._chunks.values(), *self._vectors.values()]
        for stream in streams:
            if not stream.ended:
                raise self._lying(f"{stream.entry.name} has rows in another order than the documents, or of none")
        known = {rows.entry.name for rows in self._vectors.values()}
        if self._refused.keys() - known:
            raise self._lying("a text was refused in a space that there is not")

    def _take_chunks(self, chunks: _Rows, document: Mapping[str, Any], number: int, into: list[tuple[Any, ...]]) -> int:
        body, count = document["text"], 0
        while (row := chunks.head) is not None and row[1] == document["id"]:
            id_, _, ordinal, start, end, _, tokens, context, text = row
            if ordinal != count or not 0 <= start <= end or body[start:end] != text or end > len(body) or tokens < 0:
                raise self._lying(f"{chunks.entry.name} has a chunk that is no part of its document, or out of order")
            if not _ID.fullmatch(id_) or "\0" in context:
                raise self._lying(f"{chunks.entry.name} has an id or a context that cannot be one")
            into.append((number, *row))
            count += 1
            chunks.step()
        return count

    def _document(self, row: tuple[Any, ...]) -> dict[str, Any]:
        said = dict(zip(DOCUMENT_COLUMNS.names, row, strict=True))
        if not _ID.fullmatch(said["id"]) or said["state"] not in _STATES:
            raise self._lying(f"{DOCUMENTS} has an id or a state that cannot be one")
        if any(isinstance(value, str) and "\0" in value for value in row):
            raise self._lying(f"{DOCUMENTS} has a text with a NUL")
        try:
            said["metadata"] = json.loads(said["metadata"], parse_constant=_refuse)
            said["pages"] = json.loads(said["pages"], parse_constant=_refuse)
            whole = isinstance(said["metadata"], dict) and _is_sayable(said["metadata"]) and _are_pages(said["pages"])
        except (ValueError, RecursionError) as error:
            raise self._lying(f"{DOCUMENTS} has metadata that is no JSON") from error
        if not whole:
            raise self._lying(f"{DOCUMENTS} has metadata or pages that cannot be a document's")
        for name in ("created_at", "updated_at"):
            said[name] = said[name] / 1e6
        return said

    def _lying(self, what: str) -> BackupError:
        return lying(str(self._folder.folder), what)


class _Groups:
    """The row groups of a file, one in memory at a time, from some row on."""

    def __init__(self, folder: ExportFolder, entry: FileEntry, columns: Sequence[str], after: Cursor) -> None:
        self.entry = entry
        self._folder = folder
        self._file = folder.opened(entry)
        self._columns = list(columns)
        self._group = 0
        self._skip = after.get(entry.name, 0)
        self.at = self._skip
        """Rows that were taken."""

    def next_group(self) -> pa.Table | None:
        while self._group < self._file.num_row_groups:
            rows = self._file.metadata.row_group(self._group).num_rows
            self._group += 1
            if self._skip >= rows:
                self._skip -= rows
                continue
            with self._folder.reading(self.entry.name):
                found = self._file.read_row_group(self._group - 1, columns=self._columns)
                found.validate(full=True)
            start, self._skip = self._skip, 0
            return found.slice(start)
        return None


class _Rows(_Groups):
    """Rows one after another, as tuples of Python's values; times are microseconds."""

    def __init__(self, folder: ExportFolder, entry: FileEntry, columns: Sequence[str], after: Cursor) -> None:
        super().__init__(folder, entry, columns, after)
        self._held: list[tuple[Any, ...]] = []
        self._next = 0
        self._load()

    @property
    def head(self) -> tuple[Any, ...] | None:
        return self._held[self._next] if self._next < len(self._held) else None

    @property
    def ended(self) -> bool:
        return self.head is None

    def step(self) -> None:
        self._next += 1
        self.at += 1
        if self._next == len(self._held):
            self._load()

    def _load(self) -> None:
        self._held, self._next = [], 0
        while not self._held and (group := self.next_group()) is not None:
            with self._folder.reading(self.entry.name):
                columns = [_pylist(group[name]) for name in self._columns]
            self._held = list(zip(*columns, strict=True))


class _VectorRows(_Groups):
    def __init__(self, folder: ExportFolder, entry: FileEntry, after: Cursor) -> None:
        super().__init__(folder, entry, ["id", "vector"], after)
        self._dimensions = folder.manifest.space_of(entry).dimensions
        self._ids: list[str] = []
        self._data = np.zeros((0, self._dimensions), np.float32)
        self._next = 0
        self._load()

    @property
    def ended(self) -> bool:
        return self._next == len(self._ids)

    def of(self, ids: Sequence[str]) -> tuple[list[int], npt.NDArray[np.float32]]:
        """Those of the next of `ids` that have one: their numbers, and float32[n, d]."""
        numbers: list[int] = []
        parts = []
        start = self._next
        for number, id_ in enumerate(ids):
            if self.ended:
                break
            if self._ids[self._next] == id_:
                numbers.append(number)
                self._next += 1
                if self.ended:
                    parts.append(self._data[start:])
                    self._load()
                    start = 0
        parts.append(self._data[start : self._next])
        self.at += len(numbers)
        return numbers, np.concatenate(parts)

    def _load(self) -> None:
        self._ids, self._next = [], 0
        while not self._ids and (group := self.next_group()) is not None:
            with self._folder.reading(self.entry.name):
                self._ids = group["id"].to_pylist()
                flat = group["vector"].combine_chunks()
                flat = flat.chunk(0) if isinstance(flat, pa.ChunkedArray) else flat
                self._data = flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, self._dimensions)
        if not self._ids:
            self._data = self._data[:0]


def _pylist(column: pa.ChunkedArray) -> list[Any]:
    found: list[Any] = (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _is_sayable(value: Any) -> bool:
    """No NUL and no half of a character, which a database refuses."""
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= one <= "\udfff" for one in value)
    if isinstance(value, dict):
        return all(_is_sayable(key) and _is_sayable(one) for key, one in value.items())
    return all(map(_is_sayable, value)) if isinstance(value, list) else True


def _are_pages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, list) and len(one) == 2 and all(type(part) is int for part in one) for one in value
    )
