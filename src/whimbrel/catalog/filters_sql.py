"""Filters as SQL over a JSON column of facts, for SQLite and Postgres.

The column holds `whimbrel.filters.facts.facts(metadata)`: `{"path": ["key", …]}`. Every path and value is a bound
parameter; no text of a user's becomes part of the statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, and_, column, exists, false, func, not_, or_, select, true
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.sql.expression import cast, literal

from whimbrel.filters import And, Compare, Filter, Not, Op, Or
from whimbrel.filters.facts import key, key_range

_MAX_CHAIN = 32
"""SQLite refuses an expression more than 1,000 operators deep, and reads `a OR b OR c` as one operator per term."""


def compile_filter(where: Filter, facts_column: ColumnElement[Any], dialect_name: str) -> ColumnElement[bool]:
    """A condition that holds for exactly the rows whose metadata `where` matches; never NULL.

    `dialect_name` is `sqlite` or `postgresql`. `facts_column` belongs to a table of the statement that the condition is
    put into.
    """
    match where:
        case And(terms):
            return _joined(and_, true(), [compile_filter(term, facts_column, dialect_name) for term in terms])
        case Or(terms):
            return _joined(or_, false(), [compile_filter(term, facts_column, dialect_name) for term in terms])
        case Not(term):
            return not_(compile_filter(term, facts_column, dialect_name))
        case Compare():
            return (_postgres if dialect_name == "postgresql" else _sqlite)(where, facts_column)


def _joined(join: Any, empty: ColumnElement[bool], terms: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    if len(terms) > _MAX_CHAIN:
        # `is_(true())` only because the builder would join `(a OR b) OR (c OR d)` into one chain again.
        terms = [join(*terms[i : i + _MAX_CHAIN]).is_(true()) for i in range(0, len(terms), _MAX_CHAIN)]
    return join(*terms) if terms else empty


def _sqlite(compare: Compare, facts: ColumnElement[Any]) -> ColumnElement[bool]:
    # The key is compared, not looked up by a JSON path: paths have no escape for a quote in a key.
    at_path = func.json_each(facts).table_valued(column("key", Text), column("value", Text), joins_implicitly=True)
    if compare.op is Op.EXISTS:
        return _any(select(1).select_from(at_path).where(at_path.c.key == compare.path), facts)
    each = func.json_each(at_path.c.value).table_valued(column("value", Text), joins_implicitly=True)
    return _any(
        select(1).select_from(at_path, each).where(at_path.c.key == compare.path, _test(compare, each.c.value)), facts
    )


def _postgres(compare: Compare, facts: ColumnElement[Any]) -> ColumnElement[bool]:
    keys = [key(value) for value in compare.values]
    at_path = func.jsonb_extract_path(facts, literal(compare.path, Text))
    match compare.op:
        case Op.EXISTS:
            return facts.bool_op("?")(literal(compare.path, Text))
        case Op.EQ:
            return facts.bool_op("@>")(cast({compare.path: keys}, JSONB))
        case Op.IN:
            return func.coalesce(at_path.bool_op("?|")(cast(keys, ARRAY(Text))), false())
    each = func.jsonb_array_elements_text(at_path).table_valued(column("value", Text)).render_derived()
    return _any(select(1).select_from(each).where(_test(compare, each.c.value.collate("C"))), facts)


def _test(compare: Compare, value: ColumnElement[Any]) -> ColumnElement[bool]:
    if compare.op in (Op.EQ, Op.IN):
        return value.in_([key(v) for v in compare.values])
    span = key_range(compare)
    above = value >= span.low if span.include_low else value > span.low
    below = value <= span.high if span.include_high else value < span.high
    return and_(above, below)


def _any(rows: Select[Any], facts: ColumnElement[Any]) -> ColumnElement[bool]:
    table = getattr(facts, "table", None)
    return exists(rows if table is None else rows.correlate(table))
