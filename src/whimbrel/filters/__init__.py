"""The filter grammar: parsed once to a tree that each store, the lexicon and the catalog compile."""

from whimbrel.filters.grammar import (
    OPERATORS,
    And,
    Compare,
    Filter,
    Not,
    Op,
    Or,
    Scalar,
    flatten,
    matches,
    normalise_metadata,
    operators,
    parse,
    paths,
    to_json,
)

__all__ = [
    "OPERATORS",
    "And",
    "Compare",
    "Filter",
    "Not",
    "Op",
    "Or",
    "Scalar",
    "flatten",
    "matches",
    "normalise_metadata",
    "operators",
    "parse",
    "paths",
    "to_json",
]
