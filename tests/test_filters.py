"""Filters: the grammar, its meaning, and that the catalog's databases agree with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, Column, Connection, Integer, MetaData, Table, create_engine, insert, select
from sqlalchemy.dialects.postgresql import JSONB
from tests.filter_strategies import filters, metadatas, scalars

from whimbrel.catalog.filters_sql import compile_filter
from whimbrel.errors import BadFilter, BadInput
from whimbrel.filters import (
    And,
    Compare,
    Filter,
    Not,
    Op,
    Or,
    flatten,
    matches,
    normalise_metadata,
    parse,
    to_json,
)
from whimbrel.filters.facts import facts, key
from whimbrel.testing import passes, strategies

# --- the grammar -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "tree"),
    [
        (None, None),
        ({}, None),
        ({"site": "docs"}, Compare("site", Op.EQ, ("docs",))),
        ({"site": {"$contains": "docs"}}, Compare("site", Op.EQ, ("docs",))),
        ({"site": None}, Not(Compare("site", Op.EXISTS))),
        ({"site": {"$ne": None}}, Compare("site", Op.EXISTS)),
        ({"site": {"$exists": False}}, Not(Compare("site", Op.EXISTS))),
        ({"year": {"$ne": 1}}, Not(Compare("year", Op.EQ, (1,)))),
        ({"year": {"$nin": [1, 2]}}, Not(Compare("year", Op.IN, (1, 2)))),
        ({"year": {"$gte": 1, "$lt": 5}}, And((Compare("year", Op.GTE, (1,)), Compare("year", Op.LT, (5,))))),
        ({"a": 1, "b": 2}, And((Compare("a", Op.EQ, (1,)), Compare("b", Op.EQ, (2,))))),
        ({"$or": [{"a": 1}, {}]}, Or((Compare("a", Op.EQ, (1,)), And(())))),
        ({"$not": {"a": 1}}, Not(Compare("a", Op.EQ, (1,)))),
        ({"when": {"$gt": date(2024, 1, 5)}}, Compare("when", Op.GT, ("2024-01-05",))),
    ],
)
def test_a_filter_is_read(raw: Any, tree: Filter | None) -> None:
    assert parse(raw) == tree


@pytest.mark.parametrize(
    ("raw", "place", "hint"),
    [
        ([1], "$:", "example"),
        ("year", "$:", "example"),
        ({"year": [1]}, "$.year:", "$in"),
        ({"year": {"$gtee": 1}}, "$.year.$gtee:", "mean $gte?"),
        ({"year": {"gte": 1}}, "$.year.gte:", "mean $gte?"),
        ({"author": {"name": "x"}}, "$.author.name:", '"author.name"'),
        ({"year": {}}, "$.year:", "$exists"),
        ({"year": {"$in": 3}}, "$.year.$in:", ""),
        ({"year": {"$in": [1, None]}}, "$.year.$in[1]:", "$exists"),
        ({"year": {"$gt": True}}, "$.year.$gt:", "$eq"),
        ({"year": {"$gt": math.nan}}, "$.year.$gt:", ""),
        ({"year": -math.inf}, "$.year:", ""),
        ({"year": 2**63}, "$.year:", ""),
        ({"year": {"$exists": 1}}, "$.year.$exists:", ""),
        ({"$ad": []}, "$.$ad:", "mean $and?"),
        ({"$gte": 3}, "$.$gte:", "example"),
        ({"year": {"$or": [1]}}, "$.year.$or:", "$or"),
        ({"$or": {"a": 1}}, "$.$or:", ""),
        ({"$or": [{"a": 1}, {"b": {"$x": 1}}]}, "$.$or[1].b.$x:", "Operators here"),
        ({'a "b"': {"$x": 1}}, '$["a \\"b\\""].$x:', ""),
        ({"a": "\0"}, "$.a:", ""),
        ({"a": "\ud800"}, "$.a:", ""),
        ({1: 2}, "$:", ""),
        ({"a": {"$in": list(range(10_001))}}, "$.a.$in:", ""),
        ({"$or": [{"a": {"$in": list(range(200))}}] * 51}, "$.$or[50].a.$in[0]:", ""),
        ({"$or": [{"a": 1}] * 1_001}, "$.$or:", "$in"),
        ({"$or": [{"$or": [{}] * 900}] * 3}, "$.$or[2].$or[196]:", ""),
        ({"a": {"$or": 1}, "$and": [{"a": 1}] * 999}, "$.a.$or:", ""),
        ({"$and": [{"a": 1}] * 999, "b": 1, "c": 1}, "$.c:", "$in"),
    ],
)
def test_a_malformed_filter_is_refused_with_its_place(raw: Any, place: str, hint: str) -> None:
    with pytest.raises(BadFilter) as refused:
        parse(raw)
    assert f"at {place}" in refused.value.message
    assert hint in refused.value.hint


def test_a_filter_is_at_most_32_levels_deep() -> None:
    raw: Any = {"a": 1}
    for _ in range(31):
        raw = {"$not": raw}
    assert parse(raw) is not None
    with pytest.raises(BadFilter, match="32 levels"):
        parse({"$not": raw})


@settings(max_examples=300, deadline=None)
@given(strategies.filters, strategies.foreign_metadatas)
def test_what_is_parsed_means_what_was_written(raw: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Parser and evaluator against one that shares no line with them."""
    where = parse(raw)
    assert (where is None or matches(where, metadata)) == passes(raw, metadata)


@given(filters)
def test_a_filter_survives_its_json(where: Filter) -> None:
    assert parse(json.loads(json.dumps(to_json(where)))) == where


# --- its meaning -----------------------------------------------------------------------------------------------------


def test_flatten_follows_objects_and_arrays() -> None:
    raw = {"a": {"b": [1, [2, None]], "c": {}}, "a.b": True, "list": [{"x": 1}, {"x": "y"}, 3], "none": None, "e": []}
    assert flatten(raw) == {"a.b": [1, 2, True], "list.x": [1, "y"], "list": [3]}


@pytest.mark.parametrize(
    ("raw", "metadata", "passes"),
    [
        ({"tags": "a"}, {"tags": ["a", "b"]}, True),
        ({"tags": {"$ne": "a"}}, {"tags": ["a", "b"]}, False),
        ({"tags": {"$ne": "a"}}, {}, True),
        ({"n": {"$gt": 1, "$lt": 0}}, {"n": [-1, 2]}, True),
        ({"n": 2}, {"n": 2.0}, True),
        ({"n": float(2**53)}, {"n": 2**53 + 1}, False),
        ({"n": {"$gt": float(2**53)}}, {"n": 2**53 + 1}, True),
        ({"n": 1}, {"n": True}, False),
        ({"n": True}, {"n": 1}, False),
        ({"n": {"$gte": 0}}, {"n": True}, False),
        ({"n": {"$gte": 0}}, {"n": "1"}, False),
        ({"n": {"$lt": "\U00010000"}}, {"n": "\uffff"}, True),
        ({"n": {"$in": []}}, {"n": 1}, False),
        ({"n": {"$nin": []}}, {}, True),
        ({"a.b": 1}, {"a": [{"b": 0}, {"b": 1}]}, True),
        ({"a": None}, {"a": []}, True),
        ({"when": {"$gte": datetime(2024, 1, 5, 1, tzinfo=timezone(timedelta(hours=1)))}},
         {"when": "2024-01-05T00:00:00.000000Z"}, True),
    ],
)  # fmt: skip
def test_what_a_filter_means(raw: Any, metadata: dict[str, Any], passes: bool) -> None:
    where = parse(raw)
    assert where is not None
    assert matches(where, metadata) is passes


@given(scalars, scalars)
def test_keys_order_as_their_values_do(left: Any, right: Any) -> None:
    def kind(value: Any) -> type:
        return float if isinstance(value, int) and not isinstance(value, bool) else type(value)

    if kind(left) is kind(right):
        assert (key(left) == key(right)) == (left == right)
        assert (key(left) < key(right)) == (left < right)
    else:
        assert key(left)[0] != key(right)[0]


# --- metadata --------------------------------------------------------------------------------------------------------


@given(metadatas)
def test_json_metadata_is_kept_as_it_is(metadata: dict[str, Any]) -> None:
    assert normalise_metadata(metadata) == metadata


@given(st.datetimes(), st.datetimes())
def test_the_order_of_kept_datetimes_is_their_order_in_time(left: datetime, right: datetime) -> None:
    kept = normalise_metadata({"l": left, "r": right.replace(tzinfo=UTC)})
    assert (kept["l"] < kept["r"]) == (left < right)
    assert datetime.fromisoformat(kept["l"]) == left.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ({"a": {"b": object()}}, "$.a.b"),
        ({"a": [1, {2: 3}]}, "$.a[1]"),
        ({"a": 2**63}, "$.a"),
        ({"a": math.nan}, "$.a"),
        ({"a": "x\0"}, "$.a"),
        ({"\0": 1}, "$"),
        ({"a": "\udfff"}, "$.a"),
        ({"a": b"x"}, "$.a"),
        ("x", "object"),
        ({"a": "x" * 65_536}, "65,536"),
    ],
)
def test_metadata_that_cannot_be_kept_is_refused_with_its_key(raw: Any, place: str) -> None:
    with pytest.raises(BadInput) as refused:
        normalise_metadata(raw)
    assert place in refused.value.message


def test_metadata_is_at_most_32_levels_deep() -> None:
    raw: Any = 1
    for _ in range(31):
        raw = {"a": raw}
    assert normalise_metadata(raw) == raw
    with pytest.raises(BadInput, match="32 levels"):
        normalise_metadata({"a": raw})


# --- the catalog's databases -----------------------------------------------------------------------------------------

documents = Table(
    "documents",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("facts", JSON().with_variant(JSONB(), "postgresql"), nullable=False),
    prefixes=["TEMPORARY"],
)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    engine = create_engine("sqlite://" if request.param == "sqlite" else request.getfixturevalue("postgres_url"))
    with engine.connect() as opened:
        documents.create(opened)
        yield opened
    engine.dispose()


def _passing(connection: Connection, where: Filter) -> list[int]:
    condition = compile_filter(where, documents.c.facts, connection.dialect.name)
    return list(connection.scalars(select(documents.c.id).where(condition).order_by(documents.c.id)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.lists(metadatas, max_size=8), st.lists(filters, min_size=1, max_size=4))
def test_the_catalog_agrees(connection: Connection, rows: list[dict[str, Any]], wheres: list[Filter]) -> None:
    connection.execute(documents.delete())
    if rows:
        connection.execute(insert(documents), [{"id": i, "facts": facts(row)} for i, row in enumerate(rows)])
    for where in wheres:
        assert _passing(connection, where) == [i for i, row in enumerate(rows) if matches(where, row)]


def test_the_catalog_takes_the_largest_filters(connection: Connection) -> None:
    connection.execute(documents.delete())
    connection.execute(insert(documents), [{"id": 1, "facts": facts({"n": 9_999})}])
    assert _passing(connection, Compare("n", Op.IN, tuple(range(10_000)))) == [1]
    many = Or(tuple(Compare("n", Op.GTE if i == 999 else Op.EQ, (float(i),)) for i in range(1_000)))
    assert _passing(connection, many) == [1]
    deep: Filter = Compare("n", Op.EQ, (9_999,))
    for _ in range(30):
        deep = Or((And((deep, Not(Compare("m", Op.EXISTS)))), Compare("n", Op.EQ, ("x",))))
    assert _passing(connection, deep) == [1]
