"""Values of metadata beyond JSON, as strict JSON and back, and a digest of rows.

| value | in the envelope |
|---|---|
| bytes | `{"$bytes": "base64"}` |
| date and time, with or without a zone | `{"$datetime": "2024-05-01T12:00:00+00:00"}` |
| date; time | `{"$date": "2024-05-01"}`, `{"$time": "12:00:00"}` |
| duration | `{"$duration": [days, seconds, microseconds]}` |
| decimal | `{"$decimal": "1.10"}` |
| UUID | `{"$uuid": "..."}` |

NaN, infinities and objects that have such a key of their own are written as `whimbrel.stores.envelope` writes them.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Any
from uuid import UUID

import numpy as np

from whimbrel.stores import envelope
from whimbrel.stores.foreign.base import Id, Rows

_OBJECT = "$object"
"""An object of the user's that has a key of the table, as a list of pairs."""

_READ: Mapping[str, Callable[[Any], Any]] = {
    "$bytes": b64decode,
    "$datetime": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
    "$duration": lambda parts: timedelta(*parts),
    "$decimal": Decimal,
    "$uuid": UUID,
}


def dumps(metadata: Mapping[str, Any]) -> str:
    """Keys in their order: equal metadata gives equal text. Raises `TypeError` for a value of another type."""
    return envelope.dumps(_tagged(dict(sorted(metadata.items()))))


def loads(written: str) -> dict[str, Any]:
    found: dict[str, Any] = _untagged(envelope.loads(written))
    return found


def as_text(value: Any) -> str | None:
    """How a value that JSON cannot say is shown to people and other programs; None for those that it can."""
    match value:
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal() | UUID() | timedelta():
            return str(value)
        case bytes():
            return b64encode(value).decode()
    return None


def contents(rows: Rows) -> list[bytes]:
    """Text and metadata of each row as bytes: two rows have the same exactly when both are the same, types included
    (1 is not 1.0). Their length is about what the row takes on its way, without its vector."""
    return [_content(text, one) for text, one in zip(rows.texts, rows.metadata, strict=True)]


def digests(rows: Rows, contents: Sequence[bytes]) -> list[bytes]:
    """16 bytes for each row, of everything in it: two rows have the same exactly when they are the same."""
    width = 4 * rows.vectors.shape[1]
    packed = np.ascontiguousarray(rows.vectors).reshape(-1).view(np.uint8).data
    more = sorted(rows.more)
    found = []
    for row, content in enumerate(contents):
        hashed = blake2b(content, digest_size=16)
        hashed.update(packed[row * width : (row + 1) * width])
        for name in more:
            hashed.update(_packed(name, rows.more[name][row]))
        found.append(hashed.digest())
    return found


def differences(wanted: Rows, found: Rows, tolerance: float, known: Sequence[bytes] | None = None) -> dict[Id, str]:
    """What differs, by id: `text`, `metadata` or `vector`, several joined by a comma. A row that is not in `found` is
    `missing`. `tolerance`: of each component, as a share of the vector's length; 0 asks for the same bits.
    `known`: the contents of `wanted`, where they were made already."""
    at = {id_: row for row, id_ in enumerate(found.ids)}
    differ: dict[Id, list[str]] = {}
    pairs = []
    mine, theirs = known if known is not None else contents(wanted), contents(found)
    for row, id_ in enumerate(wanted.ids):
        other = at.get(id_)
        if other is None:
            differ[id_] = ["missing"]
            continue
        pairs.append((row, other))
        if mine[row] != theirs[other]:
            text = wanted.texts[row] != found.texts[other]
            metadata = not same(wanted.metadata[row], found.metadata[other])
            differ[id_] = [*(["text"] if text else []), *(["metadata"] if metadata else [])]
    if pairs:
        left = wanted.vectors[[row for row, _ in pairs]]
        right = found.vectors[[row for _, row in pairs]]
        if tolerance == 0:
            wrong = (left.view(np.uint32) != right.view(np.uint32)).any(axis=1)
        else:
            bounds = tolerance * np.maximum(np.linalg.norm(left.astype(np.float64), axis=1, keepdims=True), 1e-30)
            wrong = ~(np.abs(left.astype(np.float64) - right) <= bounds).all(axis=1)
        for number in np.flatnonzero(wrong):
            differ.setdefault(wanted.ids[pairs[number][0]], []).append("vector")
        for name in sorted({*wanted.more, *found.more}):
            for row, other in pairs:
                if not _alike(_vector(wanted, name, row), _vector(found, name, other), tolerance):
                    differ.setdefault(wanted.ids[row], []).append(f"vector {name!r}")
    return {id_: ", ".join(what) for id_, what in differ.items()}


def sizes_of_more(rows: Rows) -> list[int]:
    """Bytes of the further vectors of each row."""
    return [sum(len(_packed(name, values[row])) for name, values in rows.more.items()) for row in range(len(rows))]


def _vector(rows: Rows, name: str, row: int) -> Any:
    return rows.more[name][row] if name in rows.more else None


def _packed(name: str, vector: Any) -> bytes:
    if vector is None:
        return b"-"
    if isinstance(vector, tuple):
        indices, weights = vector
        return name.encode() + b"s" + bytes(indices.astype("<i8").tobytes() + weights.astype("<f4").tobytes())
    shape, values = repr(vector.shape), np.ascontiguousarray(vector, "<f4").tobytes()
    return f"{name}{shape}".encode() + bytes(values)


def _alike(one: Any, other: Any, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(one, tuple) or isinstance(other, tuple):
        both = isinstance(one, tuple) and isinstance(other, tuple)
        return both and _packed("", one) == _packed("", other)
    if one.shape != other.shape:
        return False
    if tolerance == 0:
        return _packed("", one) == _packed("", other)
    bounds = tolerance * np.maximum(np.linalg.norm(one.astype(np.float64), axis=-1, keepdims=True), 1e-30)
    return bool((np.abs(one.astype(np.float64) - other) <= bounds).all())


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows' metadata is the same, types included: 1 is not 1.0."""
    return _canonical(one) == _canonical(other)


def _content(text: str | None, metadata: Mapping[str, Any]) -> bytes:
    head = b"-" if text is None else b"+" + text.encode("utf-8", "surrogatepass")
    return head + b"\0" + _canonical(metadata) + b"\0"


def _canonical(metadata: Mapping[str, Any]) -> bytes:
    return _encode(metadata).encode()


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=lambda value: {"\0": _tag(value)}).encode


def _tag(value: Any) -> dict[str, Any]:
    match value:
        case bytes():
            return {"$bytes": b64encode(value).decode()}
        case datetime():
            return {"$datetime": value.isoformat()}
        case date():
            return {"$date": value.isoformat()}
        case time():
            return {"$time": value.isoformat()}
        case timedelta():
            return {"$duration": [value.days, value.seconds, value.microseconds]}
        case Decimal():
            return {"$decimal": str(value)}
        case UUID():
            return {"$uuid": str(value)}
    raise TypeError(f"a value of the type {type(value).__name__}")


def _tagged(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            inner = {key: _tagged(one) for key, one in value.items()}
            taken = any(key in _READ or key == _OBJECT for key in value)
            return {_OBJECT: [[key, one] for key, one in inner.items()]} if taken else inner
        case list() | tuple():
            return [_tagged(one) for one in value]
    return _tag(value)


def _untagged(value: Any) -> Any:
    if isinstance(value, list):
        return [_untagged(one) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, inner),) = value.items()
        if key in _READ:
            return _READ[key](inner)
        if key == _OBJECT:
            return {name: _untagged(one) for name, one in inner}
    return {key: _untagged(one) for key, one in value.items()}
