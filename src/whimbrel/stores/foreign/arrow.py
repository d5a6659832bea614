"""Rows from Arrow tables and into them: what LanceDB and Parquet have in common."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whimbrel.errors import BadInput
from whimbrel.stores.envelope import loads as view_metadata
from whimbrel.stores.foreign import arrow_vectors, layout
from whimbrel.stores.foreign.arrow_types import is_string, is_utf8, keeps, unfit, value_type
from whimbrel.stores.foreign.base import (
    MARK,
    MORE,
    Chosen,
    Fetched,
    Field,
    Id,
    IdKind,
    Mark,
    Names,
    Rows,
    Table,
    VectorField,
)
from whimbrel.stores.foreign.values import as_text, dumps, loads
from whimbrel.stores.metrics import Metric

_VIEW = b"whimbrel:format"
_VIEW_COLUMNS = {"id", "text", "vector", "metadata"}
_UNFOLDED = "metadata"
"""A struct column of that name holds the metadata, one key a field: LangChain's and LlamaIndex's form."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of an Arrow table are."""

    id: str
    text: str | None
    vector: str
    dimensions: int
    """0: the type does not say."""
    ids: IdKind
    fields: Mapping[str, Field] = field(default_factory=dict)
    unfolded: str = ""
    more: bool = False
    view: bool = False
    """One of our own views: its `metadata` says everything, the other columns derive from it."""
    mark: Mark | None = None
    notes: Sequence[str] = ()
    several: Mapping[str, str] = field(default_factory=dict)
    """The columns of further vectors, by the vectors' names."""

    @classmethod
    def of(cls, schema: pa.Schema, chosen: Chosen, where: str) -> Columns:
        """Raises `BadInput` where it cannot be told what is what."""
        about = schema.metadata or {}
        mark = Mark.read(about.get(MARK.encode()))
        if _VIEW in about and set(schema.names) >= _VIEW_COLUMNS:
            return cls("id", "text", "vector", _dimensions(schema.field("vector").type), IdKind.STR, view=True)
        candidates = [one.name for one in schema if _is_vector(one)]
        several = arrow_vectors.columns(mark.vectors) if mark and not chosen.vector else {}
        vector = _main(candidates) if several else layout.vector_column(candidates, chosen, where)
        kinds = {one.name: kind for one in schema if (kind := _id_kind(one.type)) is not None}
        id_ = layout.id_column(kinds, chosen, (), where)
        texts = [one.name for one in schema if is_string(one.type) and one.name not in (id_, MORE)]
        text = ("text" if mark.text else None) if mark else layout.text_column(texts, chosen, where)
        left = [name for name in candidates if name != vector and name not in several.values()]
        taken = {id_, text, vector, MORE, *left, *several.values()}
        fields = {one.name: Field(value_type(one.type)) for one in schema if one.name not in taken}
        unfolded = _unfolded(fields)
        if unfolded:
            struct = fields.pop(unfolded).type
            inner = (struct.field(at) for at in range(struct.num_fields))
            fields |= {one.name: Field(value_type(one.type)) for one in inner}
        return cls(
            id_,
            text,
            vector,
            _dimensions(schema.field(vector).type) if vector else 0,
            mark.ids if mark else kinds[id_],
            fields,
            unfolded,
            MORE in schema.names,
            mark=mark,
            notes=[
                *(f"the vectors of the column {name!r} are left out" for name in left),
                *(_rounded(schema.field(vector).type) if vector else []),
            ],
            several=several,
        )

    def table(self, name: str, dimensions: int, identity: str, version: str | None, metric: Metric | None) -> Table:
        return Table(
            name,
            dimensions,
            metric or (self.mark.metric if self.mark else None),
            self.ids,
            Names(self.id, self.text or "text", self.vector or "vector"),
            has_text=self.text is not None,
            fields=self.fields,
            main=self.mark.main if self.mark else "",
            vectors=self.mark.vectors if self.mark and self.several else {},
            declared=not self.view,
            about=self.mark.about if self.mark else {},
            notes=self.notes,
            identity=identity,
            version=version,
        )

    # --- reading -----------------------------------------------------------------------------------------------------

    def ids_of(self, column: pa.ChunkedArray) -> list[Id]:
        found = column.to_pylist()
        if any(id_ is None for id_ in found):
            raise BadInput(f"The column {self.id!r} has a row without an id. Nothing was copied of it.", "Give it one.")
        return [id_ if isinstance(id_, UUID) else UUID(id_) for id_ in found] if self.ids is IdKind.UUID else found

    def rows(self, found: pa.Table, dimensions: int) -> Fetched:
        """Of a table with all columns. Those without a vector of these dimensions are unfit."""
        ids = self.ids_of(found[self.id])
        if self.vector:
            vectors, unfit = vectors_of(found[self.vector], dimensions)
        else:
            vectors, unfit = np.zeros((len(ids), 0), np.float32), {}
        texts = _values(found[self.text]) if self.text is not None else [None] * len(ids)
        more = {name: arrow_vectors.read(found[column], self._field(name)) for name, column in self.several.items()}
        rows = Rows(ids, vectors, texts, self._metadata(found), more)
        if not unfit:
            return Fetched(rows)
        kept = [row for row in range(len(ids)) if row not in unfit]
        return Fetched(rows.taken(kept), {ids[row]: why for row, why in unfit.items()})

    def _field(self, name: str) -> VectorField:
        assert self.mark is not None
        return self.mark.vectors[name]

    def _metadata(self, found: pa.Table) -> list[dict[str, Any]]:
        if self.view:
            return [dict(view_metadata(one)) for one in found["metadata"].to_pylist()]
        metadata: list[dict[str, Any]] = [{} for _ in range(found.num_rows)]
        for name in self.fields:
            if name in found.column_names:
                for one, value in zip(metadata, _values(found[name]), strict=True):
                    if value is not None:
                        one[name] = value
        if self.unfolded:
            for one, struct in zip(metadata, _values(found[self.unfolded]), strict=True):
                one.update({key: value for key, value in (struct or {}).items() if value is not None})
        if self.more:
            for one, more in zip(metadata, found[MORE].to_pylist(), strict=True):
                if more is not None:
                    one.update(loads(more))
        return metadata


@dataclass(frozen=True, slots=True)
class Form:
    """The Arrow table that a sink makes: id, text, vector, a column for each field, and the envelope."""

    names: Names
    dimensions: int
    ids: IdKind
    fields: Mapping[str, Field]
    has_text: bool = True
    vectors: Mapping[str, VectorField] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Table) -> Form:
        names = Names()
        several = arrow_vectors.columns(table.vectors).values()
        taken = {one.lower() for one in (names.id, names.text, names.vector, MORE, *several)}
        fields = {}
        for name, one in table.fields.items():
            plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", name) and name.lower() not in taken
            if plain and not one.json and keeps(one.type):
                fields[name] = one
                taken.add(name.lower())
        return cls(names, table.dimensions, table.ids, fields, table.has_text, table.vectors)

    @classmethod
    def read(cls, schema: pa.Schema, table: Table) -> Form:
        """Of a table that is there."""
        names = Names()
        fixed = (names.id, names.text, names.vector, MORE, *arrow_vectors.columns(table.vectors).values())
        fields = {one.name: Field(one.type) for one in schema if one.name not in fixed}
        return cls(names, table.dimensions, table.ids, fields, names.text in schema.names, table.vectors)

    def schema(self, mark: Mark) -> pa.Schema:
        vector = pa.list_(pa.float32(), max(1, self.dimensions))
        several = arrow_vectors.columns(self.vectors)
        columns = [
            pa.field(self.names.id, pa.int64() if self.ids is IdKind.INT else pa.string(), nullable=False),
            *([pa.field(self.names.text, pa.string())] if self.has_text else []),
            *([pa.field(self.names.vector, vector)] if self.dimensions else []),
            *(pa.field(column, arrow_vectors.type_of(self.vectors[name])) for name, column in several.items()),
            *(pa.field(name, one.type) for name, one in self.fields.items()),
            pa.field(MORE, pa.string()),
        ]
        return pa.schema(columns, metadata={MARK: mark.written()})

    def refused(self, rows: Rows) -> dict[int, str]:
        found: dict[int, str] = {}
        for row, (id_, text) in enumerate(zip(rows.ids, rows.texts, strict=True)):
            if isinstance(id_, int) and not -(2**63) <= id_ < 2**63:
                found[row] = "its id is past 64 bits"
            elif (isinstance(id_, str) and not is_utf8(id_)) or (text is not None and not is_utf8(text)):
                found[row] = "its id or text is no valid Unicode"
        return found

    def _cells(self, metadata: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[Any]], list[str | None]]:
        """(the columns, the envelopes with what these do not say)"""
        columns = {name: [one.get(name) for one in metadata] for name in self.fields}
        odd: dict[int, list[str]] = {}
        said = [0] * len(metadata)
        for name, values in columns.items():
            kind = self.fields[name].type
            for row, value in enumerate(values):
                said[row] += value is not None
            for row in unfit(values, kind):
                odd.setdefault(row, []).append(name)
                values[row] = as_text(values[row]) if is_string(kind) else None  # readable all the same
        envelopes: list[str | None] = [None] * len(metadata)
        for row, one in enumerate(metadata):
            if row in odd or said[row] < len(one):
                held = self.fields.keys() - odd.get(row, [])
                more = {key: value for key, value in one.items() if value is None or key not in held}
                envelopes[row] = dumps(more)
        return columns, envelopes

    def table(self, rows: Rows, mark: Mark) -> pa.Table:
        """The rows, under `schema`."""
        schema = self.schema(mark)
        flat = pa.array(np.ascontiguousarray(rows.vectors, np.float32).reshape(-1))
        columns, envelopes = self._cells(rows.metadata)
        ids = [self.ids.text(id_) for id_ in rows.ids] if self.ids is IdKind.UUID else list(rows.ids)
        arrays = {
            self.names.id: pa.array(ids, schema.field(self.names.id).type),
            self.names.text: pa.array(rows.texts, pa.string()),
            self.names.vector: pa.FixedSizeListArray.from_arrays(flat, max(1, self.dimensions)),
            **{
                column: arrow_vectors.written(rows.more[name], self.vectors[name])
                for name, column in arrow_vectors.columns(self.vectors).items()
            },
            MORE: pa.array(envelopes, pa.string()),
            **{name: pa.array(column, self.fields[name].type) for name, column in columns.items()},
        }
        return pa.table([arrays[one.name] for one in schema], schema=schema)


def _main(candidates: Sequence[str]) -> str:
    """Of a table that a copy made of rows with several vectors; empty where each has a name."""
    return Names().vector if Names().vector in candidates else ""


def _id_kind(kind: pa.DataType) -> IdKind | None:
    if is_string(kind):
        return IdKind.STR
    if isinstance(kind, pa.UuidType):
        return IdKind.UUID
    return IdKind.INT if pa.types.is_integer(kind) else None


def _is_vector(one: pa.Field) -> bool:
    kind = one.type
    if pa.types.is_fixed_size_list(kind):
        return bool(pa.types.is_floating(kind.value_type)) and kind.list_size > 1
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list) and pa.types.is_floating(kind.value_type) and one.name.lower() in layout.VECTORS


def _dimensions(kind: pa.DataType) -> int:
    return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else 0


def _rounded(kind: pa.DataType) -> list[str]:
    return ["vectors of 64-bit numbers are rounded to 32 bits"] if pa.types.is_float64(kind.value_type) else []


def _unfolded(fields: Mapping[str, Field]) -> str:
    found = fields.get(_UNFOLDED)
    if found is None or not pa.types.is_struct(found.type):
        return ""
    inner = {found.type.field(at).name for at in range(found.type.num_fields)}
    return "" if inner & fields.keys() - {_UNFOLDED} else _UNFOLDED


def vectors_of(column: pa.ChunkedArray, dimensions: int) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
    """(float32[n, d], why some rows have none; those are zeros)."""
    array = column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    rows = len(array)
    lengths = pc.list_value_length(array).fill_null(-1).to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(array.type) and not array.null_count:
        lengths = np.full(rows, array.type.list_size)
    good = lengths == dimensions
    vectors = np.zeros((rows, dimensions), np.float32)
    if good.any():
        kept = array.filter(pa.array(good)) if not good.all() else array
        flat = kept.flatten()
        if flat.null_count:
            flat = flat.fill_null(math.nan)
        vectors[good] = flat.to_numpy(zero_copy_only=False).reshape(-1, dimensions)
    said = {-1: "it has no vector"}
    return vectors, {
        int(row): said.get(int(lengths[row]), f"its vector has {int(lengths[row])} dimensions")
        for row in np.flatnonzero(~good)
    }


def _values(column: pa.ChunkedArray) -> list[Any]:
    """As Python's, where Python has such values; else as text."""
    try:
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            column = column.cast(pa.timestamp("us", column.type.tz))
        found: list[Any] = column.to_pylist()
    except (ValueError, ImportError):  # nanoseconds that Python's times do not have
        found = column.cast(pa.string()).to_pylist()
    return found if pa.types.is_primitive(column.type) or is_string(column.type) else [_plain(one) for one in found]


def _plain(value: Any) -> Any:
    """Structs, maps and tuples as JSON has them."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def dimensions_of(column: pa.ChunkedArray) -> int:
    """Of the most rows of a sample."""
    lengths = [length for length in pc.list_value_length(column).to_pylist() if length]
    return max(set(lengths), key=lengths.count) if lengths else 0


def schema_fingerprint(schema: pa.Schema) -> str:
    return json.dumps([[one.name, str(one.type)] for one in schema])
