"""What a copy carries in an envelope comes back as it was; digests tell rows apart; column forms keep or refuse."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.stores.foreign import pg_types
from whimbrel.stores.foreign.arrow import Columns, Form
from whimbrel.stores.foreign.arrow_types import fits, sampled
from whimbrel.stores.foreign.base import Chosen, IdKind, Mark, Rows, Table
from whimbrel.stores.foreign.chroma_rows import read_metadata, write_metadata
from whimbrel.stores.foreign.values import contents, differences, digests, dumps, loads, same

text = st.text(st.characters(codec="utf-8"), max_size=8)
keys = st.one_of(
    text, st.sampled_from(["$date", "$object", "$dict", "$float", "#x", "chroma:document", "whimbrel:more", ""])
)
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    text,
    st.binary(max_size=6),
    st.dates(),
    st.times(),
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC)),
    st.timedeltas(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.uuids(),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)
metadata = st.dictionaries(keys, values, max_size=4)


@given(metadata)
def test_every_value_comes_back_from_the_envelope(given: dict[str, Any]) -> None:
    assert same(loads(dumps(given)), given)


@given(metadata)
def test_every_value_comes_back_from_chroma_s_form(given: dict[str, Any]) -> None:
    plain, uri = write_metadata(given)
    assert same(read_metadata(plain, uri), given)
    assert all(isinstance(value, str | int | float | bool | list) for value in plain.values())


@given(st.lists(metadata, min_size=1, max_size=4))
def test_every_value_comes_back_from_columns_of_a_sample(given: list[dict[str, Any]]) -> None:
    """The columns are those of the first row; the others fit or do not."""
    table = Table("t", 2, None, IdKind.INT, fields=sampled(given[:1]))
    form, mark = Form.of(table), Mark("c", IdKind.INT, None)
    rows = Rows(list(range(len(given))), np.ones((len(given), 2), np.float32), ["x"] * len(given), given)
    made = form.table(rows, mark)
    read = Columns.of(made.schema, Chosen(id="id", vector="vector"), "t").rows(made, 2).rows
    assert not differences(rows, read, 0.0)
    assert digests(rows, contents(rows)) == digests(read, contents(read))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (True, 1),
        ("1", 1),
        (0.0, -0.0),
        (None, "null"),
        ([], ""),
        (Decimal("1.1"), Decimal("1.10")),
        (b"a", "YQ=="),
    ],
)
def test_values_of_two_types_are_two_digests(one: Any, other: Any) -> None:
    assert content("t", {"k": one}) != content("t", {"k": other})
    assert not same({"k": one}, {"k": other})


def test_no_text_is_not_the_empty_text_and_no_key_is_not_null() -> None:
    assert content(None, {}) != content("", {})
    assert content("", {"a": None}) != content("", {})


def content(text: str | None, metadata: dict[str, Any]) -> bytes:
    return contents(Rows(["x"], np.zeros((1, 2), np.float32), [text], [metadata]))[0]


def test_differences_name_what_differs() -> None:
    vectors = np.array([[1, 0], [0, 1], [3, 4], [5, 6]], np.float32)
    wanted = Rows(["a", "b", "c", "d"], vectors, ["x", "y", "z", None], [{}, {"n": 1}, {}, {}])
    other = vectors[[1, 0, 2]] + np.array([[0, 0], [0, 0], [0, 1e-5]], np.float32)
    found = Rows(["b", "a", "c"], other, ["y", "Y", "z"], [{"n": 1.0}, {}, {}])
    assert differences(wanted, found, 0.0) == {"a": "text", "b": "metadata", "c": "vector", "d": "missing"}
    assert differences(wanted, found, 1e-5) == {"a": "text", "b": "metadata", "d": "missing"}


def test_a_column_of_arrow_keeps_what_fits() -> None:
    assert fits(2**31 - 1, pa.int32())
    assert not fits(2**31, pa.int32())
    assert not fits(True, pa.int64())
    assert not fits(1, pa.float64())
    assert fits(math.nan, pa.float64())
    assert not fits(0.1, pa.float32())
    assert not fits([1, None], pa.list_(pa.int64()))
    assert not fits({"a": None}, pa.struct([("a", pa.int64())]))
    assert fits(Decimal("1.10"), pa.decimal128(10, 2))
    assert not fits(Decimal("1.1"), pa.decimal128(10, 2))
    assert not fits(datetime(2024, 1, 1, tzinfo=UTC), pa.timestamp("us"))


def test_a_column_of_postgres_keeps_what_fits() -> None:
    fits = pg_types.fits
    assert fits(5, "bigint")
    assert not fits(2**63, "bigint")
    assert not fits("a\0", "text")
    assert not fits("\ud800", "text")
    assert not fits({"a": [1e300]}, "jsonb")
    assert not fits({"a": -0.0}, "jsonb")
    assert fits({"a": [1, None, 2.5]}, "jsonb")
    assert fits(Decimal("1.10"), "numeric(10,2)")
    assert not fits(Decimal("1.1"), "numeric(10,2)")
    assert fits([1, 2], "bigint[]")
    assert not fits([1, "a"], "bigint[]")
    assert fits(UUID(int=1), "uuid")
    assert fits(date(1, 1, 1), "date")
    assert fits(time(1, 2, 3), "time without time zone")
    assert not fits(timedelta(1), "interval")


def test_json_numbers_that_no_float_is_are_decimals() -> None:
    assert pg_types.loads_exactly('{"a": 0.1, "b": 0.12345678901234567890, "c": 7}') == {
        "a": 0.1,
        "b": Decimal("0.12345678901234567890"),
        "c": 7,
    }
