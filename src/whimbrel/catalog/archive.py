"""The archive that backups and the copies before an upgrade are kept in: one ZIP file of Parquet parts and a manifest.

    tables/documents-00001.parquet, ...   rows by primary key, in parts of about 64 MiB, zstd inside
    manifest.json                         format, schema revision, and of each part: rows, bytes, SHA-256

The ZIP itself stores and does not compress, so that parts are read at their place; nothing is ever unpacked to a path.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    Table,
    Text,
    cast,
    func,
    inspect,
    select,
    text,
    type_coerce,
)

from whimbrel.catalog import tables as t
from whimbrel.errors import BackupError, Conflict, DiskFull, PathNotFound

FORMAT = 1
MANIFEST = "manifest.json"
PART_BYTES = 64 * 1024**2
GROUP_BYTES = 8 * 1024**2
_MAX_GROUP_BYTES = 2 * 1024**3
"""A row group that says it unpacks to more was not made here: one holds 8 MiB, or a single long row."""

RETIRED_TABLES: frozenset[str] = frozenset()
"""Tables that older revisions had and this one has not: a copy before an upgrade must hold them."""

Progress = Callable[[str, int, int], None]
"""Called with a table's name, the rows done so far and the rows in all."""


class Kind(StrEnum):
    """What a column holds, on either database."""

    INTEGER = "integer"
    FLOAT = "float"
    BOOLEAN = "boolean"
    BINARY = "binary"
    TEXT = "text"
    JSON = "json"


_ARROW = {
    Kind.INTEGER: pa.int64(),
    Kind.FLOAT: pa.float64(),
    Kind.BOOLEAN: pa.bool_(),
    Kind.BINARY: pa.binary(),
    Kind.TEXT: pa.string(),
    Kind.JSON: pa.string(),
}


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TableEntry:
    columns: Mapping[str, Kind]
    rows: int
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Manifest:
    format: int
    schema: str
    """The catalog's schema revision."""
    whimbrel: str
    """The version that made it."""
    home: str
    """The id of the home that it was made from."""
    created_at: str
    tables: Mapping[str, TableEntry]


def dump_tables(connection: Connection, target: Path) -> Path:
    """Save every table of the catalog as it is, whatever its revision: the copy before an upgrade.

    On Postgres writers wait until the caller's transaction ends, so that what is upgraded is what was saved.
    """
    known = {*t.metadata.tables, *RETIRED_TABLES, "alembic_version"}
    names = sorted(known & set(inspect(connection).get_table_names()))
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"LOCK TABLE {', '.join(names)} IN SHARE MODE"))
    write_archive(connection, target, names, version="")
    return target


def write_archive(
    connection: Connection,
    target: Path,
    names: Sequence[str],
    *,
    version: str,
    overwrite: bool = False,
    progress: Progress | None = None,
    only: Mapping[str, ColumnElement[bool]] | None = None,
) -> Manifest:
    """Write the named tables, as `connection`'s transaction sees them, to `target`: all of it or nothing. `only`: by
    table, which of its rows; all of those that it does not name.

    Raises `Conflict` if the file exists, `DiskFull`, or `BackupError` if it cannot be written.
    """
    found = MetaData()
    found.reflect(connection, only=list(names))
    with _in_place_of(target, overwrite) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        tables = [found.tables[name] for name in names]
        only = only or {}
        total = sum(_count(connection, table, only.get(table.name)) for table in tables) if progress else 0
        done = 0
        entries: dict[str, TableEntry] = {}
        for table in tables:
            entries[table.name] = _write_table(connection, table, archive, only.get(table.name))
            done += entries[table.name].rows
            if progress:
                progress(table.name, done, total)
        manifest = Manifest(
            format=FORMAT,
            schema=str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()),
            whimbrel=version,
            home=str(connection.execute(text("SELECT value FROM home WHERE key = 'id'")).scalar() or ""),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            tables=entries,
        )
        archive.writestr(MANIFEST, json.dumps(asdict(manifest), indent=1))
    return manifest


def _write_table(
    connection: Connection, table: Table, archive: zipfile.ZipFile, only: ColumnElement[bool] | None
) -> TableEntry:
    import pyarrow.parquet as pq

    kinds = {column.name: _kind(column) for column in table.columns}
    schema = pa.schema([(name, _ARROW[kind]) for name, kind in kinds.items()])
    parts: list[Part] = []
    groups = _groups(connection, table, kinds, schema, only)
    group = next(groups, None)
    while group is not None:
        name = f"tables/{table.name}-{len(parts) + 1:05d}.parquet"
        rows = 0
        with archive.open(name, "w", force_zip64=True) as member:
            sink = Hashed(member)
            # Level 1: level 3 takes twice the time for 3 % less. A dictionary or statistics gain nothing under it.
            options = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}
            with pq.ParquetWriter(sink, schema, write_statistics=False, **options) as out:
                while group is not None and sink.tell() < PART_BYTES:
                    out.write_table(group, row_group_size=group.num_rows)
                    rows += group.num_rows
                    group = next(groups, None)
        parts.append(Part(name, rows, sink.tell(), sink.digest.hexdigest()))
    return TableEntry(kinds, sum(part.rows for part in parts), parts)


def _groups(
    connection: Connection, table: Table, kinds: Mapping[str, Kind], schema: Any, only: ColumnElement[bool] | None
) -> Iterator[Any]:
    """Arrow tables of about `GROUP_BYTES` each, by primary key."""
    batches: list[Any] = []
    for rows in _batches(connection, table, kinds, only):
        columns = zip(zip(*rows, strict=True), schema.types, strict=True)
        arrays = [pa.array(values, type=type_) for values, type_ in columns]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
        if sum(batch.nbytes for batch in batches) >= GROUP_BYTES:
            yield pa.Table.from_batches(batches)
            batches = []
    if batches:
        yield pa.Table.from_batches(batches)


def _batches(
    connection: Connection, table: Table, kinds: Mapping[str, Kind], only: ColumnElement[bool] | None
) -> Iterator[Sequence[Any]]:
    # One upload may be as long as a file may be; a segment is up to 128 KiB.
    size = {"uploads": 1, "segments": 100}.get(table.name, 2_000)
    query = select(*[_raw(table.c[name], kind, connection) for name, kind in kinds.items()])
    query = _chosen(query, only).order_by(*table.primary_key.columns)
    with connection.execute(query, execution_options={"yield_per": size}) as result:
        yield from result.partitions()


def _kind(column: Column[Any]) -> Kind:
    for type_, kind in (
        (JSON, Kind.JSON),
        (LargeBinary, Kind.BINARY),
        (Boolean, Kind.BOOLEAN),
        (Integer, Kind.INTEGER),
        (Float, Kind.FLOAT),
    ):
        if isinstance(column.type, type_):
            return kind
    return Kind.TEXT


def _raw(column: Column[Any], kind: Kind, connection: Connection) -> Any:
    if kind is Kind.JSON:  # as its text: decoding and encoding it again costs, and can change how a number is written
        return cast(column, Text) if connection.dialect.name == "postgresql" else type_coerce(column, Text)
    return column


def _count(connection: Connection, table: Table, only: ColumnElement[bool] | None) -> int:
    return int(connection.execute(_chosen(select(func.count()).select_from(table), only)).scalar_one())


def _chosen(query: Select[Any], only: ColumnElement[bool] | None) -> Select[Any]:
    return query if only is None else query.where(only)


class Hashed:
    """A file being written, counted and hashed on the way."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._given_up = False
        self._size = 0
        self.digest = hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if not self._given_up:
            self.digest.update(view)
            self._size += view.nbytes
            self._out.write(view)
        return view.nbytes

    def give_up(self) -> None:
        """What comes now is thrown away: a writer of Parquet that is let go of writes the end of its file."""
        self._given_up = True

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@contextmanager
def _in_place_of(target: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file beside `target` that takes its place when all is written and on the disk, and else is removed."""
    if target.exists() and not overwrite:
        raise Conflict(
            f"{target} exists already. Nothing was written.", "Name another file, or overwrite it (`--overwrite`)."
        )
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(
                f"No space left for {target}. The catalog was only read; the unfinished file was removed.",
                "Free some space, or name a file on another disk.",
            ) from error
        raise BackupError(
            f"{target} cannot be written: {error.strerror or error}.", "Name a file in a folder that exists."
        ) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- reading ---------------------------------------------------------------------------------------------------------


def verify_archive(path: Path, *, progress: Progress | None = None) -> Manifest:
    """Read all of an archive and compare it with its manifest. Raises `BackupError`, which names what is damaged."""
    with open_archive(path) as archive:
        archive.verify(progress)
        return archive.manifest


@contextmanager
def open_archive(path: Path) -> Iterator[ArchiveReader]:
    if not path.exists():
        raise PathNotFound(f"There is no file {path}.", "Check the path.")
    try:
        file = path.open("rb")
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    with file:
        with _named(path, "its table of contents"):
            archive = zipfile.ZipFile(file)
        yield ArchiveReader(path, archive)


_UNREADABLE: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, pa.ArrowException, struct.error, zlib.error),
    *(OSError, EOFError, ValueError, OverflowError, LookupError, RuntimeError),
)
"""Found by flipping bits: the ZIP reader alone raises seven kinds."""


@contextmanager
def _named(path: Path, part: str) -> Iterator[None]:
    """By its name what the readers of ZIP and Parquet raise when their bytes are not as they were written."""
    try:
        yield
    except _UNREADABLE as error:
        raise damaged(path, f"{part} is truncated or altered ({error})") from error


def damaged(path: Path, what: str) -> BackupError:
    return BackupError(
        f"The archive {path} cannot be used: {what}. Nothing was written.",
        "Use another backup, or copy this one again from where it was made.",
    )


class ArchiveReader:
    """An open archive. Its tables can be read once `verify` has passed."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self._members = {info.filename: info for info in archive.infolist()}
        self.manifest = self._read_manifest()

    def verify(self, progress: Progress | None = None) -> None:
        total = sum(entry.rows for entry in self.manifest.tables.values())
        done = 0
        for name, entry in self.manifest.tables.items():
            if sum(part.rows for part in entry.parts) != entry.rows:
                raise damaged(self.path, f"the rows of {name} do not add up")
            for part in entry.parts:
                self._open(name, entry, part)
                done += part.rows
            if progress:
                progress(name, done, total)

    def batches(self, table: str, size: int = 2_000) -> Iterator[tuple[Sequence[Any], ...]]:
        """Rows of a table, in batches: one sequence of Python values for each column of its entry."""
        entry = self.manifest.tables[table]
        for part in entry.parts:
            batches = self._open(table, entry, part).iter_batches(batch_size=size)
            while True:
                with _named(self.path, part.name):
                    batch = next(batches, None)
                    columns = () if batch is None else tuple(column.to_pylist() for column in batch.columns)
                if not columns:
                    break
                yield columns

    def _open(self, table: str, entry: TableEntry, part: Part) -> Any:
        import pyarrow.parquet as pq

        data = self._read(part.name)
        if len(data) != part.bytes or hashlib.sha256(data).hexdigest() != part.sha256:
            raise damaged(self.path, f"{part.name} has a wrong checksum")
        with _named(self.path, part.name):
            file = pq.ParquetFile(pa.BufferReader(data))
        expected = pa.schema([(name, _ARROW[kind]) for name, kind in entry.columns.items()])
        if file.metadata.num_rows != part.rows or not file.schema_arrow.equals(expected):
            raise damaged(self.path, f"{part.name} does not hold the rows of {table} that the manifest names")
        for group in range(file.num_row_groups):
            if file.metadata.row_group(group).total_byte_size > _MAX_GROUP_BYTES:
                raise damaged(self.path, f"{part.name} would unpack to an unreasonable size")
        return file

    def _read(self, name: str) -> bytes:
        member = self._members.get(name)
        if member is None:
            raise damaged(self.path, f"{name} is missing")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise damaged(self.path, f"{name} is compressed or encrypted, which a backup's parts never are")
        with _named(self.path, name):
            return self._archive.read(member)

    def _read_manifest(self) -> Manifest:
        try:
            said = json.loads(self._read(MANIFEST))
            if said["format"] > FORMAT:
                raise BackupError(
                    f"The archive {self.path} was made by a newer version of Whimbrel ({said['whimbrel']}, archive "
                    f"format {said['format']}). Nothing was written.",
                    "Upgrade Whimbrel, then restore it.",
                )
            tables = {
                str(name): TableEntry(
                    {str(column): Kind(kind) for column, kind in entry["columns"].items()},
                    int(entry["rows"]),
                    [Part(**part) for part in entry["parts"]],
                )
                for name, entry in said["tables"].items()
            }
            return Manifest(**{**said, "tables": tables})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(self.path, f"{MANIFEST} is not that of a backup") from error
