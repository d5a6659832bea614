"""Scalars as strings whose order by code point is the order of the values: what the catalog and the lexicon compare.

A database compares JSON numbers in its own way: one reads decimals into doubles that are a last digit off, another
compares the decimal and not the double. Strings compare alike everywhere.

    boolean    "b0", "b1"
    number     "n", 16 hex digits of the nearest double, 3 hex digits of what an integer is beyond it
    string     "s", then the string
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whimbrel.filters.grammar import Compare, Op, Scalar, flatten


def facts(metadata: Mapping[str, Any]) -> dict[str, list[str]]:
    """The flattened metadata with each scalar as its key; equal scalars of a path once."""
    return {path: list(dict.fromkeys(map(key, scalars))) for path, scalars in flatten(metadata).items()}


def key(scalar: Scalar) -> str:
    """Keys of one type order as their values do, and are equal exactly when the values are."""
    if isinstance(scalar, bool):
        return "b1" if scalar else "b0"
    if isinstance(scalar, str):
        return "s" + scalar
    nearest = float(scalar) + 0.0  # -0.0 becomes 0.0
    (bits,) = struct.unpack(">Q", struct.pack(">d", nearest))
    bits = bits ^ 0xFFFF_FFFF_FFFF_FFFF if bits >> 63 else bits | 1 << 63
    # Doubles of 64-bit integers are at most 1,024 apart, so the rest is within 512.
    rest = scalar - int(nearest) if isinstance(scalar, int) else 0
    return f"n{bits:016x}{rest + 1024:03x}"


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys k with `low < k < high`, either end included where it says so."""

    low: str
    high: str
    include_low: bool
    include_high: bool


def key_range(compare: Compare) -> KeyRange:
    """The keys that an ordering lets pass: those on one side of its value, within its value's type."""
    bound = key(compare.values[0])
    first, beyond = bound[0], chr(ord(bound[0]) + 1)
    match compare.op:
        case Op.GT | Op.GTE:
            return KeyRange(bound, beyond, compare.op is Op.GTE, False)
        case Op.LT | Op.LTE:
            return KeyRange(first, bound, True, compare.op is Op.LTE)
    raise ValueError(f"{compare.op} is not an ordering")
