"""Whether rows of a view are those of the catalog: each difference is seen, at its row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whimbrel.catalog.rows import ChunkRows, Described
from whimbrel.owner.held import HeldDigests, HeldRecords, as_records, digests
from whimbrel.stores.arrays import CodedMetadata, Texts
from whimbrel.stores.base import DENSE, Records

METADATA: list[dict[str, Any]] = [{"year": 2024, "tags": ["a", "b"]}, {"year": 2024.5, "é": None}, {}]


def chunks(count: int = 5) -> ChunkRows:
    random = np.random.default_rng(7)
    vectors = random.standard_normal((count, 4)).astype(np.float32)
    return ChunkRows(
        keys=np.arange(count, dtype=np.int64),
        ids=[f"{number:032x}" for number in range(count)],
        texts=[f"Text {number} – ü." for number in range(count)],
        documents=[Described(f"Title {number}", one) for number, one in enumerate(METADATA)],
        document=np.array([number % 3 for number in range(count)], np.int32),
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
    )


def held(
    rows: ChunkRows,
    *,
    texts: Sequence[str] | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    vectors: npt.NDArray[np.float32] | None = None,
    arrow: bool = False,
    exact: bool = True,
) -> HeldRecords:
    """The rows as a store gives them, some columns exchanged."""
    known = rows.vectors if vectors is None else vectors
    assert known is not None
    texts, metadata = texts or rows.texts, metadata or rows.metadata
    if arrow:
        texts, metadata = (
            Texts.of(texts),
            CodedMetadata.from_json(CodedMetadata.of(list(metadata)).arrow.cast("string")),
        )
    return HeldRecords(Records(rows.ids, {DENSE: known}, texts, metadata), exact)


def differing(found: HeldRecords, rows: ChunkRows) -> list[int]:
    return np.flatnonzero(found.differs(rows, np.arange(len(rows)))).tolist()


arrow = pytest.mark.parametrize("arrow", [False, True])
exact = pytest.mark.parametrize("exact", [False, True])


@arrow
@exact
@settings(max_examples=60, deadline=None)
@given(changed=st.sets(st.integers(0, 4)), column=st.sampled_from(["texts", "metadata", "vectors"]))
def test_the_rows_that_differ_are_found(arrow: bool, exact: bool, changed: set[int], column: str) -> None:
    rows = chunks()
    assert rows.vectors is not None
    texts, metadata, vectors = list(rows.texts), list(rows.metadata), rows.vectors.copy()
    for row in changed:
        match column:
            case "texts":
                texts[row] += " "
            case "metadata":
                metadata[row] = {**metadata[row], "year": "2024"}
            case _:
                vectors[row, row % 4] += np.float32(1e-4)
    found = held(rows, texts=texts, metadata=metadata, vectors=vectors, arrow=arrow, exact=exact)
    assert differing(found, rows) == sorted(changed)


@arrow
@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(5)), kept=st.integers(0, 5))
def test_rows_are_compared_wherever_they_are_in_the_batch(arrow: bool, order: list[int], kept: int) -> None:
    rows = chunks()
    shuffled = as_records(rows).taken(order)
    texts = [f"{text}!" if row == 2 else text for row, text in zip(order, shuffled.texts, strict=True)]
    found = HeldRecords(
        Records(list(shuffled.ids), shuffled.vectors, Texts.of(texts) if arrow else texts, list(shuffled.metadata)),
        True,
    )
    wanted = ChunkRows(
        rows.keys[:kept],
        rows.ids[:kept],
        rows.texts[:kept],
        rows.documents,
        rows.document[:kept],
        None if rows.vectors is None else rows.vectors[:kept],
    )
    at = np.array([order.index(row) for row in range(kept)], np.int64)
    assert np.flatnonzero(found.differs(wanted, at)).tolist() == ([2] if kept > 2 else [])


@arrow
@pytest.mark.parametrize(
    ("given_", "returned", "same"),
    [
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, True),
        ({"a": 1}, {"a": 1.0}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": 0.0}, {"a": -0.0}, False),
        ({"a": None}, {}, False),
        ({"a": float("nan")}, {"a": float("nan")}, True),
        ({"a": 2**70}, {"a": 2**70 + 1}, False),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 2, "b": 1}}, True),
    ],
)
def test_metadata_is_the_same_whatever_the_order_of_its_keys(
    arrow: bool, given_: dict[str, Any], returned: dict[str, Any], same: bool
) -> None:
    rows = chunks(2)
    rows = ChunkRows(rows.keys, rows.ids, rows.texts, [Described("", given_)], np.zeros(2, np.int32), rows.vectors)
    assert differing(held(rows, metadata=[returned, given_], arrow=arrow), rows) == ([] if same else [0])


def test_vectors_are_compared_bit_for_bit_where_a_store_keeps_them_so() -> None:
    rows = chunks(3)
    assert rows.vectors is not None
    vectors = rows.vectors.copy()
    rows.vectors[0, 0], vectors[0, 0] = 0.0, -0.0
    vectors[1] = np.nextafter(vectors[1], np.float32(2))
    assert differing(held(rows, vectors=vectors), rows) == [0, 1]
    assert differing(held(rows, vectors=vectors, exact=False), rows) == []
    assert differing(held(rows, vectors=vectors * 3, exact=False), rows) == [], "a store may normalise"
    vectors[2, 1] = np.nan
    assert differing(held(rows, vectors=vectors, exact=False), rows) == [2]
    assert differing(held(rows, vectors=vectors[:, :3]), rows) == [0, 1, 2]


def test_a_digest_covers_title_text_and_metadata() -> None:
    """Lexicons that are there hold them: the formula must not change."""
    rows = chunks()
    for text, title, metadata, found in zip(rows.texts, rows.titles, rows.metadata, digests(rows), strict=True):
        canonical = json.dumps([title, text, metadata], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        assert found == hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
    found = digests(rows)
    assert not HeldDigests(rows.ids, found).differs(rows, np.arange(5)).any()
    turned = HeldDigests(rows.ids, found[::-1])
    assert not turned.differs(rows, np.arange(5)[::-1]).any()
    assert turned.differs(rows, np.arange(5)).tolist() == [True, True, False, True, True]
