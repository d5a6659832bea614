"""A file of Milvus Lite 2: an SQLite database, read as it is, without Milvus Lite.

Its table `collection_meta` has the schema and the indexes of each collection; each collection is a table with a row for
each row of it, whose `data` are its fields as Milvus' protocol writes them. The later versions of Milvus Lite do not
read it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.errors import StoreRefused, StoreUnsupported, ViewDamaged
from whimbrel.stores.foreign.milvus_collections import Collections, Column, Key, Made, Shape
from whimbrel.stores.milvus.connection import import_pymilvus

META = "collection_meta"
_PAGE = 500
_OWN = ("RowID", "Timestamp")


def is_old(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


class OldCollections(Collections):
    """To be read only."""

    local = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        query = f"SELECT DISTINCT collection_name FROM {META} WHERE meta_type = 'schema'"
        return [str(name) for (name,) in self._rows(query)]

    def shape(self, name: str) -> Shape | None:
        query = f"SELECT meta_type, CAST(blob_field AS BLOB) FROM {META} WHERE collection_name = ? ORDER BY id"
        metas = self._rows(query, [name])
        schemas = [blob for kind, blob in metas if kind == "schema"]
        if not schemas:
            return None
        proto = _proto()
        schema = proto.CollectionSchema.FromString(schemas[-1])
        metrics = dict(metric for kind, blob in metas if kind == "index" if (metric := _index(blob)))
        columns = [
            Column(
                one.name,
                proto.DataType.Name(one.data_type).upper() if one.data_type not in _NAMES else _NAMES[one.data_type],
                next((int(each.value) for each in one.type_params if each.key == "dim"), 0),
                one.is_primary_key,
                metrics.get(one.name, ""),
            )
            for one in schema.fields
            if one.name not in _OWN and not one.is_dynamic
        ]
        return Shape(
            name,
            columns,
            schema.enable_dynamic_field,
            schema.description,
            identity=f"milvus lite 2 {self._path.resolve()} {name}",
        )

    def keys(self, shape: Shape) -> Iterator[list[Key]]:
        kind = int if shape.key.kind == "INT64" else str
        yield [kind(one) for (one,) in self._rows(f"SELECT milvus_id FROM {_quoted(shape.name)} ORDER BY id")]

    def rows(self, shape: Shape, keys: Sequence[Key]) -> list[dict[str, Any]]:
        found = []
        for start in range(0, len(keys), _PAGE):
            some = [str(key) for key in keys[start : start + _PAGE]]
            marks = ", ".join("?" * len(some))
            query = f"SELECT CAST(data AS BLOB) FROM {_quoted(shape.name)} WHERE milvus_id IN ({marks})"
            found += [_row(data) for (data,) in self._rows(query, some)]
        return found

    def nearest(self, shape: Shape, column: Column, vector: npt.NDArray[np.float32], k: int, where: str) -> list[Key]:
        raise NotImplementedError("a file of Milvus Lite 2 is measured row by row")

    def make(self, made: Made) -> None:
        raise self._read_only()

    def put(self, shape: Shape, rows: list[dict[str, Any]]) -> None:
        raise self._read_only()

    def delete(self, shape: Shape, keys: Sequence[Key]) -> None:
        raise self._read_only()

    def finish(self, shape: Shape) -> None:
        raise self._read_only()

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _read_only(self) -> StoreRefused:
        return StoreRefused(
            f"{self._path} was written by Milvus Lite 2; it can be read, not written. Nothing was changed.",
            "Name another file.",
        )

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
        try:
            with closing(sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True)) as database:
                if not database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [META]).fetchone():
                    raise StoreUnsupported(f"{self._path} is an SQLite database, but not of Milvus Lite.", "")
                return database.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise ViewDamaged(f"{self._path} cannot be read: {error}.", "Restore it from a copy.") from error


_NAMES = {21: "VARCHAR", 22: "ARRAY", 23: "JSON", 100: "BINARY_VECTOR", 101: "FLOAT_VECTOR", 102: "FLOAT16_VECTOR",
          103: "BFLOAT16_VECTOR", 104: "SPARSE_FLOAT_VECTOR"}  # fmt: skip


def _proto() -> Any:
    import_pymilvus()
    from pymilvus.grpc_gen import schema_pb2

    return schema_pb2


def _index(blob: bytes) -> tuple[str, str] | None:
    """(field, metric) of an index."""
    from pymilvus.grpc_gen import schema_pb2

    # Its parameters are pairs, as those of a field are; its name is a string, as theirs.
    read = schema_pb2.FieldSchema.FromString(_as_field(blob))
    metric = next((one.value for one in read.type_params if one.key == "metric_type"), "")
    return (read.name, metric) if read.name else None


def _as_field(blob: bytes) -> bytes:
    """The index' third and fifth parts (its field's name and its parameters) as the second and sixth of a field."""
    found, at = b"", 0
    while at < len(blob):
        tag, at = _varint(blob, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, at = _varint(blob, at)
            continue
        if wire != 2:
            break
        start = at
        length, at = _varint(blob, at)
        at += length
        renamed = {3: 2, 5: 6}.get(number)
        if renamed:
            found += bytes([renamed << 3 | 2]) + blob[start:at]
    return found


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _row(data: bytes) -> dict[str, Any]:
    from pymilvus.grpc_gen import schema_pb2

    row: dict[str, Any] = {}
    for one in schema_pb2.StructArrayField.FromString(data).fields:  # a list of fields, as a row is
        if one.field_name in _OWN:
            continue
        if one.WhichOneof("field") == "vectors":
            row[one.field_name] = list(one.vectors.float_vector.data) or None
            continue
        scalars = one.scalars
        which = scalars.WhichOneof("data")
        values = getattr(scalars, which).data if which else []
        value = values[0] if len(values) else None
        if which == "json_data" and value is not None:
            value = json.loads(value)
        elif which == "array_data" and value is not None:
            inner = value.WhichOneof("data")
            value = list(getattr(value, inner).data) if inner else []
        if one.field_name == "$meta":
            row |= value or {}
        else:
            row[one.field_name] = value
    return row


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
