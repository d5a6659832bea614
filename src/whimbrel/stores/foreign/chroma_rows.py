"""Rows of other databases as Chroma has them: ids, metrics and metadata.

A row's URI, where it has one, is its metadata under `chroma:uri`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from whimbrel.stores.chroma.metadata import ENVELOPE, LISTS, ODD, decode
from whimbrel.stores.chroma.rows import to_chroma
from whimbrel.stores.envelope import Dialect
from whimbrel.stores.foreign.base import Id, IdKind
from whimbrel.stores.foreign.values import as_text, dumps, loads
from whimbrel.stores.metrics import Metric

URI = "chroma:uri"
_MORE = "whimbrel:more"
FROM = {"cosine": Metric.COSINE, "l2": Metric.L2, "ip": Metric.DOT}
TO = {metric: name for name, metric in FROM.items()}


def key_of(kind: IdKind, id_: Id) -> str:
    return to_chroma(kind.text(id_))


def write_metadata(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """(a row's metadata in Chroma, its URI). What Chroma cannot say is in `whimbrel:more`, and readable beside it where
    it has a text: a date, a decimal."""
    uri = metadata.get(URI)
    rest = {key: value for key, value in metadata.items() if key != URI} if isinstance(uri, str) else metadata
    plain = {key: value for key, value in rest.items() if sayable(key, value)}
    odd = {key: value for key, value in rest.items() if key not in plain}
    if odd:
        plain |= {key: text for key, value in odd.items() if DIALECT.takes_key(key) and (text := as_text(value))}
        plain[_MORE] = dumps(odd)
    return plain, uri if isinstance(uri, str) else None


def read_metadata(stored: Mapping[str, Any] | None, uri: str | None) -> dict[str, Any]:
    found = dict(stored or {})
    if any(key in found for key in (ENVELOPE, LISTS, ODD)):  # a row of a view
        found = dict(decode(found))
    more = found.pop(_MORE, None)
    if more is not None:
        found |= loads(more)
    if uri is not None:
        found[URI] = uri
    return found


def _takes_key(key: str) -> bool:
    return bool(key) and not key.startswith(("#", "$", "chroma:", "whimbrel:")) and is_utf8(key)


def _takes_float(value: float) -> bool:
    """Its server reads decimals of more than 15 digits a last bit off."""
    if not math.isfinite(value) or repr(value) == "-0.0":
        return False
    mantissa, _, exponent = repr(value).partition("e")
    digits = mantissa.replace("-", "").replace(".", "").strip("0")
    power = int(exponent or 0) - len(mantissa.partition(".")[2])
    return len(digits) <= 15 and -22 <= power <= 22


DIALECT = Dialect(
    takes_key=_takes_key,
    min_int=-(2**63),
    max_int=2**63 - 1,
    takes_float=_takes_float,
    takes_text=lambda text: is_utf8(text),
)


def sayable(key: str, value: Any) -> bool:
    return DIALECT.takes_key(key) and DIALECT.takes(value)


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
