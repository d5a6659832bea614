"""From a filter to Qdrant's: a condition that lets every row pass that the filter does, and only rows beside those
whose path is odd in them, which are then checked against their metadata.

Qdrant's `match` takes strings, integers and booleans, and an integer does not match a float of the same value; so
numbers are compared by ranges of one value. It has no order of strings: the store does not answer such a filter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from whimbrel.filters import And, Compare, Filter, Not, Op, Or, Scalar
from whimbrel.stores.qdrant.payload import ODD, Shapes, is_plain_key

if TYPE_CHECKING:
    from qdrant_client import models

Condition = Any
"""One of Qdrant's; True lets everything pass, False nothing."""

MAX_NUMBERS = 50
"""In one `$in`: each is a range of its own."""


def answers(where: Filter) -> bool:
    match where:
        case And(terms) | Or(terms):
            return all(map(answers, terms))
        case Not(term):
            return answers(term)
        case Compare(_, op, values):
            if op in (Op.EQ, Op.IN):
                return sum(1 for value in values if not isinstance(value, str | bool)) <= MAX_NUMBERS
            return op is Op.EXISTS or not isinstance(values[0], str)


def compile_filter(where: Filter, shapes: Shapes) -> models.Filter | bool:
    found = _condition(where, True, shapes)
    return found if isinstance(found, bool) else _as_filter(found)


def key(path: str) -> str:
    """A path of the metadata as Qdrant's filters and payload indexes name it."""
    return path if re.fullmatch(r"[A-Za-z0-9_-]+", path) else f'"{path}"'


def _condition(where: Filter, wanted: bool, shapes: Shapes) -> Condition:
    """Holds wherever `where` is `wanted`."""
    match where:
        case Not(term):
            return _condition(term, not wanted, shapes)
        case And(terms):
            return _join((_condition(term, wanted, shapes) for term in terms), every=wanted)
        case Or(terms):
            return _join((_condition(term, wanted, shapes) for term in terms), every=not wanted)
        case Compare(path, op, values):
            odd = _odd(path, shapes)
            if not is_plain_key(path):
                return odd if wanted else True
            native = _native(path, op, values)
            return _join([native if wanted else _negated(native), odd], every=False)


def _native(path: str, op: Op, values: Sequence[Scalar]) -> Condition:
    """Holds in the rows whose path is not odd exactly where the comparison does."""
    from qdrant_client import models

    name = key(path)
    if op is Op.EXISTS:
        return _negated(models.IsEmptyCondition(is_empty=models.PayloadField(key=name)))
    if op in (Op.EQ, Op.IN):
        return _among(name, values)
    value = values[0]
    if isinstance(value, str | bool):
        return False
    return models.FieldCondition(key=name, range=models.Range(**{op.value.removeprefix("$"): _float(value)}))


def _among(name: str, values: Sequence[Scalar]) -> Condition:
    from qdrant_client import models

    strings = [value for value in values if isinstance(value, str) and _is_utf8(value)]
    terms: list[Condition] = []
    if strings:
        one = models.MatchValue(value=strings[0]) if len(strings) == 1 else models.MatchAny(any=strings)
        terms.append(models.FieldCondition(key=name, match=one))
    for value in values:
        if isinstance(value, bool):
            terms.append(models.FieldCondition(key=name, match=models.MatchValue(value=value)))
        elif not isinstance(value, str) and _float(value) == value:
            same = models.Range(gte=_float(value), lte=_float(value))
            terms.append(models.FieldCondition(key=name, range=same))
    return _join(terms, every=False)


def _odd(path: str, shapes: Shapes) -> Condition:
    from qdrant_client import models

    if not shapes.is_odd(path if _is_utf8(path) else ""):
        return False
    return models.FieldCondition(key=ODD, match=models.MatchValue(value=path if _is_utf8(path) else ""))


def _negated(term: Condition) -> Condition:
    from qdrant_client import models

    return not term if isinstance(term, bool) else models.Filter(must_not=[term])


def _join(terms: Iterable[Condition], *, every: bool) -> Condition:
    """All of the terms, or any of them."""
    from qdrant_client import models

    joined = []
    for term in terms:
        if isinstance(term, bool):
            if term is not every:
                return term
        else:
            joined.append(term)
    if not joined:
        return every
    if len(joined) == 1:
        return joined[0]
    return models.Filter(must=joined) if every else models.Filter(should=joined)


def _as_filter(term: Condition) -> models.Filter:
    from qdrant_client import models

    return term if isinstance(term, models.Filter) else models.Filter(must=[term])


def _float(value: int | float) -> float:
    """The nearest; values that a filter compares natively are below 2^53, which rounding crosses for none."""
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
