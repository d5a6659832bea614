"""A row in the payload of its point.

| key | value |
|---|---|
| `text` | the row's text |
| each path of the metadata | its value, or an array of several: for filters and other programs |
| `whimbrel_id` | the row's id |
| `whimbrel_more` | the whole metadata as JSON, where the plain keys do not say it exactly |
| `whimbrel_odd` | the paths whose values the plain keys do not hold, or not as filters need them |

Servers compare numbers as 64-bit floats, and may read decimals of more than 15 digits a last bit off; a path cannot
have a quotation mark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whimbrel.domain import Metadata
from whimbrel.filters import Scalar, flatten
from whimbrel.stores.envelope import dumps, loads

ID, TEXT, MORE, ODD = "whimbrel_id", "text", "whimbrel_more", "whimbrel_odd"
_OURS = "whimbrel_"
MAX_ODD = 500
EXACT = 2**53
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Shapes:
    """The paths of a collection that are odd in some row, or were: a filter on any other is native and exact.

    They are kept in the collection's marker, and written there before the first row that has them.
    """

    odd: frozenset[str] = frozenset()
    any: bool = False
    """There are too many to name: any path may be."""

    @classmethod
    def read(cls, about: Mapping[str, Any]) -> Shapes:
        found = about.get("odd", [])
        return cls(any=True) if found == "any" else cls(frozenset(found))

    def with_(self, rows: Iterable[Mapping[str, Any]]) -> Shapes:
        """These and those of encoded rows; the same object where there are no others."""
        if self.any:
            return self
        odd = self.odd.union(*(row[ODD] for row in rows if ODD in row))
        if odd == self.odd:
            return self
        return Shapes(odd) if len(odd) <= MAX_ODD else Shapes(any=True)

    def said(self) -> dict[str, Any]:
        return {"odd": "any" if self.any else sorted(self.odd)}

    def is_odd(self, path: str) -> bool:
        return self.any or path in self.odd


def encode(ids: Sequence[str], texts: Sequence[str], metadata: Sequence[Metadata]) -> list[dict[str, Any]]:
    """The payload of each row. Rows of one metadata object share its encoding."""
    known: dict[int, dict[str, Any]] = {}
    found = []
    for id_, text, one in zip(ids, texts, metadata, strict=True):
        said = known.get(id(one))
        if said is None:
            said = known[id(one)] = _encode(one)
        found.append({ID: id_, TEXT: text, **said})
    return found


def decode(payload: Mapping[str, Any]) -> Metadata:
    """The metadata as it was given."""
    more = payload.get(MORE)
    return loads(more) if more is not None else plain(payload)


def plain(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The plain keys."""
    return {key: value for key, value in payload.items() if key != TEXT and not key.startswith(_OURS)}


def is_plain_key(path: str) -> bool:
    """Whether a filter can name it."""
    return bool(path) and path != TEXT and not path.startswith(_OURS) and '"' not in path and _is_utf8(path)


def _encode(metadata: Metadata) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    odd = []
    for path, scalars in flatten(metadata).items():
        if not is_plain_key(path) or not all(map(_is_sayable, scalars)):
            odd.append(path)
            continue
        several = len(scalars) > 1 or isinstance(metadata.get(path), list)
        plain[path] = scalars if several else scalars[0]
        if not all(map(is_exact, scalars)):
            odd.append(path)
    said = dict(plain)
    exact = not odd and len(plain) == len(metadata)
    if not exact or not all(_same(plain.get(key, _ABSENT), value) for key, value in metadata.items()):
        said[MORE] = dumps(metadata)
    if odd:
        said[ODD] = [path if _is_utf8(path) else "" for path in odd]
    return said


def _same(plain: Any, value: Any) -> bool:
    if isinstance(plain, list) and isinstance(value, list):
        return len(plain) == len(value) and all(one is other for one, other in zip(plain, value, strict=True))
    return plain is value


def _is_sayable(scalar: Scalar) -> bool:
    return not isinstance(scalar, str) or _is_utf8(scalar)


def is_exact(scalar: Scalar) -> bool:
    """Whether the value is the same after a server has read it, and as a 64-bit float."""
    if isinstance(scalar, str | bool):
        return True
    if isinstance(scalar, int):
        return abs(scalar) < EXACT
    if scalar == 0.0:
        return math.copysign(1.0, scalar) > 0
    mantissa, _, exponent = repr(scalar).partition("e")
    digits = mantissa.replace("-", "").replace(".", "").strip("0")
    power = int(exponent or 0) - len(mantissa.partition(".")[2])
    return len(digits) <= 15 and -22 <= power <= 22 and abs(scalar) < EXACT


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
