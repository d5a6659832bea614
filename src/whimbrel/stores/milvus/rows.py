"""Rows of a collection that we make, as Milvus takes them.

| field | type | what |
|---|---|---|
| `id` | VARCHAR, the key | the row's id |
| `vector` | FLOAT_VECTOR | |
| `text` | VARCHAR | the text; its first 65,535 bytes, where it is longer |
| `more` | ARRAY of VARCHAR | the rest of a longer text |
| (dynamic) | JSON | each key of the metadata that Milvus can say: for other programs, and for orderings |
| `metadata` | ARRAY of VARCHAR | as JSON, in pieces, what the dynamic fields do not say exactly |
| `facts` | ARRAY of INT64; VARCHAR in Milvus Lite | numbers of the metadata's paths and values, for filters |
| `loose` | BOOL | the facts are too many to keep: hits of a filter are checked |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from whimbrel.domain import Metadata
from whimbrel.errors import RowRefused
from whimbrel.stores.base import DENSE, Records, Vectors
from whimbrel.stores.envelope import Dialect, dumps, joined, split
from whimbrel.stores.milvus.backend import (
    FACTS,
    ID,
    LOOSE,
    MAX_CAPACITY,
    MAX_LENGTH,
    METADATA,
    MORE,
    TEXT,
    VECTOR,
)
from whimbrel.stores.milvus.where import ANY, PLAIN, Facts, facts_of

FIELDS = (ID, VECTOR, TEXT, MORE, METADATA, FACTS, LOOSE)
MAX_DYNAMIC = 32_000
"""Bytes of a row's dynamic fields; Milvus takes 65,536 of one JSON."""

_ID_PREFIX = "whimbrel:"
_SPECIAL = re.compile(r"[\x00-\x1f\x7f]")


@lru_cache(maxsize=4_096)
def takes_key(name: str) -> bool:
    return PLAIN.fullmatch(name) is not None and len(name) <= 200 and name not in FIELDS


DIALECT = Dialect(takes_key=takes_key, takes_text=lambda value: len(value) <= 1_000 and "\0" not in value)


def to_milvus(id_: str) -> str:
    """Milvus' grammar has no escape for control characters in common, and the empty id is refused by some versions:
    such an id gets a name in hexadecimal, and so does whatever begins like that name."""
    if id_ and not id_.startswith(_ID_PREFIX) and not _SPECIAL.search(id_):
        return id_
    return _ID_PREFIX + "id:" + id_.encode().hex()


def from_milvus(id_: str) -> str:
    if not id_.startswith(_ID_PREFIX):
        return id_
    return bytes.fromhex(id_.removeprefix(_ID_PREFIX + "id:")).decode()


def collection_name(name: str) -> str:
    """The name of a view as Milvus takes it: letters, digits and `_`, not too many."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", name):
        return name
    digest = blake2b(name.encode(), digest_size=6).hexdigest()
    return "v_" + re.sub(r"[^A-Za-z0-9_]", "_", name)[:180] + "_" + digest


def encode(records: Records, facts: Facts) -> list[dict[str, Any]]:
    """What is written for each row. Rows of one metadata object, as the chunks of a document are, share its encoding.
    Raises `RowRefused` for an id that is too long."""
    known: dict[int, dict[str, Any]] = {}
    rows = []
    columns = zip(records.ids, records.vectors[DENSE].tolist(), records.texts, records.metadata, strict=True)
    for id_, vector, text, metadata in columns:
        about = known.get(id(metadata))
        if about is None:
            about = known[id(metadata)] = _encode(metadata, facts)
        stored = to_milvus(id_)
        if len(stored.encode()) > MAX_LENGTH:
            raise RowRefused.of(id_, "Milvus takes ids of up to 65,535 bytes; one is longer. Rows before it are there.")
        first, *more = pieces(text) or [""]
        rows.append({ID: stored, VECTOR: vector, TEXT: first, MORE: more, **about})
    return rows


def decode(rows: Sequence[Mapping[str, Any]], dimensions: int) -> Records:
    vectors: Vectors = np.zeros((0, dimensions), np.float32)
    if rows:
        vectors = np.asarray([row[VECTOR] for row in rows], np.float32)
    texts = ["".join([row[TEXT], *row[MORE]]) for row in rows]
    return Records([from_milvus(row[ID]) for row in rows], {DENSE: vectors}, texts, list(map(metadata_of, rows)))


def metadata_of(row: Mapping[str, Any]) -> Metadata:
    """The metadata as it was given; where a row has but some of the dynamic fields, what of it these say."""
    plain = {key: value for key, value in row.items() if key not in FIELDS}
    return joined(plain, "".join(row[METADATA]) or None)


def pieces(text: str) -> list[str]:
    """The text in strings of at most 65,535 bytes, none of which cuts a character."""
    if len(text) <= MAX_LENGTH // 4:
        return [text] if text else []
    raw, found, start = text.encode(), list[str](), 0
    while start < len(raw):
        end = min(start + MAX_LENGTH, len(raw))
        while end < len(raw) and raw[end] & 0xC0 == 0x80:
            end -= 1
        found.append(raw[start:end].decode())
        start = end
    return found


def _is_small(plain: Mapping[str, Any]) -> bool:
    """Whether it takes no more than `MAX_DYNAMIC`, as far as this can be seen without writing it: JSON has at most six
    bytes for a character, and thirty for a number."""
    size = 0
    for name, value in plain.items():
        if type(value) is list:
            return False
        size += len(name) + (len(value) if type(value) is str else 4) + 1
    return 6 * size <= MAX_DYNAMIC


def _encode(metadata: Metadata, facts: Facts) -> dict[str, Any]:
    plain, envelope = split(metadata, DIALECT)
    if not _is_small(plain) and len(dumps(plain)) > MAX_DYNAMIC:
        plain, envelope = {}, dumps(metadata)
    numbers = facts_of(metadata, plain)
    loose = facts.may_be_loose and len(numbers) > MAX_CAPACITY
    kept = facts.kept([ANY] if loose else numbers)
    return {**plain, METADATA: pieces(envelope or ""), FACTS: kept, LOOSE: loose}
