"""Metadata that a database cannot say: carried as one text beside the keys that it can.

Databases drop or change what they do not know: a null removes its key, NaN vanishes, an integer past 2^53 becomes a
float, lists must not be empty or mixed, objects must not nest, some names are taken. `Dialect` says what one of them
takes. `split` leaves that plain, so that other programs read and filter it, and puts the rest into the envelope;
`joined` gives back exactly what was given.

    split({"year": 2024, "tags": []}, dialect)  ->  ({"year": 2024}, '{"tags":[]}')

The text is strict JSON. What JSON cannot say is an object of one reserved key: `{"$float": "nan"}`; an object
of the user's that has such a key is a list of pairs, `{"$dict": [["$float", 1]]}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from whimbrel.domain import Metadata

_FLOAT, _DICT = "$float", "$dict"


@dataclass(frozen=True, slots=True)
class Dialect:
    """Which values a database keeps exactly as they are. Strings and booleans are taken everywhere."""

    takes_key: Callable[[str], bool] = bool
    """Names that may be keys; the empty one is refused by most."""
    min_int: int = -(2**53)
    max_int: int = 2**53
    lists: bool = True
    """Lists of one scalar type, not empty."""
    takes_float: Callable[[float], bool] = lambda value: math.isfinite(value) and repr(value) != "-0.0"
    takes_text: Callable[[str], bool] = lambda value: True

    def takes(self, value: Any) -> bool:
        match value:
            case bool():
                return True
            case str():
                return self.takes_text(value)
            case int():
                return self.min_int <= value <= self.max_int
            case float():
                return self.takes_float(value)
            case list():
                alike = len({type(item) for item in value}) == 1
                return self.lists and alike and not isinstance(value[0], list) and all(map(self.takes, value))
        return False


def split(metadata: Metadata, dialect: Dialect) -> tuple[dict[str, Any], str | None]:
    """(the plain keys, the envelope with the others; None where there are none)."""
    plain = {key: value for key, value in metadata.items() if dialect.takes_key(key) and dialect.takes(value)}
    if len(plain) == len(metadata):
        return plain, None
    return plain, dumps({key: value for key, value in metadata.items() if key not in plain})


def joined(plain: Mapping[str, Any], envelope: str | None) -> Metadata:
    """What `split` was given; keys that the envelope holds have their value from there."""
    return {**plain, **loads(envelope)} if envelope else dict(plain)


def dumps(metadata: Metadata) -> str:
    """Metadata as strict JSON, exactly, in valid UTF-8: also NaN, infinities, -0.0, integers of any size."""
    try:
        written = _json(metadata)
        if not is_reserved(written):
            return written
    except ValueError:  # NaN or an infinity
        pass
    return _json(_encoded(metadata))


def is_reserved(written: str) -> bool:
    """Whether a key, or JSON, may hold a key that means something here."""
    return _FLOAT in written or _DICT in written


def _json(value: Any) -> str:
    written = _in_unicode(value)
    try:
        written.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return _in_ascii(value)
    return written


# Made once: `json.dumps` makes an encoder for each call that has options.
_in_unicode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_in_ascii = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def loads(written: str) -> dict[str, Any]:
    """What `dumps` was given."""
    found: dict[str, Any] = _decode(written) if is_reserved(written) else json.loads(written)
    return found


def _encoded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if isinstance(value, Mapping):
        if _FLOAT in value or _DICT in value:
            return {_DICT: [[key, _encoded(inner)] for key, inner in value.items()]}
        return {key: _encoded(inner) for key, inner in value.items()}
    return [_encoded(item) for item in value] if isinstance(value, list | tuple) else value


def _decoded(found: dict[str, Any]) -> Any:
    if _FLOAT in found:
        return float(found[_FLOAT])
    return dict(found[_DICT]) if _DICT in found else found


_decode = json.JSONDecoder(object_hook=_decoded).decode
