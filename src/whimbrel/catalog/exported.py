"""The form of an exported collection: a folder of Parquet files, and what its manifest says of them.

    documents.parquet          one row a document, with its text and metadata
    chunks.parquet             one row a chunk, in the order of the documents; `chunks-2.parquet` of a second chunking
    vectors.parquet            id of a chunk and its vector; `vectors-2.parquet` of another space or chunking
    refused.parquet            chunks whose text a model refused, and why; only where there are any
    manifest.json              format, versions, position, spaces, and of each file: rows, bytes, SHA-256

Every column is of a plain type, without dictionaries, so that what a file says of its size is what it unpacks to. Files
of chunks and vectors are in the order of the documents: all of them are read side by side, in one pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whimbrel.domain import Space
from whimbrel.errors import BackupError

FORMAT = 1
MANIFEST = "manifest.json"
DOCUMENTS = "documents.parquet"
REFUSED = "refused.parquet"
META = "meta_"
"""What a column of one key of the metadata begins with."""

MAX_MANIFEST_BYTES = 4 << 20
_FILE = re.compile(r"(documents|refused|(chunks|vectors)(-[1-9][0-9]{0,3})?)\.parquet")
_SHA256 = r"^[0-9a-f]{64}$"

DOCUMENT_COLUMNS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("external_id", pa.string()),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("root", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("cut_title", pa.string()),
        pa.field("media_type", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("pages", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("recipe", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("created_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("updated_at", pa.timestamp("us", "UTC"), nullable=False),
    ]
)
"""`metadata`: a JSON object. `pages`: a JSON list of [offset, page number]."""

CHUNK_COLUMNS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("ordinal", pa.int32(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("page", pa.int32()),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("context", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)
"""`text` is the document's at `[start, end)`, in characters. A model reads the context, a line feed, and the text."""

REFUSED_COLUMNS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("vectors", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""`vectors`: the file that the vector of the chunk `id` would be in."""


def vector_columns(dimensions: int) -> pa.Schema:
    vector = pa.list_(pa.field("item", pa.float32(), nullable=False), dimensions)
    return pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("vector", vector, nullable=False)])


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(_Said):
    """A file of the folder."""

    name: str
    holds: Literal["documents", "chunks", "vectors", "refused"]
    chunking: str = ""
    """Of chunks and vectors: how they were cut."""
    space: str = ""
    """Of vectors: the key of their space."""
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=_SHA256)


_Definition = dict[str, str | int | bool]
_Name = Annotated[str, Field(pattern=r"^[\w@]{1,60}$")]


class DeclaredEntry(_Said):
    """The model that a person declared to serve a space which another made, by what was measured."""

    embedder: str
    """`provider:model`."""
    definition: _Definition
    """Of the model's own space."""
    checks: dict[_Name, int | float | dict[_Name, int | float]]
    state: Literal["serving", "finalised"]

    @property
    def space(self) -> Space:
        return Space(**self.definition)  # type: ignore[arg-type]  # checked by `read_manifest`


class SpaceEntry(_Said):
    key: str
    embedder: str
    """`provider:model`, as it was configured when the space was made; `none` where its model was not there."""
    definition: _Definition
    declared: DeclaredEntry | None = None
    """What serves it, where that is another model than its own."""

    @property
    def space(self) -> Space:
        return Space(**self.definition)  # type: ignore[arg-type]  # checked by `read_manifest`


class Searched(_Said):
    """What the collection is searched in. Empty where it has no view yet."""

    chunking: str
    space: str


class CollectionEntry(_Said):
    name: str
    language: str
    epoch: str
    position: int = Field(ge=0)
    """Of the log: every change up to here is in the files, and none after."""
    searched: Searched


class Manifest(_Said):
    format: int
    whimbrel: str
    """The version that made it."""
    schema_revision: str
    """Of the catalog that it was made from."""
    created_at: str
    collection: CollectionEntry
    spaces: list[SpaceEntry]
    chunkings: list[str]
    metadata_columns: dict[str, str]
    """Columns of documents.parquet that repeat a key of the metadata, with the key."""
    files: list[FileEntry]

    def written(self) -> str:
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n"

    def of(self, holds: str) -> list[FileEntry]:
        return [file for file in self.files if file.holds == holds]

    def space_of(self, file: FileEntry) -> Space:
        return next(one.space for one in self.spaces if one.key == file.space)


def space_entry(space: Space, embedder: str, declared: DeclaredEntry | None) -> SpaceEntry:
    return SpaceEntry(key=space.key, embedder=embedder, definition=asdict(space), declared=declared)


def read_manifest(written: bytes, where: str) -> Manifest:
    """Raises `BackupError`, which says whether it is newer than this program, or says something that cannot be."""
    try:
        said = json.loads(written, parse_constant=_refuse)
        format_ = said["format"]
        whimbrel = said["whimbrel"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise lying(where, f"{MANIFEST} is not that of an export") from error
    if not isinstance(format_, int) or format_ > FORMAT:
        raise BackupError(
            f"The export {where} was made by a newer version of Whimbrel ({str(whimbrel)[:40]}, format "
            f"{str(format_)[:20]}). Nothing was written.",
            "Upgrade Whimbrel, then import it.",
        )
    try:
        found = Manifest.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise lying(where, f"{MANIFEST} is not that of an export ({place}: {first['msg']})") from error
    if trouble := _impossible(found):
        raise lying(where, f"{MANIFEST} says what cannot be: {trouble}")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def lying(where: str, what: str) -> BackupError:
    return BackupError(
        f"The export {where} cannot be used: {what}. Nothing was written.",
        "Export the collection again, or copy the folder once more from where it was made.",
    )


def _impossible(manifest: Manifest) -> str:
    """What contradicts itself; empty where nothing does."""
    names = [file.name for file in manifest.files]
    odd = [name for name in names if not _FILE.fullmatch(name)]
    if odd or len(set(names)) < len(names):
        return f"a file is called {odd[0]!r}" if odd else "a file comes twice"
    if trouble := _impossible_spaces(manifest.spaces):
        return trouble
    searched = manifest.collection.searched
    if searched.chunking and searched.chunking not in manifest.chunkings:
        return "its chunking is not among those that it has"
    if searched.space and searched.space not in [one.key for one in manifest.spaces]:
        return "its space is not among those that it has"
    return _impossible_files(manifest)


def _impossible_spaces(spaces: Sequence[SpaceEntry]) -> str:
    if len({one.key for one in spaces}) < len(spaces):
        return "a space comes twice"
    for one in spaces:
        declared = one.declared
        if not _is_definition(one.definition) or (declared is not None and not _is_definition(declared.definition)):
            return f"the space {one.key!r} is not described as one is"
        if one.space.key != one.key or not 0 < one.space.dimensions <= 1 << 16:
            return f"the space {one.key!r} is described as another one"
        if declared is not None and not _are_comparable(declared.space, one.space):
            return f"the space {one.key!r} is served by a model whose vectors cannot be compared with its own"
    return ""


def _is_definition(given: Mapping[str, Any]) -> bool:
    kinds = {"str": str, "int": int, "bool": bool}
    wanted = {name: kinds[str(field.type)] for name, field in Space.__dataclass_fields__.items()}
    return given.keys() == wanted.keys() and all(type(given[name]) is kind for name, kind in wanted.items())


def _are_comparable(one: Space, other: Space) -> bool:
    return one.dimensions == other.dimensions


def _impossible_files(manifest: Manifest) -> str:
    if [file.name for file in manifest.of("documents")] != [DOCUMENTS]:
        return f"it names no {DOCUMENTS}"
    if any(file.name != REFUSED for file in manifest.of("refused")):
        return f"refused texts are not in {REFUSED}"
    chunkings = [file.chunking for file in manifest.of("chunks")]
    if sorted(chunkings) != sorted(set(manifest.chunkings)) or len(set(chunkings)) < len(manifest.chunkings):
        return "there is not one file of chunks for each chunking"
    if any(not file.name.startswith(file.holds) for file in manifest.files):
        return "a file does not hold what its name says"
    spaces = {one.key for one in manifest.spaces}
    pairs = [(file.chunking, file.space) for file in manifest.of("vectors")]
    if len(set(pairs)) < len(pairs) or any(pair[0] not in chunkings or pair[1] not in spaces for pair in pairs):
        return "a file of vectors is of a chunking or a space that there is not, or comes twice"
    return ""
