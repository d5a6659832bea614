"""A row's metadata in Chroma: plain keys where Chroma can say the value, an envelope beside them where it cannot.

| key | value |
|---|---|
| each path of the metadata | its one value, or an array of several of one type: for filters and other programs |
| `whimbrel:metadata` | the whole metadata as JSON, where the plain keys do not say it exactly |
| `whimbrel:lists` | the paths that have arrays: Chroma has no order within those |
| `whimbrel:odd` | the paths whose values the plain keys do not hold, or not exactly |

Chroma refuses `{}`, empty, mixed and nested lists, objects, and keys that are empty or start with `#` or `$`; it takes
null for "remove this key", drops NaN, infinities and the sign of -0.0, turns integers past 64 bits into floats, and
hides keys that start with `chroma:`. Its server reads decimals of more than 15 digits a last bit off.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whimbrel.domain import Metadata
from whimbrel.filters import Scalar, flatten
from whimbrel.stores.envelope import dumps, loads

OURS = "whimbrel:"
ENVELOPE, LISTS, ODD = "whimbrel:metadata", "whimbrel:lists", "whimbrel:odd"

_ANY = "whimbrel:any"
_ABSENT = object()

MAX_SHAPES = 500


@dataclass(frozen=True, slots=True)
class Shapes:
    """The paths of a collection that have, or had, arrays, and those that are odd: a filter on any other is one test.

    They are kept with the collection's own metadata, and written there before the first row that has them.
    """

    lists: frozenset[str] = frozenset()
    odd: frozenset[str] = frozenset()
    any: bool = False
    """There are too many to name: any path may have both."""

    @classmethod
    def read(cls, about: Mapping[str, Any]) -> Shapes:
        """From the metadata of a collection that we made."""
        found = {key: json.loads(about.get(key, "[]")) for key in (LISTS, ODD)}
        return cls(frozenset(found[LISTS]), frozenset(found[ODD]), bool(about.get(_ANY)))

    def with_(self, rows: Iterable[Mapping[str, Any]]) -> Shapes:
        """These and those of encoded rows; the same object where there are no others."""
        if self.any:
            return self
        lists = self.lists.union(*(row[LISTS] for row in rows if LISTS in row))
        odd = self.odd.union(*(row[ODD] for row in rows if ODD in row))
        if len(lists) == len(self.lists) and len(odd) == len(self.odd):
            return self
        return Shapes(lists, odd) if len(lists) + len(odd) <= MAX_SHAPES else Shapes(any=True)

    def said(self) -> dict[str, Any]:
        """For the collection's metadata."""
        return {_ANY: self.any, **{key: json.dumps(sorted(paths)) for key, paths in self._named()}}

    def has_lists(self, path: str) -> bool:
        return self.any or path in self.lists

    def is_odd(self, path: str) -> bool:
        return self.any or path in self.odd

    def _named(self) -> list[tuple[str, frozenset[str]]]:
        return [(LISTS, self.lists), (ODD, self.odd)]


def encode(metadata: Sequence[Metadata]) -> list[dict[str, Any]]:
    """What is written for each row. Rows of one metadata object, as the chunks of a document are, share the result."""
    known = {id(one): one for one in metadata}
    encoded = {key: _encode(one) for key, one in known.items()}
    return [encoded[id(one)] for one in metadata]


def decode(stored: Mapping[str, Any] | None) -> Metadata:
    """The metadata as it was given."""
    if not stored:
        return {}
    envelope = stored.get(ENVELOPE)
    if envelope is not None:
        return loads(envelope)
    if LISTS in stored or ODD in stored:
        return {key: value for key, value in stored.items() if not key.startswith(OURS)}
    return stored


def is_plain_key(path: str) -> bool:
    """Whether Chroma has this path as a key of its own."""
    return bool(path) and not path.startswith(("#", "$", "chroma:", OURS))


def _encode(metadata: Metadata) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    lists, odd = [], []
    for path, scalars in flatten(metadata).items():
        value = metadata.get(path)
        if not is_plain_key(path) or not _one_kind(scalars):
            odd.append(path)
            continue
        if len(scalars) > 1 or isinstance(value, list):
            plain[path] = scalars
            lists.append(path)
        else:
            plain[path] = scalars[0]
        if not all(map(_is_exact, scalars)):
            odd.append(path)
    exact = not odd and len(plain) == len(metadata)
    if not exact or not all(_same(plain.get(key, _ABSENT), value) for key, value in metadata.items()):
        plain[ENVELOPE] = dumps(metadata)
    if lists:
        plain[LISTS] = lists
    if odd:
        plain[ODD] = odd
    return plain


def _same(plain: Any, value: Any) -> bool:
    if isinstance(plain, list) and isinstance(value, list):
        return len(plain) == len(value) and all(map(operator.is_, plain, value))
    return plain is value


def _one_kind(scalars: Sequence[Scalar]) -> bool:
    """Whether Chroma takes these values, as one or as an array."""
    kind = type(scalars[0])
    return all(type(scalar) is kind for scalar in scalars)


def _is_exact(scalar: Scalar) -> bool:
    """Whether the value comes back as it is: a decimal of at most 15 digits and a small power of ten does."""
    if not isinstance(scalar, float):
        return True
    if scalar == 0.0:
        return math.copysign(1.0, scalar) > 0
    mantissa, _, exponent = repr(scalar).partition("e")
    digits = mantissa.replace("-", "").replace(".", "").strip("0")
    power = int(exponent or 0) - len(mantissa.partition(".")[2])
    return len(digits) <= 15 and -22 <= power <= 22
