"""Writing a collection out as Parquet files, as it is at one position of its log, while others go on writing."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import Column, Connection, Select, Text, cast, func, select, text, type_coerce

from whimbrel.catalog import bulk, collections, compatible, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.collections import Collection
from whimbrel.catalog.compatible import Compatible, CompatibleState
from whimbrel.catalog.engine import AnyRow, Catalog
from whimbrel.catalog.exported import (
    CHUNK_COLUMNS,
    DOCUMENT_COLUMNS,
    DOCUMENTS,
    FORMAT,
    MANIFEST,
    META,
    REFUSED,
    REFUSED_COLUMNS,
    CollectionEntry,
    DeclaredEntry,
    Manifest,
    Searched,
    SpaceEntry,
    space_entry,
    vector_columns,
)
from whimbrel.catalog.exported_files import File, Files, in_place_of
from whimbrel.catalog.keys import among
from whimbrel.domain import DocumentState

Progress = Callable[[str, int, int], None]
"""Called with what is done, the rows done so far and the rows in all."""

_DOCUMENTS_AT_ONCE = 500
_CHARS_AT_ONCE = 2 << 20
_CHUNKS_AT_ONCE = 5_000
_PLAIN: Mapping[type, pa.DataType] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_MOST_COLUMNS = 100
_COLUMN = re.compile(r"[A-Za-z0-9_]{1,58}")


@dataclass(frozen=True, slots=True)
class ExportReport:
    path: Path
    collection: str
    position: int
    documents: int
    chunks: int
    """Of the chunking that is searched."""
    vectors: int
    """In all files of vectors."""
    bytes: int
    files: Sequence[str]
    seconds: float


def export(
    catalog: Catalog, name: str, target: Path, *, version: str, progress: Progress | None = None
) -> ExportReport:
    """Write the collection `name` to the folder `target`, which must not be there or be empty: all of it or nothing.

    Raises `CollectionNotFound`; `Conflict` where there is something at `target`, or another export to it is under way;
    `DiskFull`; `HomeError` where it cannot be written.
    """
    began = time.monotonic()
    with catalog.read() as connection:
        collection = collections.find(connection, name)
        with in_place_of(target) as folder:
            manifest = _Export(connection, collection, folder, progress).write(version)
    counted = {kind: sum(file.rows for file in manifest.of(kind)) for kind in ("documents", "vectors")}
    return ExportReport(
        target,
        name,
        manifest.collection.position,
        counted["documents"],
        next((file.rows for file in manifest.of("chunks")), 0),
        counted["vectors"],
        sum(file.bytes for file in manifest.files),
        [file.name for file in manifest.files],
        round(time.monotonic() - began, 2),
    )


@dataclass(frozen=True, slots=True)
class _Vectors:
    """A file of vectors."""

    name: str
    chunking: int
    space: int


class _Export:
    def __init__(self, connection: Connection, collection: Collection, folder: Path, progress: Progress | None) -> None:
        self._connection = connection
        self._collection = collection
        self._folder = folder
        self._progress = progress
        self._chunkings = collections.collection_chunkings(connection, collection.id)
        self._specs = {key: collections.chunking_spec(connection, key) for key in self._chunkings}
        self._spaces: dict[int, SpaceEntry] = {}
        self._total = 0
        self._done = 0

    def write(self, version: str) -> Manifest:
        found = self._vectors_there()
        keys = {one.space for one in found}
        self._spaces = {key: self._space(key) for key in sorted(keys)}
        plain = _plain_keys(self._connection, self._collection.id)
        with Files(self._folder) as files:
            documents = files.add(DOCUMENTS, "documents", _document_schema(plain))
            chunks = {
                key: files.add(f"chunks{_numbered(number)}.parquet", "chunks", CHUNK_COLUMNS, self._specs[key])
                for number, key in enumerate(self._chunkings)
            }
            made = {
                one: files.add(
                    one.name,
                    "vectors",
                    vector_columns(self._spaces[one.space].space.dimensions),
                    self._specs[one.chunking],
                    self._spaces[one.space].key,
                )
                for one in found
            }
            refused = files.add(REFUSED, "refused", REFUSED_COLUMNS)
            for group in self._documents(plain):
                documents.put([values for _, _, values in group])
                of = {key: (values[0], body) for key, body, values in group}
                for chunking, file in chunks.items():
                    for rows in self._chunks(group, chunking):
                        file.put([_chunk_values(row, *of[row.document_id]) for row in rows])
                        for one in found:
                            if one.chunking == chunking:
                                self._put_vectors(one, rows, made[one], refused)
                self._tell(len(group))
        return self._manifest(version, files, plain)

    # --- reading -----------------------------------------------------------------------------------------------------

    def _vectors_there(self) -> list[_Vectors]:
        """Each space in which chunks have vectors, or refusals; what is searched first."""
        chunks, found = t.chunks.c, t.vectors.c
        mine = chunks.collection_id == self._collection.id
        query = (
            select(chunks.chunking_id, found.space_id, func.count())
            .join_from(t.chunks, t.vectors, found.text_id == chunks.text_id)
            .where(mine)
            .group_by(chunks.chunking_id, found.space_id)
        )
        pairs = {(row[0], row[1]): int(row[2]) for row in self._connection.execute(query) if row[0] in self._specs}
        order = {key: number for number, key in enumerate(self._chunkings)}
        searched = self._searched_space()
        ranked = sorted(pairs, key=lambda pair: (order[pair[0]], pair[1] != searched, pair[1]))
        documents = select(func.count()).where(_wanted(self._collection.id))
        self._total = int(self._connection.execute(documents).scalar_one()) + sum(pairs.values())
        return [_Vectors(f"vectors{_numbered(number)}.parquet", *pair) for number, pair in enumerate(ranked)]

    def _searched_space(self) -> int | None:
        store, _ = collections.live_views(self._connection, self._collection)
        if store is None:
            fed = collections.fed(collections.views(self._connection, self._collection.id))
            store = next((row for row in fed if row.view.space_id is not None), None)
        return store.view.space_id if store is not None else None

    def _documents(self, plain: Mapping[str, _Column]) -> Iterator[list[_Document]]:
        """In groups, whose texts are a few megabytes together, or one long one."""
        after = 0
        while rows := self._connection.execute(_document_query(self._connection, self._collection.id, after)).all():
            after = rows[-1].id
            for some in _grouped(rows):
                texts = self._texts([row.id for row in some])
                yield [(row.id, texts.get(row.id, ""), _values(row, texts.get(row.id, ""), plain)) for row in some]

    def _texts(self, keys: Sequence[int]) -> dict[int, str]:
        columns = t.segments.c
        query = select(columns.document_id, columns.text).where(among(columns.document_id, keys))
        pieces: dict[int, list[str]] = {}
        for key, piece in self._connection.execute(query.order_by(columns.document_id, columns.ordinal)):
            pieces.setdefault(key, []).append(piece)
        return {key: "".join(some) for key, some in pieces.items()}

    def _chunks(self, group: Sequence[_Document], chunking: int) -> Iterator[Sequence[AnyRow]]:
        """Of these documents, in their order; of a long document some thousand at a time."""
        columns = t.chunks.c
        query = (
            select(*_CHUNK)
            .where(among(columns.document_id, [key for key, _, _ in group]), columns.chunking_id == chunking)
            .order_by(columns.document_id, columns.ordinal)
        )
        if len(group) > 1 or len(group[0][1]) <= _CHARS_AT_ONCE:
            if rows := self._connection.execute(query).all():
                yield rows
            return
        after = -1
        while rows := self._connection.execute(query.where(columns.ordinal > after).limit(_CHUNKS_AT_ONCE)).all():
            after = rows[-1].ordinal
            yield rows

    def _put_vectors(self, one: _Vectors, chunks: Sequence[AnyRow], file: File, refused: File) -> None:
        columns = t.vectors.c
        wanted = sorted({row.text_id for row in chunks})
        query = select(columns.text_id, columns.data).where(among(columns.text_id, wanted))
        query = query.where(columns.space_id == one.space)
        found = {row[0]: row[1] for row in bulk.fetch(self._connection, query)}
        kept = [row for row in chunks if found.get(row.text_id) is not None]
        file.put_vectors([row.public_id.hex() for row in kept], [found[row.text_id] for row in kept])
        if without := [row for row in chunks if row.text_id in found and found[row.text_id] is None]:
            reasons = select(columns.text_id, columns.reason).where(columns.space_id == one.space)
            asked = reasons.where(among(columns.text_id, {row.text_id for row in without}))
            said = {row.text_id: row.reason for row in self._connection.execute(asked)}
            refused.put([(row.public_id.hex(), one.name, said[row.text_id]) for row in without])
        self._tell(len(kept) + len(without))

    # --- saying ------------------------------------------------------------------------------------------------------

    def _space(self, key: int) -> SpaceEntry:
        found = compatible.serving(self._connection, key)
        return space_entry(*vectors.read_space(self._connection, key), _declared(found) if found is not None else None)

    def _tell(self, rows: int) -> None:
        self._done += rows
        if self._progress is not None:
            self._progress("exporting", self._done, self._total)

    def _manifest(self, version: str, files: Files, plain: Mapping[str, _Column]) -> Manifest:
        collection, space = self._collection, self._searched_space()
        revision = self._connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        if space is not None and space not in self._spaces:  # nothing was embedded in it yet
            self._spaces[space] = self._space(space)
        manifest = Manifest(
            format=FORMAT,
            whimbrel=version,
            schema_revision=str(revision),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            collection=CollectionEntry(
                name=collection.name,
                language=collection.language,
                epoch=collection.epoch,
                position=collection.head,
                searched=Searched(
                    chunking=self._specs[self._chunkings[0]] if self._chunkings else "",
                    space=self._spaces[space].key if space is not None else "",
                ),
            ),
            spaces=list(self._spaces.values()),
            chunkings=list(self._specs.values()),
            metadata_columns={column.name: key for key, column in plain.items()},
            files=files.entries(),
        )
        with (self._folder / MANIFEST).open("w", encoding="utf-8") as out:
            out.write(manifest.written())
            out.flush()
            os.fsync(out.fileno())
        return manifest


_Document = tuple[int, str, tuple[Any, ...]]
"""(key, text, the row's values)"""

_CHUNK: Sequence[Column[Any]] = [
    t.chunks.c[name]
    for name in ("public_id", "document_id", *CHUNK_COLUMNS.names[2:-1], "text_id")  # ordinal to context
]


def _declared(found: Compatible) -> DeclaredEntry:
    return DeclaredEntry(
        embedder=found.embedder,
        definition=asdict(found.space),
        checks=dict(found.checks),
        state="serving" if found.state is CompatibleState.SERVING else "finalised",
    )


def _numbered(number: int) -> str:
    return f"-{number + 1}" if number else ""


def _wanted(collection_id: int) -> Any:
    # + 0: see `whimbrel.catalog.rows._within`.
    return (t.documents.c.collection_id + 0 == collection_id) & (t.documents.c.state != DocumentState.GONE)


def _json(column: Column[Any], connection: Connection) -> Any:
    return cast(column, Text) if connection.dialect.name == "postgresql" else type_coerce(column, Text)


def _document_query(connection: Connection, collection_id: int, after: int) -> Select[Any]:
    columns = t.documents.c
    names = ["id", "public_id", "text_length", *(name for name in DOCUMENT_COLUMNS.names if name not in _MADE)]
    said = [_json(columns[name], connection).label(f"{name}_json") for name in ("metadata", "pages")]
    query = select(*(columns[name] for name in names), *said).where(_wanted(collection_id), columns.id > after)
    return query.order_by(columns.id).limit(_DOCUMENTS_AT_ONCE)


_MADE = ("id", "text", "metadata", "pages")


def _grouped(rows: Sequence[AnyRow]) -> Iterator[list[AnyRow]]:
    group: list[AnyRow] = []
    size = 0
    for row in rows:
        if group and size + row.text_length > _CHARS_AT_ONCE:
            yield group
            group, size = [], 0
        group.append(row)
        size += row.text_length
    if group:
        yield group


def _values(row: AnyRow, body: str, plain: Mapping[str, _Column]) -> tuple[Any, ...]:
    """Of a document, in the order of its columns."""
    made = {
        "id": row.public_id.hex(),
        "text": body,
        "metadata": row.metadata_json,
        "pages": row.pages_json,
        "created_at": _time(row.created_at),
        "updated_at": _time(row.updated_at),
    }
    fixed = [made[name] if name in made else getattr(row, name) for name in DOCUMENT_COLUMNS.names]
    said = json.loads(row.metadata_json) if plain else {}
    return (*fixed, *(said.get(key) for key in plain))


def _time(seconds: float) -> int:
    """Microseconds since the Unix epoch."""
    return round(seconds * 1e6)


def _chunk_values(row: AnyRow, document: str, body: str) -> tuple[Any, ...]:
    said = (row.ordinal, row.start, row.end, row.page, row.tokens, row.context)
    return (row.public_id.hex(), document, *said, body[row.start : row.end])


# --- columns of metadata ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    """Of one key of the metadata, whose values are of one plain type wherever it is."""

    name: str
    type: pa.DataType


def _plain_keys(connection: Connection, collection_id: int) -> dict[str, _Column]:
    """The commonest first. Names that differ only in case would be one to DuckDB: the rarer has no column."""
    kinds: dict[str, set[pa.DataType | None]] = {}
    counts: Counter[str] = Counter()
    query = select(_json(t.documents.c.metadata, connection)).where(_wanted(collection_id))
    with connection.execute(query, execution_options={"yield_per": 2_000}) as result:
        for written in result.scalars():
            for key, value in json.loads(written).items():
                if key in kinds or len(kinds) < 10 * _MOST_COLUMNS:
                    kinds.setdefault(key, set()).add(_plain(value))
                    counts[key] += 1
    found: dict[str, _Column] = {}
    taken: set[str] = set()
    for key, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        kind = next(iter(kinds[key])) if len(kinds[key]) == 1 else None
        if kind is None or not _COLUMN.fullmatch(key) or key.lower() in taken or len(found) == _MOST_COLUMNS:
            continue
        taken.add(key.lower())
        found[key] = _Column(f"{META}{key}", kind)
    return found


def _plain(value: Any) -> pa.DataType | None:
    if isinstance(value, list):
        inner = {_plain(one) for one in value}
        kind = inner.pop() if len(inner) == 1 else None
        return pa.list_(kind) if kind is not None and not pa.types.is_list(kind) else None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    if isinstance(value, str) and not _is_utf8(value):
        return None
    return _PLAIN.get(type(value))


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _document_schema(plain: Mapping[str, _Column]) -> pa.Schema:
    return pa.schema([*DOCUMENT_COLUMNS, *(pa.field(column.name, column.type) for column in plain.values())])
