"""Metadata taken apart by column says what it says taken apart row by row."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from whimbrel.filters import flatten
from whimbrel.stores.envelope import dumps, loads
from whimbrel.stores.lancedb.columns import METADATA, Columns, encode
from whimbrel.stores.tabular import MIN_ROWS, Loose, Plain, dumps_all, tabulated
from whimbrel.testing.strategies import foreign_metadatas, paths, scalars, strings, unnamed, values

columns = st.sampled_from(
    [strings, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), scalars | st.none(), values | unnamed]
)


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of a few forms, mixed; of each key most often one type of values."""
    found: list[dict[str, Any]] = draw(st.lists(foreign_metadatas, max_size=3))
    for _ in range(draw(st.integers(1, 2))):
        form = draw(st.dictionaries(paths | st.sampled_from(["$float", "$dict"]), columns, max_size=4))
        nulls = draw(st.booleans())
        for _ in range(draw(st.integers(1, 2 * MIN_ROWS))):
            drawn = {key: draw(st.none() | one if nulls else one) for key, one in form.items()}
            found.append(drawn)
    return draw(st.permutations(found))


@given(rows())
@example([{"a": math.nan if row == 3 else 1.0} for row in range(MIN_ROWS)])
@example([{"a": 0.0 if row % 2 else -0.0} for row in range(MIN_ROWS)])
@example([{"a": 2**63 if row == 3 else row} for row in range(MIN_ROWS)])
@example([{"a": [{"$float": None}]} for _ in range(MIN_ROWS)])
@example([{"a.b": row, "a": {"b": 2}} for row in range(MIN_ROWS)])
@example([{"a": "\ud800" if row == 3 else 'q"\\\n\x00'} for row in range(MIN_ROWS)])
@example([{"\udc00": row} for row in range(MIN_ROWS)])
@example([{} for _ in range(MIN_ROWS)])
def test_the_json_of_many_rows_is_that_of_each(metadata: list[dict[str, Any]]) -> None:
    assert dumps_all(metadata).to_pylist() == list(map(dumps, metadata))


@given(rows(), st.integers(0, 12))
def test_columns_hold_what_the_rows_do(metadata: list[dict[str, Any]], limit: int) -> None:
    encoded = encode(metadata, Columns(), limit)
    assert len(encoded.columns.of) <= limit
    assert all(len(array) == len(metadata) for array in encoded.arrays.values())
    for row, one in enumerate(metadata):
        assert encoded.arrays[METADATA][row].as_py() == dumps(one)
        held = _held(encoded.columns, encoded.arrays, row)
        for path, expected in flatten(one).items():
            there = held.get(path, [])
            assert _typed(there) <= _typed(expected)
            if not encoded.columns.overflows:
                assert _typed(there) == _typed(expected)
        assert held.keys() <= flatten(one).keys()


def test_rows_of_one_form_are_taken_apart_by_column() -> None:
    metadata = [{"site": f"s{row}", "year": row, "tags": ["a"], "none": None} for row in range(2 * MIN_ROWS)]
    (form,) = tabulated(metadata).forms
    assert [type(column) for column in form.columns.values()] == [Plain, Plain, Loose, Plain]
    assert not len(tabulated(metadata).others)


@pytest.mark.parametrize("odd", [math.inf, math.nan, {"b": 1}, [{"b": 1}], [math.nan], "\ud800", {"$float": "nan"}])
def test_one_row_that_needs_a_look_sends_its_form_row_by_row(odd: Any) -> None:
    metadata = [{"a": 1.0} for _ in range(MIN_ROWS)] + [{"a": odd}] + [{"b": 1} for _ in range(MIN_ROWS)]
    table = tabulated(metadata)
    assert table.others.tolist() == list(range(MIN_ROWS + 1))
    assert len(table.forms) == 1
    back = loads(dumps_all(metadata)[MIN_ROWS].as_py())["a"]
    assert back == odd or odd != odd or "nan" in dumps({"a": odd})


def _held(columns: Columns, arrays: Any, row: int) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for slot, column in columns.of.items():
        value = arrays[column.name][row].as_py() if column.name in arrays else None
        if value is not None:
            assert arrays[column.name].type == (pa.list_(slot.type.value_type) if slot.many else slot.type)
            found.setdefault(slot.path, []).extend(value if slot.many else [value])
    return found


def _typed(values: list[Any]) -> set[tuple[type, Any]]:
    return {(type(value), value) for value in values}
