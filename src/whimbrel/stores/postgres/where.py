"""Filters as SQL over the column of facts. Paths and values are parameters, never part of the statement."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from whimbrel.filters import And, Compare, Filter, Not, Op, Or
from whimbrel.filters.facts import key, key_range

_MAX_ALTERNATIVES = 32
"""Values of an `$in` that are looked up one by one, by the index; more are compared row by row."""


_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclass
class Condition:
    """A condition that holds for exactly the rows that pass, and is never NULL; with its parameters in order."""

    sql: str
    parameters: list[Any] = field(default_factory=list)


def compile_filter(where: Filter) -> Condition:
    condition = Condition("")
    condition.sql = _compile(where, condition.parameters)
    return condition


def _compile(where: Filter, parameters: list[Any]) -> str:
    match where:
        case And(terms):
            return "(" + " AND ".join(_compile(term, parameters) for term in terms) + ")" if terms else "true"
        case Or(terms):
            return "(" + " OR ".join(_compile(term, parameters) for term in terms) + ")" if terms else "false"
        case Not(term):
            return f"(NOT {_compile(term, parameters)})"
        case Compare(path, Op.EXISTS):
            parameters.append(path)
            return "facts ? %s::text"
        case Compare(path, Op.EQ, values):
            return _contains(path, key(values[0]), parameters)
        case Compare(path, Op.IN, values) if len(values) <= _MAX_ALTERNATIVES:
            found = [_contains(path, one, parameters) for one in dict.fromkeys(map(key, values))]
            return "(" + " OR ".join(found) + ")" if found else "false"
        case Compare(path, Op.IN, values):
            parameters += [path, [key(value) for value in values]]
            return "coalesce((facts -> %s::text) ?| %s::text[], false)"
        case Compare():
            return _ordered(where, parameters)


def _contains(path: str, value: str, parameters: list[Any]) -> str:
    parameters.append(_json({path: [value]}))
    return "facts @> %s::jsonb"


def _ordered(compare: Compare, parameters: list[Any]) -> str:
    # Strings in a jsonpath compare by code point in a database of UTF-8, whatever its collation.
    span = key_range(compare)
    above, below = (">=" if span.include_low else ">"), ("<=" if span.include_high else "<")
    bounds = _json({"low": span.low, "high": span.high})
    parameters += [compare.path, bounds]
    test = f"$[*] ? (@ {above} $low && @ {below} $high)"
    return f"coalesce(jsonb_path_exists(facts -> %s::text, '{test}', %s::jsonb), false)"
