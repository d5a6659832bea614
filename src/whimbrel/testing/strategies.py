"""Random metadata and filters that lean on what databases get wrong, for Hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

PATHS = [
    *("k", "K", "n", "a", "a.b", "a.b.c", "", "0", "year", "ключ", "é", "e\u0301", "\U0001f426"),
    *('it\'s "q" \\ $.x', "a b[0]", "select", "null", "#hash", "chroma:document", "_id", "x" * 80),
    *("id", "ID", "text", "vector", "metadata", "document", "embedding", "facts", "position", "_rowid"),
]
"""Some are names that databases keep for themselves, some differ only in case or in their Unicode form."""

paths = st.sampled_from(PATHS)
chars = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
strings = st.sampled_from(
    [
        "",
        " ",
        "a",
        "A",
        "b",
        "1",
        "true",
        "null",
        "NaN",
        "Zz",
        "\uffff",
        "\U00010000",
        "é",
        "e\u0301",
        "'\"\\%_",
        "é" * 90,
    ]
) | st.text(chars, max_size=6)
integers = (
    st.sampled_from([0, 1, -1, 2**31, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)])
    | st.integers(-3, 3)
    | st.integers(-(2**63), 2**63 - 1)
)
floats = st.sampled_from(
    [-0.0, 0.5, 1.0, float(2**53), 2.0**63, -(2.0**63), 0.1, 5e-324, 1e-7, 1e16, 1e308]
) | st.floats(allow_nan=False, allow_infinity=False)
numbers = integers | floats
scalars = st.booleans() | strings | numbers
unnamed = st.sampled_from([float("nan"), float("inf"), float("-inf"), 2**63, -(2**63) - 1, 2**70])
"""Values that rows of other programs may have, and no filter can name."""
values = (
    scalars
    | st.none()
    | st.lists(scalars, max_size=3)
    | st.lists(strings, min_size=1, max_size=3)
    | st.lists(integers, min_size=1, max_size=3)
    | st.lists(scalars | st.none() | st.dictionaries(paths, scalars, max_size=2), max_size=3)
    | st.dictionaries(paths, scalars | st.lists(scalars, max_size=2), max_size=2)
)
metadatas: st.SearchStrategy[dict[str, Any]] = st.dictionaries(paths, values, max_size=4)
foreign_metadatas: st.SearchStrategy[dict[str, Any]] = st.dictionaries(paths, values | unnamed, max_size=4)
"""Also with values that ingest would refuse: what a store must carry all the same."""


@st.composite
def _fields(draw: st.DrawFn) -> dict[str, Any]:
    operator = draw(
        st.sampled_from(["", "$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$contains", "$exists"])
    )
    path = draw(paths)
    match operator:
        case "":
            return {path: draw(scalars | st.none())}
        case "$exists":
            return {path: {operator: draw(st.booleans())}}
        case "$in" | "$nin":
            return {path: {operator: draw(st.lists(scalars, max_size=4))}}
        case "$gt" | "$gte" | "$lt" | "$lte":
            return {path: {operator: draw(strings | numbers)}}
        case "$contains":
            return {path: {operator: draw(scalars)}}
    return {path: {operator: draw(scalars | st.none())}}


filters: st.SearchStrategy[dict[str, Any]] = st.recursive(
    _fields(),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda terms: {"$and": terms})
        | st.lists(inner, max_size=3).map(lambda terms: {"$or": terms})
        | inner.map(lambda term: {"$not": term})
    ),
    max_leaves=5,
)
"""As users write them; each can be parsed."""
