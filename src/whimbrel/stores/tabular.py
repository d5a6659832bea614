"""Metadata column by column: what takes each row apart in Python takes ten times as long.

Rows with the same keys in the same order are of one form. Where all values at a key are of one plain type, as they
mostly are, one Arrow call makes the column, and the JSON of the rows is put together from those columns. What comes out
is what `flatten` and `envelope.dumps` say of each row, byte for byte; rows that cannot be taken that way are named, and
go one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from whimbrel.domain import Metadata
from whimbrel.filters import Scalar, flatten
from whimbrel.stores.envelope import dumps, is_reserved

MIN_ROWS = 8
"""Of a form; fewer go one by one: a column costs about as much as so many values."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plain:
    """The values at one key: scalars of one type, or None."""

    array: pa.Array
    """string, int64, double or bool; None is null. A double keeps its sign at zero."""

    def json(self) -> list[Any]:
        """What is joined for the JSON of each row: Arrow arrays, and strings that stand for every row."""
        if self.array.type == pa.string():
            return _quoted(self.array)
        if self.array.type == pa.float64():
            return [pc.fill_null(_written(self.array), "null")]
        return [pc.fill_null(self.array.cast(pa.string()), "null")]


@dataclass(frozen=True, slots=True)
class Loose:
    """The values at one key: lists, or scalars of several types."""

    scalars: Sequence[Sequence[Scalar]]
    """Of each row, as `flatten` gives them."""
    written: pa.Array
    """string: their JSON."""

    def json(self) -> list[Any]:
        return [self.written]


@dataclass(frozen=True, slots=True)
class Form:
    """m rows of the same keys."""

    rows: Numbers
    """int64[m]: their numbers, ascending."""
    columns: Mapping[str, Plain | Loose]
    """By key, which is the path too: nothing nests here."""

    def json(self) -> pa.Array:
        """string[m]"""
        if not self.columns:
            return pa.array(["{}"] * len(self.rows), pa.string())
        pieces: list[Any] = []
        for number, (key, column) in enumerate(self.columns.items()):
            before = ("," if number else "{") + encode_basestring(key) + ":"
            pieces += [before, *column.json()]
        return pc.binary_join_element_wise(*_merged([*pieces, "}"]), "")


@dataclass(frozen=True, slots=True)
class Tabular:
    """n rows: those of a form, and the others."""

    count: int
    forms: Sequence[Form]
    others: Numbers
    """Ascending."""

    def json(self, metadata: Sequence[Metadata]) -> pa.Array:
        """string[n]: `dumps` of each row of `metadata`, which this was made from."""
        parts = [(form.rows, form.json()) for form in self.forms]
        if len(self.others) or not parts:
            parts.append((self.others, pa.array([dumps(metadata[row]) for row in self.others], pa.string())))
        return gathered(parts, self.count)


def tabulated(metadata: Sequence[Metadata]) -> Tabular:
    forms, others = [], []
    for keys, rows in _by_keys(metadata):
        each = metadata if len(rows) == len(metadata) else [metadata[row] for row in rows]
        columns = _columns(keys, each) if len(rows) >= MIN_ROWS else None
        if columns is None:
            others.append(rows)
        else:
            forms.append(Form(rows, columns))
    return Tabular(len(metadata), forms, np.sort(np.concatenate(others)) if others else np.zeros(0, np.int64))


def dumps_all(metadata: Sequence[Metadata]) -> pa.Array:
    """string[n]: `dumps` of each."""
    return tabulated(metadata).json(metadata)


def gathered(parts: Sequence[tuple[Numbers, pa.Array]], count: int) -> pa.Array:
    """One array of `count` rows, of at least one part, each with the numbers of its rows; null where no part says."""
    if len(parts) == 1 and len(parts[0][0]) == count:
        return parts[0][1]  # the numbers ascend
    rows = np.concatenate([rows for rows, _ in parts])
    where = np.full(count, -1, np.int64)
    where[rows] = np.arange(len(rows))
    whole = pa.concat_arrays([array for _, array in parts])
    return whole.take(pa.array(where, mask=where < 0))


def _by_keys(metadata: Sequence[Metadata]) -> Iterator[tuple[tuple[str, ...], Numbers]]:
    keys = list(map(tuple, metadata))
    if keys and keys.count(keys[0]) == len(keys):
        yield keys[0], np.arange(len(keys))
        return
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, each in enumerate(keys):
        rows.setdefault(each, []).append(row)
    for each, numbers in rows.items():
        yield each, np.array(numbers, np.int64)


def _columns(keys: Sequence[str], rows: Sequence[Metadata]) -> dict[str, Plain | Loose] | None:
    """None where a key or a value needs the whole row to be looked at."""
    found = {}
    for key, values in zip(keys, zip(*[row.values() for row in rows], strict=True), strict=True):
        column = None if is_reserved(key) else _column(key, values)
        if column is None:
            return None
        found[key] = column
    return found


def _column(key: str, values: Sequence[Any]) -> Plain | Loose | None:
    kinds = set(map(type, values)) - {type(None)}
    arrow = _ARROW.get(kinds.pop() if kinds else str) if len(kinds) <= 1 else None
    try:
        key.encode()
        return (_plain(arrow, values) if arrow is not None else None) or _loose(key, values)
    except ValueError:  # NaN or an infinity for JSON, half of a surrogate pair for UTF-8
        return None


_ARROW = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def _plain(kind: pa.DataType, values: Sequence[Any]) -> Plain | None:
    try:
        array = pa.array(values, kind)
    except OverflowError:  # an integer past 64 bits
        return None
    if kind == pa.float64() and pc.any(pc.invert(pc.is_finite(array))).as_py():
        return None
    return Plain(array)


def _loose(key: str, values: Sequence[Any]) -> Loose | None:
    scalars, written = [], []
    for value in values:
        paths = flatten({key: value})
        said = _json(value)
        if paths.keys() - {key} or is_reserved(said):
            return None
        scalars.append(paths.get(key, []))
        written.append(said)
    return Loose(scalars, pa.array(written, pa.string()))


def _quoted(array: pa.Array) -> list[Any]:
    if pc.any(pc.match_substring_regex(array, _ESCAPED)).as_py():
        return [pa.array(["null" if one is None else encode_basestring(one) for one in array.to_pylist()])]
    if array.null_count:
        return [pc.fill_null(pc.binary_join_element_wise('"', array, '"', ""), "null")]
    return ['"', array, '"']


_ESCAPED = r'["\\\x00-\x1f]'


def _written(array: pa.Array) -> pa.Array:
    """Doubles as Python writes them, each once; told apart by their bits: 0.0 is not -0.0."""
    coded = array.view(pa.int64()).dictionary_encode()
    distinct = pa.array(map(repr, coded.dictionary.view(pa.float64()).to_pylist()), pa.string())
    return distinct.take(coded.indices)


def _merged(pieces: Sequence[Any]) -> list[Any]:
    """With strings that follow each other made one."""
    found: list[Any] = []
    for piece in pieces:
        if found and isinstance(piece, str) and isinstance(found[-1], str):
            found[-1] += piece
        else:
            found.append(piece)
    return found
