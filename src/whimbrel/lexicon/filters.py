"""Filters as tantivy queries over one field of exact terms.

Each scalar of a document becomes one term, `path type value`, whose order within a path and type is the order of the
values; and each path one more, for `$exists`. Everything is lower-case letters and digits (the path as a hash, a string
as the hex of its UTF-8), because tantivy-py ranges over text only through the query parser, where a user's quotes and
brackets must have no meaning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from tantivy import Index, Occur, Query

from whimbrel.errors import BadFilter
from whimbrel.filters import And, Compare, Filter, Not, Op, Or
from whimbrel.filters.facts import facts, key, key_range

FIELD = "facts"

_LONGEST = 30_000
"""Bytes of a string that go into its term; what is longer ends in a hash. A term of tantivy takes 65,530 bytes."""


def fact_terms(metadata: Mapping[str, Any]) -> list[str]:
    """The terms that a document with this metadata is filtered by."""
    terms = []
    for path, keys in facts(metadata).items():
        at = _path(path)
        terms.append(at)
        terms.extend(at + _value(k) for k in keys)
    return terms


def compile_filter(where: Filter, index: Index) -> Query:
    """A query that finds exactly the documents that `where` matches; its scores mean nothing.

    Raises `BadFilter` for an ordering against a string of more than 30,000 bytes.
    """
    match where:
        case And(terms):
            return _boolean(Occur.Must, Query.all_query(), terms, index)
        case Or(terms):
            return _boolean(Occur.Should, Query.empty_query(), terms, index)
        case Not(term):
            return Query.boolean_query([(Occur.Must, Query.all_query()), (Occur.MustNot, compile_filter(term, index))])
        case Compare():
            return _compare(where, index)


def _boolean(occur: Occur, empty: Query, terms: tuple[Filter, ...], index: Index) -> Query:
    return Query.boolean_query([(occur, compile_filter(term, index)) for term in terms]) if terms else empty


def _compare(compare: Compare, index: Index) -> Query:
    at = _path(compare.path)
    if compare.op is Op.EXISTS:
        return Query.term_query(index.schema, FIELD, at, "basic")
    if compare.op in (Op.EQ, Op.IN):
        terms = [at + _value(key(value)) for value in compare.values]
        return Query.term_set_query(index.schema, FIELD, terms) if terms else Query.empty_query()
    bound = compare.values[0]
    if isinstance(bound, str) and len(bound.encode()) > _LONGEST:
        raise BadFilter(
            f"The filter orders {compare.path!r} by a string of more than {_LONGEST:,} bytes.",
            "Order by a shorter one.",
        )
    span = key_range(compare)
    low, high = at + _value(span.low), at + _value(span.high)
    opening, closing = "[" if span.include_low else "{", "]" if span.include_high else "}"
    return index.parse_query(f"{FIELD}:{opening}{low} TO {high}{closing}", [FIELD])


def _path(path: str) -> str:
    return hashlib.blake2b(path.encode(), digest_size=12).hexdigest()


def _value(key: str) -> str:
    """Of a key from `whimbrel.filters.facts`, or of the bare type that ends a range."""
    if key[0] != "s":
        return key
    data = key[1:].encode()
    if len(data) <= _LONGEST:
        return "s" + data.hex()
    # "x" orders behind every hex digit: after its own prefix, and so as the whole string would.
    return f"s{data[:_LONGEST].hex()}x{hashlib.blake2b(data, digest_size=16).hexdigest()}"
