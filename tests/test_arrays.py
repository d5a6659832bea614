"""Columns that stay Arrow read as the lists they stand for, and hold each distinct value once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.stores.arrays import CodedMetadata, Texts
from whimbrel.stores.base import DENSE, Records
from whimbrel.stores.envelope import dumps, loads
from whimbrel.stores.records import writable
from whimbrel.testing.strategies import foreign_metadatas

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=8)
bounds = st.one_of(st.none(), st.integers(-10, 10))


@st.composite
def shared(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Metadata of rows of which many have one object."""
    distinct = draw(st.lists(foreign_metadatas, min_size=1, max_size=4))
    return [distinct[number] for number in draw(st.lists(st.integers(0, len(distinct) - 1), max_size=10))]


def said(metadata: Sequence[Any]) -> list[str]:
    """NaN is unlike itself; its JSON is not."""
    return list(map(dumps, metadata))


@given(texts, bounds, bounds)
def test_texts_read_as_their_list(strings: list[str], start: int | None, stop: int | None) -> None:
    column = Texts.of(strings)
    assert list(column) == strings
    assert column == strings
    assert [column[row] for row in range(-len(strings), len(strings))] == 2 * strings
    part = column[start:stop]
    assert isinstance(part.arrow, pa.StringArray)
    assert part == strings[start:stop]
    assert column.taken(list(range(len(strings)))[::-1]) == strings[::-1]
    assert Texts.joined([part, column]) == [*strings[start:stop], *strings]
    assert Texts.of(part) is part
    with pytest.raises(IndexError):
        column[len(strings)]


def test_texts_are_unequal_to_others() -> None:
    assert Texts.of(["a", "b"]) != ["a"]
    assert Texts.of(["a", "b"]) != ["a", "c"]
    assert Texts.of(["a"]) != "a"


@given(shared(), bounds, bounds, st.booleans())
def test_coded_metadata_reads_as_its_list(
    metadata: list[dict[str, Any]], start: int | None, stop: int | None, from_json: bool
) -> None:
    column = CodedMetadata.from_json(pa.array(said(metadata), pa.string())) if from_json else CodedMetadata.of(metadata)
    part = column[start:stop]
    for found, expected in (
        (column, metadata),
        (part, metadata[start:stop]),
        (part.compact(), metadata[start:stop]),
        (column.taken(list(range(len(metadata)))[::-1]), metadata[::-1]),
        (CodedMetadata.joined([part, column]), metadata[start:stop] + metadata),
        (
            CodedMetadata.joined([part.compact(), column, CodedMetadata.of(metadata)]),
            metadata[start:stop] + 2 * metadata,
        ),
    ):
        assert found.codes.dtype == np.int32
        assert said(found) == said(expected)
        assert said([found[row] for row in range(len(found))]) == said(expected)
        assert found.arrow.to_pylist() == said(expected)
        assert [found.json[number].as_py() for number in found.codes] == said(expected)
    assert len(part.compact().distinct) == len(np.unique(part.codes))
    assert CodedMetadata.of(part) is part


def test_an_object_or_a_text_that_rows_share_is_held_once() -> None:
    one, other = {"page": 1}, {"page": 2}
    column = CodedMetadata.of([one, other, one, one])
    assert column.codes.tolist() == [0, 1, 0, 0]
    assert column[2] is one
    read = CodedMetadata.from_json(column.arrow.dictionary_decode())
    assert len(read.distinct) == 2
    assert read[0] is read[3]
    assert read[1:][2] is read[0], "a slice decodes nothing again"


def test_what_was_decoded_or_written_once_is_not_again() -> None:
    column = CodedMetadata.of([{"n": 1.0}])
    assert column.json is column[:1].json
    read = CodedMetadata.from_json(pa.array(['{"n":1}', "no JSON"]))
    assert read[0] == {"n": 1}, "the other has not been decoded"


def test_rows_stay_arrow_when_they_are_cut_taken_and_joined() -> None:
    rows = arrow_rows(["a", "b", "c"])
    for found, ids in (
        (rows.between(1, 3), ["b", "c"]),
        (rows.taken([2, 0]), ["c", "a"]),
        (Records.joined([rows.between(0, 1), rows], 4), ["a", "a", "b", "c"]),
        (writable(arrow_rows(["a", "b", "a"]), 4), ["a", "b"]),
    ):
        assert isinstance(found.ids, Texts)
        assert isinstance(found.texts, Texts)
        assert isinstance(found.metadata, CodedMetadata)
        assert list(found.ids) == ids
        assert [one["of"] for one in found.metadata] == ids


def test_rows_of_both_kinds_are_joined() -> None:
    rows = arrow_rows(["a", "b"])
    plain = Records(["c"], {DENSE: np.ones((1, 4), np.float32)}, ["text"], [{"of": "c"}])
    found = Records.joined([rows, plain], 4)
    assert list(found.ids) == ["a", "b", "c"]
    assert [one["of"] for one in found.metadata] == ["a", "b", "c"]


@pytest.mark.parametrize("lone", ["\ud800", "a\udfffb"])
def test_half_of_a_pair_is_no_text(lone: str) -> None:
    with pytest.raises(UnicodeEncodeError):
        Texts.of([lone])
    assert loads(CodedMetadata.of([{"a": lone}]).json[0].as_py()) == {"a": lone}


def arrow_rows(ids: list[str]) -> Records:
    metadata = CodedMetadata.from_json(pa.array([dumps({"of": id_}) for id_ in ids]))
    return Records(Texts.of(ids), {DENSE: np.ones((len(ids), 4), np.float32)}, Texts.of(ids), metadata)
