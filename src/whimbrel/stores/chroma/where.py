"""From a filter to Chroma's `where`: a condition that lets every row pass that the filter does, and few others.

What passes is then checked against the row's metadata, because Chroma's operators differ from ours:

- `$eq`, `$ne`, `$in`, `$nin` and the orderings look at single values only, `$contains` at arrays only;
- a number is compared with integers after its fraction was cut off, with floats after rounding it to one;
- there is no order of strings or in arrays, nothing asks whether a key is there, and nothing negates a condition.

So a bound is widened to the next integer, arrays are let through where there is no operator, and what cannot be said
lets everything pass: the search then looks further down its hits until k of them pass the check. Most filters ask less
of Chroma than that, and need no check: it would cost a read of each hit's metadata, up to a fifth of a search.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from whimbrel.filters import And, Compare, Filter, Not, Op, Or, Scalar
from whimbrel.stores.chroma.metadata import LISTS, ODD, Shapes, is_plain_key

Where = dict[str, Any] | bool
"""A condition in Chroma's grammar; True lets everything pass, False nothing."""

MAX_CLAUSES = 100
"""Of one condition. Each is tried on every row (about 5 microseconds), and SQLite reads no more than 1,000 in one."""

_EXACT = 2**53
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Compiled:
    where: Where
    """Holds wherever the filter does."""
    exact: bool
    """It holds nowhere else."""


def compile_filter(where: Filter, shapes: Shapes) -> Compiled:
    compiled = _condition(where, True, shapes)
    if not isinstance(compiled, bool) and _clauses(compiled) > MAX_CLAUSES:
        return Compiled(True, False)
    return Compiled(compiled, _is_exact(where, shapes))


def _is_exact(where: Filter, shapes: Shapes) -> bool:
    match where:
        case And(terms) | Or(terms):
            return all(_is_exact(term, shapes) for term in terms)
        case Compare(path, op, values):
            if not is_plain_key(path) or shapes.has_lists(path) or shapes.is_odd(path):
                return False
            if op in (Op.EQ, Op.IN):
                return all(isinstance(value, str | bool) or _is_whole(value) for value in values)
            return op in (Op.GTE, Op.LTE) and _is_whole(values[0])
    return False


def _is_whole(value: Scalar) -> bool:
    """A number that is the same as an integer and as a double."""
    return not isinstance(value, str | bool) and abs(value) <= _EXACT and value == int(value)


def _condition(where: Filter, wanted: bool, shapes: Shapes) -> Where:
    """Holds wherever `where` is `wanted`."""
    match where:
        case Not(term):
            return _condition(term, not wanted, shapes)
        case And(terms):
            return _join((_condition(term, wanted, shapes) for term in terms), every=wanted)
        case Or(terms):
            return _join((_condition(term, wanted, shapes) for term in terms), every=not wanted)
        case Compare(path, op, values):
            if op is Op.EXISTS:
                return True
            if op in (Op.EQ, Op.IN):
                return _equal(path, values, shapes) if wanted else _unequal(path, values, shapes)
            return _ordered(path, op, values[0], shapes) if wanted else True


def _join(terms: Iterable[Where], *, every: bool) -> Where:
    """All of the terms, or any of them; flat, because Chroma reads 128 levels."""
    operator = "$and" if every else "$or"
    joined: list[Any] = []
    for term in terms:
        if isinstance(term, bool):
            if term is not every:
                return term
        elif operator in term:
            joined += term[operator]
        else:
            joined.append(term)
    if not joined:
        return every
    return joined[0] if len(joined) == 1 else {operator: joined}


def _equal(path: str, values: Sequence[Scalar], shapes: Shapes) -> Where:
    if not values:
        return False
    odd: Where = {ODD: {"$contains": path}} if shapes.is_odd(path) else False
    if not is_plain_key(path):
        return odd
    alone = _by_type(values)
    inside = [kind for value in values for kind in _in_array(value)] if shapes.has_lists(path) else []
    arrays: list[Where] = [{path: {"$contains": value}} for value in inside]
    if len(arrays) > MAX_CLAUSES // 4:
        arrays = [{LISTS: {"$contains": path}}]
    return _join([*(_among(path, "$eq", "$in", group) for group in alone if group), *arrays, odd], every=False)


def _unequal(path: str, values: Sequence[Scalar], shapes: Shapes) -> Where:
    if not is_plain_key(path):
        return True
    strings, booleans, numbers = _by_type(values)
    numbers = list(filter(_is_whole, numbers))
    there = [*strings, *booleans, *numbers] if shapes.has_lists(path) else []
    inside = [kind for value in there for kind in _in_array(value)]
    terms = [_among(path, "$ne", "$nin", group) for group in (strings, booleans, numbers) if group]
    if len(inside) <= MAX_CLAUSES // 4:
        terms += [{path: {"$not_contains": value}} for value in inside]
    if not terms:
        return True
    odd: Where = {ODD: {"$contains": path}} if numbers and shapes.is_odd(path) else False
    return _join([_join(terms, every=True), odd], every=False)


def _ordered(path: str, op: Op, value: Scalar, shapes: Shapes) -> Where:
    if isinstance(value, str | bool):
        return True
    odd: Where = {ODD: {"$contains": path}} if shapes.is_odd(path) else False
    if not is_plain_key(path):
        return odd
    if op in (Op.GT, Op.GTE):
        test = {"$gte": max(_INT_MIN, min(_INT_MAX, math.floor(value)))}
    else:
        test = {"$lte": max(_INT_MIN, min(_INT_MAX, math.ceil(value)))}
    lists: Where = {LISTS: {"$contains": path}} if shapes.has_lists(path) else False
    return _join([{path: test}, lists, odd], every=False)


def _by_type(values: Sequence[Scalar]) -> tuple[list[Scalar], list[Scalar], list[Scalar]]:
    """Strings, booleans and numbers; each in the one type that an `$in` may have, as near as that can be."""
    strings: list[Scalar] = [value for value in values if isinstance(value, str)]
    booleans: list[Scalar] = [value for value in values if isinstance(value, bool)]
    numbers: list[Scalar] = []
    for value in values:
        if isinstance(value, str | bool):
            continue
        if (isinstance(value, int) or value.is_integer()) and _INT_MIN <= value <= _INT_MAX:
            numbers.append(int(value))
            continue
        numbers.append(float(value))
    return strings, booleans, numbers


def _among(path: str, one: str, several: str, values: Sequence[Scalar]) -> Where:
    if len(values) == 1:
        return {path: {one: values[0]}}
    kinds = {type(value) for value in values}
    if len(kinds) == 1:
        return {path: {several: list(values)}}
    split = [[value for value in values if type(value) is kind] for kind in kinds]
    return _join([_among(path, one, several, group) for group in split], every=several == "$nin")


def _in_array(value: Scalar) -> list[Scalar]:
    """The values that an array may hold it as: one of integers and one of floats are two kinds."""
    if isinstance(value, str | bool):
        return [value]
    kinds: list[Scalar] = []
    if isinstance(value, int) or value.is_integer():
        if _INT_MIN <= value <= _INT_MAX:
            kinds.append(int(value))
        if int(float(value)) == value:
            kinds.append(float(value))
    else:
        kinds.append(value)
    return kinds


def _clauses(where: dict[str, Any]) -> int:
    for operator in ("$and", "$or"):
        if operator in where:
            return sum(map(_clauses, where[operator]))
    return 1
