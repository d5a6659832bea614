"""Random metadata and filters that lean on what compilers get wrong: for every test of a compiler."""

from __future__ import annotations

from hypothesis import strategies as st

from whimbrel.filters import And, Compare, Filter, Not, Op, Or

PATHS = ["k", "n", "a.b", "a", "", "ключ", 'it\'s "q" \\ $.x', "a b[0]", "0", "\U0001f426"]
paths = st.sampled_from(PATHS)
chars = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
strings = st.sampled_from(
    ["", "a", "b", "1", "true", "Zz", "\uffff", "\U00010000", "é", "e\u0301", "'\"\\%_", "é" * 90]
) | st.text(chars, max_size=6)
numbers = (
    st.sampled_from([0, -0.0, 1, 1.0, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63), 2.0**63, 0.1, 5e-324, 1e308])
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
)
scalars = st.booleans() | strings | numbers
metadatas = st.dictionaries(
    paths,
    scalars
    | st.none()
    | st.lists(scalars | st.none() | st.dictionaries(paths, scalars, max_size=2), max_size=3)
    | st.dictionaries(paths, scalars, max_size=2),
    max_size=4,
)


@st.composite
def compares(draw: st.DrawFn) -> Compare:
    op = draw(st.sampled_from(list(Op)))
    path = draw(paths)
    if op is Op.EXISTS:
        return Compare(path, op)
    if op is Op.IN:
        return Compare(path, op, tuple(draw(st.lists(scalars, max_size=3))))
    return Compare(path, op, (draw(scalars if op is Op.EQ else strings | numbers),))


filters: st.SearchStrategy[Filter] = st.recursive(
    compares(),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda terms: And(tuple(terms)))
        | st.lists(inner, max_size=3).map(lambda terms: Or(tuple(terms)))
        | inner.map(Not)
    ),
    max_leaves=5,
)
