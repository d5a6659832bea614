"""How a row lies in the table: fixed columns, and one typed column per metadata path and type, added when first met.

| column | type | what |
|---|---|---|
| `id` | string | the chunk's public id |
| `text` | string | the chunk's text |
| `vector` | fixed_size_list<float32>[d] | |
| `metadata` | string | the metadata as JSON, exactly: what is read back |
| others | string, int64, double, bool, or a list | one path of the metadata; for filters and other programs |
| `metadata_more` | list<string> | what has no column, once there are too many paths |

A path's first type has the path's own name where that is a plain one; another type of the same path, and the arrays,
have columns beside it. Which column holds what is written in the field's metadata, so that names need no decoding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whimbrel.domain import Metadata
from whimbrel.filters import Scalar, facts, flatten
from whimbrel.stores.arrays import CodedMetadata
from whimbrel.stores.tabular import Numbers, Plain, Tabular, gathered, tabulated

ID, TEXT, VECTOR, METADATA, MORE = "id", "text", "vector", "metadata", "metadata_more"
FIXED = (ID, TEXT, VECTOR, METADATA)

_RESERVED = frozenset({*FIXED, MORE, "_distance", "_score", "_relevance_score", "_rowid", "_rowaddr"})
_PATH, _KIND, _MANY = b"whimbrel:path", b"whimbrel:kind", b"whimbrel:many"


class Kind(StrEnum):
    STR = "str"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"


_ARROW = {Kind.STR: pa.string(), Kind.INT: pa.int64(), Kind.FLOAT: pa.float64(), Kind.BOOL: pa.bool_()}


@dataclass(frozen=True, slots=True)
class Slot:
    """What a column holds: the scalars of one kind at one path; `many` where a row has more than one of them."""

    path: str
    kind: Kind
    many: bool

    @property
    def type(self) -> pa.DataType:
        return pa.list_(_ARROW[self.kind]) if self.many else _ARROW[self.kind]


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    slot: Slot

    @property
    def field(self) -> pa.Field:
        about = {_PATH: self.slot.path.encode(), _KIND: self.slot.kind.encode(), _MANY: b"1" if self.slot.many else b""}
        return pa.field(self.name, self.slot.type, metadata=about)


@dataclass(frozen=True)
class Columns:
    """The metadata columns of a table at one version."""

    of: Mapping[Slot, Column] = field(default_factory=dict)
    overflows: bool = False
    """`metadata_more` is there: some row has values without a column."""

    @classmethod
    def read(cls, schema: pa.Schema) -> Columns:
        found: dict[Slot, Column] = {}
        for known in schema:
            about = known.metadata or {}
            if _PATH in about:
                slot = Slot(about[_PATH].decode(), Kind(about[_KIND].decode()), bool(about[_MANY]))
                found[slot] = Column(known.name, slot)
        return cls(found, MORE in schema.names)

    def at(self, path: str) -> list[Column]:
        """The columns of one path, in a fixed order."""
        slots = (Slot(path, kind, many) for kind in Kind for many in (False, True))
        return [self.of[slot] for slot in slots if slot in self.of]

    def with_(self, slots: Iterable[Slot], limit: int) -> Columns:
        """These columns and new ones for `slots`, up to `limit` in all; beyond it, values overflow."""
        columns, overflows = dict(self.of), self.overflows
        taken = {name.lower() for name in _RESERVED} | {column.name.lower() for column in columns.values()}
        paths = {slot.path for slot in columns}
        for slot in slots:
            if slot in columns:
                continue
            if len(columns) >= limit:
                overflows = True
                continue
            columns[slot] = Column(_name(slot, slot.path not in paths, taken), slot)
            taken.add(columns[slot].name.lower())
            paths.add(slot.path)
        return Columns(columns, overflows)

    def fields_beyond(self, other: Columns) -> list[pa.Field]:
        """The fields that a table with the columns of `other` lacks."""
        fields = [column.field for slot, column in self.of.items() if slot not in other.of]
        if self.overflows and not other.overflows:
            fields.append(pa.field(MORE, pa.list_(pa.string())))
        return fields


def table_schema(dimensions: int, about: Mapping[str, str]) -> pa.Schema:
    """The schema of an empty table."""
    fields = [
        pa.field(ID, pa.string(), nullable=False),
        pa.field(TEXT, pa.string()),
        pa.field(VECTOR, pa.list_(pa.float32(), dimensions)),
        # Compressed, it is 5 % less of a table and 10 % more of a write: what it says is in the other columns too.
        pa.field(METADATA, pa.string(), metadata={b"lance-encoding:compression": b"none"}),
    ]
    return pa.schema(fields, metadata=dict(about))


@dataclass(frozen=True)
class EncodedMetadata:
    columns: Columns
    """What the table must have before the arrays can be written."""
    arrays: Mapping[str, pa.Array]
    """Per column that has any value; the others are null."""


def encode(metadata: Sequence[Metadata], columns: Columns, limit: int) -> EncodedMetadata:
    """The metadata of n rows as arrays of length n, and the columns that they need.

    All chunks of a document share its metadata, so each distinct one is taken apart once, and column by column.
    """
    coded = CodedMetadata.of(metadata).compact()
    distinct = coded.distinct
    table = tabulated(distinct)
    cells = _cells(table, distinct)
    grown = columns.with_(cells, limit)
    arrays = {METADATA: coded.json if coded.has_json else table.json(distinct)}
    more: dict[int, list[str]] = {}
    for slot, parts in cells.items():
        column = grown.of.get(slot)
        if column is not None:
            arrays[column.name] = gathered(parts, len(distinct))
            continue
        for rows, array in parts:
            for row, value in zip(rows.tolist(), array.to_pylist(), strict=True):
                if value is not None:
                    more.setdefault(row, []).extend(_more(slot.path, value if slot.many else [value]))
    if more:
        arrays[MORE] = pa.array([more.get(row) for row in range(len(distinct))], pa.list_(pa.string()))
    if len(distinct) < len(metadata):
        arrays = {name: array.take(coded.codes) for name, array in arrays.items()}
    return EncodedMetadata(grown, arrays)


def _cells(table: Tabular, metadata: Sequence[Metadata]) -> dict[Slot, list[tuple[Numbers, pa.Array]]]:
    """What each slot holds: numbers of rows, and their values, of which some may be null."""
    found: dict[Slot, list[tuple[Numbers, pa.Array]]] = {}
    others: dict[Slot, dict[int, Any]] = {}
    for form in table.forms:
        for path, column in form.columns.items():
            if isinstance(column, Plain):
                if column.array.null_count < len(column.array):
                    found.setdefault(_slot_of(path, column), []).append((form.rows, _unsigned_zero(column.array)))
                continue
            for row, scalars in zip(form.rows.tolist(), column.scalars, strict=True):
                _put(others, row, path, scalars)
    for row in table.others.tolist():
        for path, scalars in flatten(metadata[row]).items():
            _put(others, row, path, scalars)
    for slot, values in others.items():
        rows = np.fromiter(values, np.int64, len(values))
        found.setdefault(slot, []).append((rows, pa.array(list(values.values()), slot.type)))
    return found


def _put(cells: dict[Slot, dict[int, Any]], row: int, path: str, scalars: Sequence[Scalar]) -> None:
    for slot, value in _slots(path, scalars):
        cells.setdefault(slot, {})[row] = value


def _slot_of(path: str, column: Plain) -> Slot:
    (kind,) = (kind for kind, type_ in _ARROW.items() if type_ == column.array.type)
    return Slot(path, kind, False)


def _unsigned_zero(array: pa.Array) -> pa.Array:
    """-0.0 becomes 0.0: some kernels hold them apart."""
    return pc.add(array, 0.0) if array.type == pa.float64() else array


def more_path(path: str) -> str:
    """The entry of `metadata_more` that says that there is a value at `path`."""
    return f"p{path}"


def more_value(path: str, value: Scalar) -> str:
    """The entry of `metadata_more` for one value at `path`; the length keeps path and value apart."""
    return f"v{len(path)}:{path}{facts.key(value)}"


def _more(path: str, values: Iterable[Scalar]) -> list[str]:
    return [more_path(path), *dict.fromkeys(more_value(path, value) for value in values)]


def _slots(path: str, scalars: Sequence[Scalar]) -> Iterable[tuple[Slot, Any]]:
    if len(scalars) == 1:
        kind, value = _typed(scalars[0])
        yield Slot(path, kind, False), value
        return
    kinds: dict[Kind, list[Scalar]] = {}
    for scalar in scalars:
        kind, value = _typed(scalar)
        kinds.setdefault(kind, []).append(value)
    for kind, values in kinds.items():
        yield (Slot(path, kind, True), values) if len(values) > 1 else (Slot(path, kind, False), values[0])


def _typed(scalar: Scalar) -> tuple[Kind, Scalar]:
    if isinstance(scalar, str):
        return Kind.STR, scalar
    if isinstance(scalar, bool):
        return Kind.BOOL, scalar
    if isinstance(scalar, int):
        return Kind.INT, scalar
    return Kind.FLOAT, scalar + 0.0  # as `_unsigned_zero`


def _name(slot: Slot, first: bool, taken: set[str]) -> str:
    """A name of ASCII letters, digits and `_`, unlike any other but for case: Lance may look columns up without it."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", slot.path)[:64]
    if not re.match(r"[A-Za-z]", name):
        name = f"m_{name}"
    if not first:
        name += f"__{slot.kind}" + ("_list" if slot.many else "")
    if name.lower() in taken:
        name += "_" + blake2b(repr(slot).encode(), digest_size=6).hexdigest()
    return name
