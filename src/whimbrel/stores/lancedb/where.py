"""From a filter to the SQL that Lance runs before the vector search.

SQL has three truth values and a filter two, so `NOT` is never written: it is pushed down to the comparisons, each of
which has its opposite, with "or is null". (Nested NOTs also cost Lance's parser exponential time: 32 took minutes.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from whimbrel.filters import And, Compare, Filter, Not, Op, Or, Scalar
from whimbrel.stores.lancedb.columns import ID, MORE, Column, Columns, Kind, more_path, more_value

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_OPPOSITE = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}


@dataclass(frozen=True, slots=True)
class Where:
    sql: str
    exact: bool
    """False: the SQL lets too many rows pass, and each hit is to be checked against its metadata."""


def compile_filter(where: Filter, columns: Columns) -> Where:
    return Where(_condition(where, columns, True), not (columns.overflows and _has_ordering(where)))


def ids_in(ids: Sequence[str]) -> str:
    """SQL for "the id is one of these"; served by the index on the id."""
    return f"{ID} IN ({', '.join(map(_string, ids))})" if ids else "false"


def _condition(where: Filter, columns: Columns, wanted: bool) -> str:
    """SQL that is true exactly where `where` is `wanted`, and false or null elsewhere."""
    match where:
        case Not(term):
            return _condition(term, columns, not wanted)
        case And(terms):
            return _join([_condition(term, columns, wanted) for term in terms], every=wanted)
        case Or(terms):
            return _join([_condition(term, columns, wanted) for term in terms], every=not wanted)
        case Compare():
            tests = [test for column in columns.at(where.path) if (test := _test(column, where, wanted))]
            if columns.overflows:
                tests += _more_tests(where, wanted)
            return _join(tests, every=not wanted)


def _join(terms: list[str], *, every: bool) -> str:
    if not terms:
        return "true" if every else "false"
    return terms[0] if len(terms) == 1 else f"({(' AND ' if every else ' OR ').join(terms)})"


def _test(column: Column, compare: Compare, wanted: bool) -> str:
    """One column's part of a comparison; "" if no value of its kind can satisfy it."""
    name = f"`{column.name}`"
    if compare.op is Op.EXISTS:
        test, opposite = f"{name} IS NOT NULL", f"{name} IS NULL"
        return test if wanted else opposite
    if compare.op in (Op.EQ, Op.IN):
        test, opposite = _equal(name, column, compare.values)
    else:
        test, opposite = _ordered(name, column, compare)
    if not test or wanted:
        return test
    return f"({name} IS NULL OR {opposite})" if opposite else f"{name} IS NULL"


def _equal(name: str, column: Column, values: Sequence[Scalar]) -> tuple[str, str]:
    """(test, its opposite where the column is not null); ("", "") if no value is of the column's kind."""
    kind = column.slot.kind
    literals = list(dict.fromkeys(lit for value in values if (lit := _literal(kind, value)) is not None))
    if not literals:
        return "", ""
    if kind is Kind.BOOL and len(literals) == 2:
        return f"{name} IS NOT NULL", ""
    if column.slot.many:
        one = f"array_has({name}, {literals[0]})"
        test = one if len(literals) == 1 else f"array_has_any({name}, [{', '.join(literals)}])"
        return test, f"NOT {test}"
    if len(literals) == 1:
        return f"{name} = {literals[0]}", f"{name} <> {literals[0]}"
    listed = ", ".join(literals)
    return f"{name} IN ({listed})", f"{name} NOT IN ({listed})"


def _literal(kind: Kind, value: Scalar) -> str | None:
    """The value as a literal of `kind`; None if no value of that kind equals it."""
    match kind, value:
        case (Kind.BOOL, bool()):
            return "true" if value else "false"
        case (_, bool()):
            return None
        case (Kind.STR, str()):
            return _string(value)
        case (Kind.INT, int()):
            return _integer(value)
        case (Kind.INT, float()):
            return _integer(int(value)) if value.is_integer() and _INT_MIN <= value <= _INT_MAX else None
        case (Kind.FLOAT, float()):
            return repr(value + 0.0)
        case (Kind.FLOAT, int()):
            return repr(float(value)) if int(float(value)) == value else None
    return None


def _ordered(name: str, column: Column, compare: Compare) -> tuple[str, str]:
    bound = _bound(column.slot.kind, compare.op, compare.values[0])
    if bound is None:
        return "", ""
    operator, literal = bound
    if not operator:
        return f"{name} IS NOT NULL", ""
    if column.slot.many:  # some element is above v where the largest is
        name = f"array_max({name})" if operator.startswith(">") else f"array_min({name})"
    return f"{name} {operator} {literal}", f"{name} {_OPPOSITE[operator]} {literal}"


def _bound(kind: Kind, op: Op, value: Scalar) -> tuple[str, str] | None:
    """(operator, literal) for values of `kind`; ("", "") if all of them pass, None if none does."""
    above, inclusive = op in (Op.GT, Op.GTE), op in (Op.GTE, Op.LTE)
    plain = (">" if above else "<") + ("=" if inclusive else "")
    if kind is Kind.STR:
        return (plain, _string(value)) if isinstance(value, str) else None
    if kind is Kind.BOOL or isinstance(value, str | bool):
        return None
    if kind is Kind.INT:
        if above:
            limit = math.ceil(value) if inclusive else math.floor(value) + 1
        else:
            limit = math.floor(value) if inclusive else math.ceil(value) - 1
        if limit > _INT_MAX:
            return None if above else ("", "")
        if limit < _INT_MIN:
            return ("", "") if above else None
        return (">=" if above else "<=", _integer(limit))
    nearest = float(value) + 0.0
    if nearest == value:
        return plain, repr(nearest)
    # An integer between two doubles: the double nearest to it is on the side that passes, or is not.
    passes = (nearest > value) == above
    return (">" if above else "<") + ("=" if passes else ""), repr(nearest)


def _string(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _integer(value: int) -> str:
    # The parser reads the digits before the sign, and 2**63 as a double.
    return f"({_INT_MIN + 1} - 1)" if value == _INT_MIN else str(value)


def _more_tests(compare: Compare, wanted: bool) -> list[str]:
    """The same for values without a column: exact but for orderings, which let every row with the path pass."""
    if compare.op in (Op.EQ, Op.IN):
        entries = list(dict.fromkeys(_string(more_value(compare.path, value)) for value in compare.values))
        if not entries:
            return []
    elif compare.op is Op.EXISTS or wanted:
        entries = [_string(more_path(compare.path))]
    else:
        return []
    test = f"array_has_any({MORE}, [{', '.join(entries)}])"
    return [test if wanted else f"({MORE} IS NULL OR NOT {test})"]


def _has_ordering(where: Filter) -> bool:
    match where:
        case Not(term):
            return _has_ordering(term)
        case And(terms) | Or(terms):
            return any(map(_has_ordering, terms))
        case Compare(_, op, _):
            return op not in (Op.EQ, Op.IN, Op.EXISTS)
