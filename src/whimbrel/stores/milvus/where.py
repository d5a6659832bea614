"""From a filter to Milvus' expression: a condition that lets every row pass that the filter does, and few others.

Milvus compares JSON in its own way, which differs between its versions: types mix, large integers become doubles, a
missing key is false or null. So each row has the *facts* of its metadata, as numbers: of each path, of each of its
values, and of each path whose value is not one plain scalar. What is asked of those is exact. Only the orderings look
at the dynamic fields; they let more rows pass, and their hits are checked against the metadata.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from whimbrel.domain import Metadata
from whimbrel.filters import And, Compare, Filter, Not, Op, Or, Scalar, flatten
from whimbrel.filters.facts import key

PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
"""Keys that are dynamic fields of their own."""

ANY = 1
"""The fact of a row that has too many: any filter may let it pass."""

MAX_CLAUSES = 200
_EXACT = 2**53
_PRINTABLE = re.compile(r"[ !#-\[\]-~]{0,200}")
"""Strings that need no escape in an expression, and order alike everywhere."""


@dataclass(frozen=True, slots=True)
class Compiled:
    where: str
    """Holds wherever the filter does; "" everywhere."""
    exact: bool
    """It holds nowhere else, but for rows that have `ANY`."""
    never: bool = False
    """Nothing passes."""


class Facts(ABC):
    """How the facts of a row are kept, and asked for."""

    most_values: int
    """That one condition asks for."""
    may_be_loose: bool
    """Whether a row may have too many facts."""

    @abstractmethod
    def kept(self, facts: Sequence[int]) -> Any:
        """As the field holds them."""

    @abstractmethod
    def have(self, facts: Sequence[int]) -> str:
        """The row has at least one of them."""

    @abstractmethod
    def lack(self, facts: Sequence[int]) -> str:
        """The row has none of them."""


class ArrayFacts(Facts):
    """Behind a server: an array of integers."""

    most_values = 1_000
    may_be_loose = True

    def kept(self, facts: Sequence[int]) -> list[int]:
        return list(facts)

    def have(self, facts: Sequence[int]) -> str:
        if len(facts) == 1:
            return f"array_contains(facts, {facts[0]})"
        return f"array_contains_any(facts, [{', '.join(map(str, facts))}])"

    def lack(self, facts: Sequence[int]) -> str:
        return f"(not {self.have(facts)})"


class TextFacts(Facts):
    """In Milvus Lite: a string, which it searches by columns; arrays it takes apart row by row, thirty times slower."""

    most_values = 64
    may_be_loose = False

    def kept(self, facts: Sequence[int]) -> str:
        return "".join(f"|{fact:x}" for fact in facts) + "|"

    def have(self, facts: Sequence[int]) -> str:
        found = " or ".join(f'facts like "%|{fact:x}|%"' for fact in facts)
        return f"({found})" if len(facts) > 1 else found

    def lack(self, facts: Sequence[int]) -> str:
        return f"(not ({self.have(facts)}))"


def facts_of(metadata: Metadata, plain: Container[str]) -> list[int]:
    """Each once. `plain`: the keys that are dynamic fields of their own."""
    found: dict[int, None] = {}
    others: dict[str, Any] = {}
    for name, value in metadata.items():
        if type(value) in _ONE and PLAIN.fullmatch(name):
            found |= _of_one(name, value, name not in plain)
        else:
            others[name] = value
    for path, scalars in flatten(others).items() if others else ():
        found[_path(path)] = None
        for scalar in scalars:
            found[_value(path, key(scalar))] = None
        if path not in plain or isinstance(metadata[path], list):
            found[_odd(path)] = None
    return list(found)


_ONE = (str, bool, int, float)


@lru_cache(maxsize=16_384, typed=True)
def _of_one(path: str, value: Scalar, odd: bool) -> dict[int, None]:
    """The facts of one scalar at the top: most metadata is of these, and the same ones come again and again."""
    found: dict[int, None] = {}
    for scalars in flatten({path: value}).values():
        found[_path(path)] = None
        found.update({_value(path, key(scalar)): None for scalar in scalars})
        if odd:
            found[_odd(path)] = None
    return found


def compile_filter(where: Filter, facts: Facts) -> Compiled:
    compiled = _condition(where, True, facts)
    if compiled is False:
        return Compiled("", True, never=True)
    if compiled is True or _clauses(compiled) > MAX_CLAUSES:
        return Compiled("", compiled is True and _is_exact(where, facts))
    return Compiled(compiled, _is_exact(where, facts))


def literal(value: str) -> str:
    """The string in an expression. Escapes what both grammars know: newlines, quotes and backslashes."""
    return '"' + value.translate(_ESCAPES) + '"'


def ids_in(ids: Sequence[str]) -> str:
    return f"id in [{', '.join(map(literal, ids))}]"


def both(*conditions: str) -> str:
    """All of them; "" is none."""
    return " and ".join(f"({one})" for one in conditions if one)


_ESCAPES = {ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}

Condition = str | bool


def _condition(where: Filter, wanted: bool, facts: Facts) -> Condition:
    """Holds wherever `where` is `wanted`."""
    match where:
        case Not(term):
            return _condition(term, not wanted, facts)
        case And(terms):
            return _join(terms, wanted, wanted, facts)
        case Or(terms):
            return _join(terms, wanted, not wanted, facts)
        case Compare(path, Op.EXISTS):
            return _asked([_path(path)], wanted, facts)
        case Compare(path, Op.EQ | Op.IN, values):
            if not values:
                return not wanted
            if len(values) > facts.most_values:
                return _asked([_path(path)], True, facts) if wanted else True
            return _asked(list(dict.fromkeys(_value(path, key(value)) for value in values)), wanted, facts)
        case Compare(path, op, values):
            return _ordered(path, op, values[0], facts) if wanted else True


def _asked(wanted: list[int], have: bool, facts: Facts) -> str:
    if not have:
        return facts.lack(wanted)
    return facts.have([*wanted, ANY] if facts.may_be_loose else wanted)


def _join(terms: Iterable[Filter], wanted: bool, every: bool, facts: Facts) -> Condition:
    """All of the terms, or any. Equalities of an "or" are asked for at once."""
    flat, merged = list(_flattened(terms, every == wanted)), list[int]()
    if not every and wanted:
        for term in flat:
            if isinstance(term, Compare) and term.op in (Op.EQ, Op.IN):
                merged += [_value(term.path, key(value)) for value in term.values]
        merged = list(dict.fromkeys(merged))
        if 1 < len(merged) <= facts.most_values:
            flat = [term for term in flat if not (isinstance(term, Compare) and term.op in (Op.EQ, Op.IN))]
        else:
            merged = []
    joined = [_asked(merged, True, facts)] if merged else []
    for term in flat:
        one = _condition(term, wanted, facts)
        if isinstance(one, bool):
            if one is not every:
                return one
        else:
            joined.append(one)
    if not joined:
        return every
    return joined[0] if len(joined) == 1 else f"({(' and ' if every else ' or ').join(joined)})"


def _flattened(terms: Iterable[Filter], conjunction: bool) -> Iterable[Filter]:
    """Terms of a term of the same kind are terms themselves."""
    for term in terms:
        if isinstance(term, And if conjunction else Or):
            yield from _flattened(term.terms, conjunction)
        else:
            yield term


def _ordered(path: str, op: Op, value: Scalar, facts: Facts) -> Condition:
    there = _asked([_path(path)], True, facts)
    if not PLAIN.fullmatch(path) or isinstance(value, bool):
        return there
    above = op in (Op.GT, Op.GTE)
    if isinstance(value, str):
        if not _PRINTABLE.fullmatch(value):
            return there
        test = f"{json.dumps(value)}"
    elif abs(value) > _EXACT:
        return there
    else:
        test = str(math.floor(value) if above else math.ceil(value))
    odd = _asked([_odd(path)], True, facts)
    return f'($meta["{path}"] {">=" if above else "<="} {test} or {odd})'


def _is_exact(where: Filter, facts: Facts) -> bool:
    match where:
        case Not(term):
            return _is_exact(term, facts)
        case And(terms) | Or(terms):
            return all(_is_exact(term, facts) for term in terms)
        case Compare(_, op, values):
            return op is Op.EXISTS or (op in (Op.EQ, Op.IN) and len(values) <= facts.most_values)


def _clauses(condition: str) -> int:
    return condition.count("facts")


@lru_cache(maxsize=4_096)
def _path(path: str) -> int:
    return _number("p", path)


@lru_cache(maxsize=16_384)
def _value(path: str, value: str) -> int:
    return _number("v", path, value)


@lru_cache(maxsize=4_096)
def _odd(path: str) -> int:
    return _number("o", path)


def _number(*parts: str) -> int:
    """63 bits, none of them `ANY`."""
    written = "\0".join(parts).encode("utf-8", "surrogatepass")
    return max(int.from_bytes(blake2b(written, digest_size=8).digest(), "big") >> 1, ANY + 1)
