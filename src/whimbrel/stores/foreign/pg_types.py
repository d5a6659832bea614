"""What Postgres's types are as values of metadata, and which values a column of a type gives back as they are."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa

from whimbrel.stores.foreign.base import Field

_ARROW: Mapping[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "text": pa.string(),
    "character varying": pa.string(),
    "uuid": pa.string(),
    "numeric": pa.string(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "time without time zone": pa.time64("us"),
    "timestamp without time zone": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
    "json": pa.string(),
    "jsonb": pa.string(),
}
_AS_TEXT: Mapping[str, Callable[[str], Any]] = {
    "date": date.fromisoformat,
    "time without time zone": time.fromisoformat,
    "timestamp without time zone": datetime.fromisoformat,
    "timestamp with time zone": lambda text: datetime.fromisoformat(text).astimezone(UTC),
    "json": lambda text: loads_exactly(text),
    "jsonb": lambda text: loads_exactly(text),
}
"""Read as text, since the driver refuses years that Python does not have, and rounds the numbers of JSON."""
_LISTS = ("boolean", "smallint", "integer", "bigint", "real", "double precision", "text", "character varying", "uuid")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of metadata of a table that is read."""

    name: str
    sql: str
    """Its type, as Postgres writes it: `numeric(10,2)`, `text[]`."""

    @property
    def base(self) -> str:
        return base_type(self.sql)

    @property
    def as_text(self) -> bool:
        return self.base in _AS_TEXT or not self.is_known

    @property
    def is_known(self) -> bool:
        """Else it is copied as its text."""
        return self.base.removesuffix("[]") in (_LISTS if self.base.endswith("[]") else _ARROW)

    @property
    def field(self) -> Field:
        base = self.base
        if not self.is_known:
            return Field(pa.string())
        if base.endswith("[]"):
            return Field(pa.list_(_ARROW[base[:-2]]), sql=self.sql)
        return Field(_ARROW[base], json=base in ("json", "jsonb"), sql=self.sql)

    def value(self, found: Any) -> Any:
        """As it stands in metadata. What Python cannot say, such as the date `infinity`, stays text."""
        read = _AS_TEXT.get(self.base)
        if read is None or found is None:
            return bytes(found) if isinstance(found, memoryview | bytearray) else found
        try:
            return read(found)
        except ValueError:
            return found


def base_type(sql: str) -> str:
    return re.sub(r"\(\d+(,-?\d+)?\)", "", sql)


def sql_type(field: Field) -> str | None:
    """The type of a column that holds the field; None where none does."""
    if field.sql:
        return field.sql
    if field.json:
        return "jsonb"
    kind, types = field.type, pa.types
    if types.is_list(kind) or types.is_large_list(kind):
        inner = sql_type(Field(kind.value_type))
        return f"{inner}[]" if inner in _LISTS else None
    for is_kind, name in _SQL:
        if is_kind(kind):
            return name
    if types.is_timestamp(kind):
        return "timestamp with time zone" if kind.tz else "timestamp without time zone"
    if types.is_decimal128(kind):
        return f"numeric({kind.precision},{kind.scale})"
    return "jsonb" if types.is_struct(kind) else None


_SQL: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_boolean, "boolean"),
    (lambda kind: pa.types.is_integer(kind) and kind.bit_width < 32, "integer"),
    (pa.types.is_int32, "integer"),
    (pa.types.is_uint64, "numeric(20,0)"),
    (pa.types.is_integer, "bigint"),
    (pa.types.is_float32, "real"),
    (pa.types.is_float64, "double precision"),
    (lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind), "text"),
    (lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind), "bytea"),
    (pa.types.is_date32, "date"),
    (pa.types.is_time64, "time without time zone"),
)

_INTS = {"smallint": 15, "integer": 31, "bigint": 63}


def fits(value: Any, sql: str) -> bool:
    """Whether a column of this type gives the value back as it is."""
    base = base_type(sql)
    if base in ("json", "jsonb"):
        return keeps(value)
    match value:
        case bool():
            return base == "boolean"
        case int():
            return base in _INTS and -(2 ** _INTS[base]) <= value < 2 ** _INTS[base]
        case float():
            if base == "real":
                import numpy as np

                return not math.isfinite(value) or float(np.float32(value)) == value
            return base == "double precision"
        case str():
            return base in ("text", "character varying") and is_text(value)
        case bytes():
            return base == "bytea"
        case datetime():
            if base == "timestamp with time zone":
                return value.utcoffset() == timedelta(0)
            return base == "timestamp without time zone" and value.tzinfo is None
        case date():
            return base == "date"
        case time():
            return base == "time without time zone" and value.tzinfo is None
        case Decimal():
            return base == "numeric" and _has_scale(value, sql)
        case UUID():
            return base == "uuid"
        case list():
            return base.endswith("[]") and all(one is not None and fits(one, base[:-2]) for one in value)
    return False


def keeps(value: Any) -> bool:
    """Whether jsonb gives it back as it is: it holds numbers as decimals, and neither NUL nor NaN."""
    match value:
        case None | bool() | int():
            return True
        case float():
            written = repr(value)
            return math.isfinite(value) and "e" not in written and written != "-0.0"
        case str():
            return is_text(value)
        case list():
            return all(map(keeps, value))
        case Mapping():
            return all(is_text(key) and keeps(one) for key, one in value.items())
    return False


def is_text(text: str) -> bool:
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def loads_exactly(text: str) -> Any:
    """JSON, with a decimal for each number that no float is."""
    return json.loads(text, parse_float=_number)


def _number(text: str) -> float | Decimal:
    found = float(text)
    return found if math.isfinite(found) and Decimal(repr(found)) == Decimal(text) else Decimal(text)


def _has_scale(value: Decimal, sql: str) -> bool:
    limits = re.search(r"\((\d+)(?:,(-?\d+))?\)", sql)
    parts = value.as_tuple()
    if not isinstance(parts.exponent, int) or parts.exponent > 0 or (value.is_zero() and parts.sign):
        return False
    if limits is None:
        return len(parts.digits) < 1_000
    return -parts.exponent == int(limits[2] or 0) and len(parts.digits) <= int(limits[1])
