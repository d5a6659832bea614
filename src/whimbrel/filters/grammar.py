"""The filter grammar, parsed once to a tree that each store, the lexicon and the catalog compile.

`parse` reads the grammar, `matches` is its meaning, `flatten` is what it looks at. Every comparison is existential: it
holds if any scalar at the path satisfies it. Types never mix: a boolean is not a number, and an ordering against
another type is false. Numbers compare by exact value (2 == 2.0, 2**53 + 1 != 2.0**53), strings by Unicode code point.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any, NoReturn

from whimbrel.errors import BadFilter, BadInput

Scalar = str | int | float | bool

MAX_DEPTH = 32
MAX_FILTER_VALUES = 10_000
MAX_COMPARISONS = 1_000
"""Each costs a subquery of its own: 9,000 took SQLite nine seconds before it read a row. Many values go under `$in`."""
MAX_METADATA_BYTES = 64 * 1024


class Op(StrEnum):
    EQ = "$eq"
    GT = "$gt"
    GTE = "$gte"
    LT = "$lt"
    LTE = "$lte"
    IN = "$in"
    EXISTS = "$exists"


OPERATORS = frozenset({*Op, "$and", "$or", "$not"})
"""What a tree is made of. The others of the grammar are written with these: `$ne` is `$not` of `$eq`, `$contains` is
`$eq`."""


@dataclass(frozen=True, slots=True)
class Compare:
    """True if any scalar at `path` stands in relation `op` to any of `values`.

    `EXISTS` has no values. `EQ` has one, `IN` any number, the orderings one.
    """

    path: str
    op: Op
    values: tuple[Scalar, ...] = ()


@dataclass(frozen=True, slots=True)
class And:
    terms: tuple[Filter, ...]
    """Empty: true."""


@dataclass(frozen=True, slots=True)
class Or:
    terms: tuple[Filter, ...]
    """Empty: false."""


@dataclass(frozen=True, slots=True)
class Not:
    term: Filter


Filter = Compare | And | Or | Not


def parse(raw: Any) -> Filter | None:
    """The tree of a filter written as JSON; None for None and for `{}`, which let everything pass.

    Raises `BadFilter`, which names the place (`$.year.$gte`) and, for an unknown operator, the nearest one.
    """
    if raw is None:
        return None
    parsed = _Parser().condition(raw, "$", 1)
    return None if parsed == And(()) and not raw else parsed


def to_json(where: Filter) -> dict[str, Any]:
    """The filter in the grammar: `parse(to_json(f)) == f` for every `f` that `parse` returns."""
    match where:
        case And(terms):
            return {"$and": [to_json(term) for term in terms]}
        case Or(terms):
            return {"$or": [to_json(term) for term in terms]}
        case Not(term):
            return {"$not": to_json(term)}
        case Compare(path, op, values):
            if op is Op.EXISTS:
                return {path: {op.value: True}}
            return {path: {op.value: list(values) if op is Op.IN else values[0]}}


def matches(where: Filter, metadata: Mapping[str, Any]) -> bool:
    """Whether a document with this metadata passes: the reference that every compiler is tested against."""
    return _holds(where, flatten(metadata))


def operators(where: Filter) -> frozenset[str]:
    """Those of `OPERATORS` that the tree has."""
    match where:
        case And(terms):
            return frozenset({"$and"}).union(*map(operators, terms))
        case Or(terms):
            return frozenset({"$or"}).union(*map(operators, terms))
        case Not(term):
            return operators(term) | {"$not"}
        case Compare(_, op, _):
            return frozenset({op.value})


def paths(where: Filter) -> frozenset[str]:
    """Those that it looks at."""
    match where:
        case And(terms) | Or(terms):
            return frozenset().union(*map(paths, terms))
        case Not(term):
            return paths(term)
        case Compare(path, _, _):
            return frozenset([path])


def flatten(metadata: Mapping[str, Any]) -> dict[str, list[Scalar]]:
    """The scalars at each dotted path, in the order met.

    Objects nest by a dot, so a literal dot in a key is the same as nesting. An array gives each of its elements, at
    any depth. None and empty containers give nothing: absent and null are the same. So do numbers that no filter can
    name and no document here has, but rows of other programs may: NaN, infinities, integers beyond 64 bits.
    """
    found: dict[str, list[Scalar]] = {}
    _collect(metadata, None, found)
    return found


def normalise_metadata(raw: Any) -> dict[str, Any]:
    """The metadata as it is kept: plain JSON values under string keys, dates as ISO 8601 strings.

    A `datetime` becomes UTC with six decimals and `Z` (one without a zone is taken as UTC), so that the order of the
    strings is the order in time. Raises `BadInput`, which names the key, for what JSON or a database cannot hold: other
    types, NaN and infinities, integers beyond 64 bits, NUL or a lone surrogate in a string, more than 32 levels, or
    more than 64 KiB as JSON.
    """
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise BadInput(f"Metadata is an object with string keys, not {_kind(raw)}.", 'For example: {"year": 2024}.')
    plain: dict[str, Any] = _plain_value(raw, "$", 1)
    size = len(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode())
    if size > MAX_METADATA_BYTES:
        raise BadInput(
            f"Metadata takes {size:,} bytes as JSON; the limit is {MAX_METADATA_BYTES:,}.",
            "Keep long text in the document itself, and in the metadata what is filtered by or shown.",
        )
    return plain


# --- parsing ---------------------------------------------------------------------------------------------------------

_ORDERINGS = {"$gt": Op.GT, "$gte": Op.GTE, "$lt": Op.LT, "$lte": Op.LTE}
_FIELD_OPERATORS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$contains", "$exists")
_LOGICAL_OPERATORS = ("$and", "$or", "$not")


class _Parser:
    def __init__(self) -> None:
        self._values = 0
        self._comparisons = 0
        self._conditions = 0

    def condition(self, raw: Any, at: str, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            _refuse(at, f"nested more than {MAX_DEPTH} levels deep")
        self._conditions += 1
        if self._conditions > 2 * MAX_COMPARISONS:
            _refuse_many(at)
        if not isinstance(raw, Mapping):
            _refuse(at, f"a condition is an object, not {_kind(raw)}", 'For example: {"year": {"$gte": 2020}}.')
        terms: list[Filter] = []
        for key, value in raw.items():
            if not isinstance(key, str):
                _refuse(at, f"keys are strings, not {_kind(key)}")
            place = _place(at, key)
            if key.startswith("$"):
                terms.append(self._logical(key, value, place, depth))
            else:
                _check_text(key, lambda why, place=place: _refuse(place, f"the key {why}"))
                terms.append(self._field(key, value, place))
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def _logical(self, key: str, value: Any, at: str, depth: int) -> Filter:
        if key == "$not":
            return Not(self.condition(value, at, depth + 1))
        if key not in _LOGICAL_OPERATORS:
            if key in _FIELD_OPERATORS:
                _refuse(at, "this operator stands under a field", f'For example: {{"year": {{"{key}": …}}}}.')
            raise _unknown(key, at, _LOGICAL_OPERATORS)
        if not isinstance(value, list | tuple):
            _refuse(at, f"takes a list of conditions, not {_kind(value)}")
        if len(value) > MAX_COMPARISONS:
            _refuse_many(at)
        terms = tuple(self.condition(item, f"{at}[{i}]", depth + 1) for i, item in enumerate(value))
        return And(terms) if key == "$and" else Or(terms)

    def _field(self, path: str, value: Any, at: str) -> Filter:
        if isinstance(value, list | tuple):
            _refuse(at, "a list is no value to compare with", 'For any of several values: {"$in": [...]}.')
        if not isinstance(value, Mapping):
            return self._operator(path, "$eq", value, at)
        if not value:
            _refuse(at, "an empty object has no operator", 'To ask whether it is there: {"$exists": true}.')
        terms = []
        for operator, operand in value.items():
            if not isinstance(operator, str):
                _refuse(at, f"keys are strings, not {_kind(operator)}")
            terms.append(self._operator(path, operator, operand, _place(at, operator)))
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def _operator(self, path: str, operator: str, operand: Any, at: str) -> Filter:
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            _refuse_many(at)
        match operator:
            case "$eq" | "$ne" if operand is None:
                exists = Compare(path, Op.EXISTS)
                return Not(exists) if operator == "$eq" else exists
            case "$eq" | "$contains":
                return Compare(path, Op.EQ, (self._scalar(operand, at),))
            case "$ne":
                return Not(Compare(path, Op.EQ, (self._scalar(operand, at),)))
            case "$gt" | "$gte" | "$lt" | "$lte":
                return Compare(path, _ORDERINGS[operator], (self._ordered(operand, at),))
            case "$in" | "$nin":
                within = Compare(path, Op.IN, self._scalars(operand, at))
                return within if operator == "$in" else Not(within)
            case "$exists":
                if not isinstance(operand, bool):
                    _refuse(at, f"takes true or false, not {_kind(operand)}")
                exists = Compare(path, Op.EXISTS)
                return exists if operand else Not(exists)
        raise _no_operator(path, operator, at)

    def _scalars(self, raw: Any, at: str) -> tuple[Scalar, ...]:
        if not isinstance(raw, list | tuple):
            _refuse(at, f"takes a list of values, not {_kind(raw)}")
        if len(raw) > MAX_FILTER_VALUES:
            _refuse(at, f"more than {MAX_FILTER_VALUES:,} values")
        return tuple(self._scalar(item, f"{at}[{i}]") for i, item in enumerate(raw))

    def _ordered(self, raw: Any, at: str) -> Scalar:
        value = self._scalar(raw, at)
        if isinstance(value, bool):
            _refuse(at, "booleans have no order", "Compare with $eq or $ne.")
        return value

    def _scalar(self, raw: Any, at: str) -> Scalar:
        self._count(at)
        if isinstance(raw, Mapping | list | tuple) or raw is None:
            hint = 'null stands for absence: {"$exists": false}, or $eq and $ne.' if raw is None else ""
            _refuse(at, f"takes a string, number or boolean, not {_kind(raw)}", hint)
        return _plain_scalar(raw, lambda why: _refuse(at, why))

    def _count(self, at: str) -> None:
        self._values += 1
        if self._values > MAX_FILTER_VALUES:
            _refuse(at, f"more than {MAX_FILTER_VALUES:,} values in one filter")


def _refuse(at: str, why: str, hint: str = "") -> NoReturn:
    raise _refusal(at, why, hint)


def _refusal(at: str, why: str, hint: str) -> BadFilter:
    return BadFilter(f"The filter cannot be read at {at}: {why}.", hint or 'For example: {"year": {"$gte": 2020}}.')


def _no_operator(path: str, operator: str, at: str) -> BadFilter:
    if operator in _LOGICAL_OPERATORS:
        return _refusal(
            at, "this operator stands around whole conditions", f'For example: {{"{operator}": …}} at the top.'
        )
    if not operator.startswith("$") and f"${operator}" not in _FIELD_OPERATORS:
        return _refusal(at, "is not an operator", f'For a nested field, join the names by a dot: "{path}.{operator}".')
    return _unknown(operator, at, _FIELD_OPERATORS)


def _refuse_many(at: str) -> NoReturn:
    _refuse(at, f"more than {MAX_COMPARISONS:,} comparisons", 'Values of one field go into one list: {"$in": [...]}.')


def _unknown(operator: str, at: str, known: tuple[str, ...]) -> BadFilter:
    nearest = difflib.get_close_matches(operator.lower(), known, n=1, cutoff=0.4)
    meant = f"Did you mean {nearest[0]}? " if nearest else ""
    return _refusal(at, "there is no such operator", f"{meant}Operators here: {' '.join(known)}.")


def _place(at: str, key: str) -> str:
    shown = key if len(key) <= 60 else key[:60] + "…"
    return f"{at}.{shown}" if re.fullmatch(r"[$\w.-]+", shown) else f"{at}[{json.dumps(shown)}]"


# --- values ----------------------------------------------------------------------------------------------------------


def _plain_value(raw: Any, at: str, depth: int) -> Any:
    def refuse(why: str) -> NoReturn:
        raise BadInput(f"Metadata cannot be kept at {at}: {why}.", "Nothing was written. Metadata holds JSON values.")

    if depth > MAX_DEPTH:
        refuse(f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(raw, Mapping):
        plain: dict[str, Any] = {}
        for key, value in raw.items():
            if not isinstance(key, str):
                refuse(f"keys are strings, not {_kind(key)}")
            _check_text(key, lambda why: refuse(f"a key {why}"))
            plain[str(key)] = _plain_value(value, _place(at, key), depth + 1)
        return plain
    if isinstance(raw, list | tuple):
        return [_plain_value(item, f"{at}[{i}]", depth + 1) for i, item in enumerate(raw)]
    return None if raw is None else _plain_scalar(raw, refuse)


def _plain_scalar(raw: Any, refuse: Any) -> Scalar:
    """The value as a plain `str`, `int`, `float` or `bool`; `refuse(why)` raises."""
    match raw:
        case bool():
            return raw
        case int():
            if not -(2**63) <= raw < 2**63:
                refuse("an integer of more than 64 bits")
            return int(raw)
        case float():
            if not math.isfinite(raw):
                refuse("a number that is not finite")
            return float(raw)
        case str():
            _check_text(raw, lambda why: refuse(f"a string that {why}"))
            return str(raw)
        case datetime():
            moment = raw.replace(tzinfo=UTC) if raw.tzinfo is None else raw.astimezone(UTC)
            return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
        case date():
            return raw.isoformat()
    refuse(f"takes a JSON value, not {_kind(raw)}")
    raise AssertionError("unreachable")


def _check_text(text: str, refuse: Any) -> None:
    if "\0" in text:
        refuse("contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        refuse("contains half of a surrogate pair")


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "a list"
    return f"a Python {type(value).__name__}"


# --- meaning ---------------------------------------------------------------------------------------------------------


def _collect(value: Any, path: str | None, found: dict[str, list[Scalar]]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _collect(inner, key if path is None else f"{path}.{key}", found)
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(item, path, found)
    elif value is not None and _has_a_place(value):
        assert path is not None
        found.setdefault(path, []).append(value)


def _has_a_place(value: Any) -> bool:
    match value:
        case bool():
            return True
        case int():
            return -(2**63) <= value < 2**63
        case float():
            return math.isfinite(value)
    return True


def _holds(where: Filter, facts: Mapping[str, list[Scalar]]) -> bool:
    match where:
        case And(terms):
            return all(_holds(term, facts) for term in terms)
        case Or(terms):
            return any(_holds(term, facts) for term in terms)
        case Not(term):
            return not _holds(term, facts)
        case Compare(path, op, values):
            there = facts.get(path, ())
            if op is Op.EXISTS:
                return bool(there)
            if op is Op.EQ or op is Op.IN:
                wanted = {(_type(value), value) for value in values}
                return any((_type(scalar), scalar) in wanted for scalar in there)
            return any(_ordered(op, scalar, values[0]) for scalar in there if _type(scalar) == _type(values[0]))


def _type(scalar: Scalar) -> str:
    return "boolean" if isinstance(scalar, bool) else "string" if isinstance(scalar, str) else "number"


def _ordered(op: Op, left: Any, right: Any) -> bool:
    match op:
        case Op.GT:
            return bool(left > right)
        case Op.GTE:
            return bool(left >= right)
        case Op.LT:
            return bool(left < right)
        case Op.LTE:
            return bool(left <= right)
    raise AssertionError(op)
