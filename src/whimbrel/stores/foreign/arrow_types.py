"""Which values a column of Arrow gives back as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from whimbrel.stores.foreign.base import Field


def unfit(values: Sequence[Any], kind: pa.DataType) -> list[int]:
    """The rows whose value is none that the column gives back; null is none. Values of one plain type in one go."""
    plain = set(map(type, values)) - {type(None)}
    if len(plain) == 1:
        (only,) = plain
        if only is float and pa.types.is_float64(kind):
            return []
        if only is bool and pa.types.is_boolean(kind):
            return []
        if only is str and is_string(kind) and is_utf8("".join(value for value in values if value is not None)):
            return []
    return [row for row, value in enumerate(values) if value is not None and not fits(value, kind)]


def fits(value: Any, kind: pa.DataType) -> bool:
    """Whether a column of this type gives the value back as it is."""
    types = pa.types
    match value:
        case bool():
            return bool(types.is_boolean(kind))
        case int():
            if not types.is_integer(kind):
                return False
            bits = kind.bit_width
            low, high = (0, 2**bits) if types.is_unsigned_integer(kind) else (-(2 ** (bits - 1)), 2 ** (bits - 1))
            return bool(low <= value < high)
        case float():
            if types.is_float64(kind):
                return True
            return bool(types.is_float32(kind)) and (not math.isfinite(value) or float(np.float32(value)) == value)
        case str():
            return is_string(kind) and is_utf8(value)
        case bytes():
            return bool(types.is_binary(kind) or types.is_large_binary(kind))
        case datetime():
            return bool(types.is_timestamp(kind)) and kind.unit in ("us", "ns") and _same_zone(value, kind.tz)
        case date():
            return bool(types.is_date32(kind))
        case time():
            return bool(types.is_time64(kind)) and value.tzinfo is None
        case timedelta():
            return bool(types.is_duration(kind)) and kind.unit == "us"
        case Decimal():
            return bool(types.is_decimal(kind)) and _has_scale(value, kind)
        case list():
            is_list = types.is_list(kind) or types.is_large_list(kind)
            return bool(is_list) and all(one is not None and fits(one, kind.value_type) for one in value)
        case dict():
            if not types.is_struct(kind) or len(value) != kind.num_fields:
                return False
            inner = {kind.field(at).name: kind.field(at).type for at in range(kind.num_fields)}
            return value.keys() == inner.keys() and all(
                one is not None and fits(one, inner[key]) for key, one in value.items()
            )
    return False


def sampled(metadata: Sequence[Mapping[str, Any]]) -> dict[str, Field]:
    """Columns for keys whose values in a sample are of one plain type: strings, numbers, booleans, and lists of one.
    What other rows have under them goes into the envelope."""
    kinds: dict[str, set[pa.DataType | None]] = {}
    for one in metadata:
        for key, value in one.items():
            kinds.setdefault(key, set()).add(_plain_type(value))
    only = {key: next(iter(found)) for key, found in sorted(kinds.items()) if len(found) == 1}
    return {key: Field(kind) for key, kind in only.items() if kind is not None}


def keeps(kind: pa.DataType) -> bool:
    """Whether `fits` knows of values that such a column keeps."""
    types = pa.types
    if types.is_struct(kind):
        return all(keeps(kind.field(at).type) for at in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind):
        return keeps(kind.value_type)
    simple = types.is_boolean(kind) or types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)
    timed = types.is_timestamp(kind) or types.is_date32(kind) or types.is_time64(kind) or types.is_duration(kind)
    binary = types.is_binary(kind) or types.is_large_binary(kind)
    return bool(simple or timed or binary or is_string(kind) or types.is_decimal128(kind))


def value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _plain_type(value: Any) -> pa.DataType | None:
    if isinstance(value, list):
        inner = {_plain_type(one) for one in value}
        kind = inner.pop() if len(inner) == 1 else None
        return pa.list_(kind) if kind is not None and not pa.types.is_list(kind) else None
    return _PLAIN.get(type(value))


_PLAIN: Mapping[type, pa.DataType] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _same_zone(value: datetime, zone: str | None) -> bool:
    """A column has one zone, and gives each instant back in it."""
    if zone is None or value.tzinfo is None:
        return zone is None and value.tzinfo is None
    if zone.upper() not in ("UTC", "+00:00", "Z"):
        return str(value.tzinfo) == zone
    return value.utcoffset() == timedelta(0) and str(value.tzinfo) in ("UTC", "+00:00", "UTC+00:00")


def _has_scale(value: Decimal, kind: pa.DataType) -> bool:
    exponent = value.as_tuple().exponent
    digits = len(value.as_tuple().digits)
    return isinstance(exponent, int) and -exponent == kind.scale and digits <= kind.precision


def is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
