"""What a filter means, written once more: on the grammar as users write it, row by row, in plain Python.

`whimbrel.filters` parses a filter to a tree and evaluates that; this shares no line with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any


def passes(condition: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Whether a row with this metadata passes a filter in the grammar. Every comparison asks whether *any* value at
    the path satisfies it; `$ne` and `$nin` whether none does; null and absent are the same."""
    return all(_holds(key, operand, metadata) for key, operand in condition.items())


def _holds(key: str, operand: Any, metadata: Mapping[str, Any]) -> bool:
    if key == "$and":
        return all(passes(inner, metadata) for inner in operand)
    if key == "$or":
        return any(passes(inner, metadata) for inner in operand)
    if key == "$not":
        return not passes(operand, metadata)
    there = [value for path, value in values_of(metadata) if path == key]
    tests = operand if isinstance(operand, Mapping) else {"$eq": operand}
    return all(_test(name, wanted, there) for name, wanted in tests.items())


def _test(name: str, wanted: Any, there: list[Any]) -> bool:
    match name:
        case "$exists":
            return bool(there) is wanted
        case "$eq" | "$contains" if wanted is None:
            return not there
        case "$ne" if wanted is None:
            return bool(there)
        case "$eq" | "$contains":
            return any(_equal(value, wanted) for value in there)
        case "$ne":
            return not any(_equal(value, wanted) for value in there)
        case "$in":
            return any(_equal(value, one) for value in there for one in wanted)
        case "$nin":
            return not any(_equal(value, one) for value in there for one in wanted)
        case "$gt":
            return any(_comparable(value, wanted) and value > wanted for value in there)
        case "$gte":
            return any(_comparable(value, wanted) and value >= wanted for value in there)
        case "$lt":
            return any(_comparable(value, wanted) and value < wanted for value in there)
        case "$lte":
            return any(_comparable(value, wanted) and value <= wanted for value in there)
    raise ValueError(f"no operator: {name}")


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)


def _comparable(left: Any, right: Any) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return False
    return isinstance(left, str) == isinstance(right, str)


def values_of(metadata: Any, path: str | None = None) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every string, number and boolean; no number that a filter cannot name."""
    if isinstance(metadata, Mapping):
        for key, inner in metadata.items():
            yield from values_of(inner, key if path is None else f"{path}.{key}")
    elif isinstance(metadata, list | tuple):
        for item in metadata:
            yield from values_of(item, path)
    elif path is not None and _can_be_named(metadata):
        yield path, metadata


def _can_be_named(value: Any) -> bool:
    if isinstance(value, bool | str):
        return True
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return isinstance(value, float) and math.isfinite(value)
