"""Further vectors of a row as columns of Arrow, and back.

| vector | column |
|---|---|
| dense | a list of fixed size |
| multi | a list of those |
| sparse | a struct of `indices` and `values` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from whimbrel.stores.foreign.base import VectorField, VectorKind


def columns(vectors: Mapping[str, VectorField]) -> dict[str, str]:
    """The column of each further vector: its name, where a column can have it."""
    found: dict[str, str] = {}
    for number, name in enumerate(sorted(vectors)):
        plain = f"vector_{name}"
        fits = re.fullmatch(r"[A-Za-z0-9_]{1,60}", name) and plain.lower() not in map(str.lower, found.values())
        found[name] = plain if fits else f"vector_{number}_"
    return found


def type_of(one: VectorField) -> pa.DataType:
    if one.kind is VectorKind.SPARSE:
        return pa.struct([("indices", pa.list_(pa.int64())), ("values", pa.list_(pa.float32()))])
    dense = pa.list_(pa.float32(), one.dimensions)
    return pa.list_(dense) if one.kind is VectorKind.MULTI else dense


def written(values: Sequence[Any], one: VectorField) -> pa.Array:
    if one.kind is VectorKind.SPARSE:
        said = [None if each is None else {"indices": each[0].tolist(), "values": each[1].tolist()} for each in values]
        return pa.array(said, type_of(one))
    there = [each for each in values if each is not None]
    flat = np.concatenate([each.reshape(-1) for each in there]) if there else np.zeros(0, np.float32)
    dense = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), one.dimensions)
    missing = np.array([each is None for each in values])
    if one.kind is VectorKind.MULTI:
        lengths = [0 if each is None else len(each) for each in values]
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, dense, mask=pa.array(missing))
    place = np.cumsum(~missing) - 1
    return dense.take(pa.array(place, pa.int64(), mask=missing)) if missing.any() else dense


def read(column: pa.ChunkedArray, one: VectorField) -> list[Any]:
    if one.kind is VectorKind.SPARSE:
        return [
            None if each is None else (np.array(each["indices"], np.int64), np.array(each["values"], np.float32))
            for each in column.to_pylist()
        ]
    found: list[Any] = []
    for chunk in column.chunks:
        for each in chunk:
            if not each.is_valid:
                found.append(None)
            elif one.kind is VectorKind.DENSE:
                found.append(each.values.to_numpy(zero_copy_only=False))
            else:
                found.append(each.values.flatten().to_numpy(zero_copy_only=False).reshape(-1, one.dimensions))
    return found
