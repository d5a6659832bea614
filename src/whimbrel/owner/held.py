"""Rows as a view holds them, and whether they are as the catalog has them: compared column by column, every one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from whimbrel.catalog.rows import ChunkRows, Described
from whimbrel.domain import Metadata
from whimbrel.stores.arrays import CodedMetadata, Texts
from whimbrel.stores.base import DENSE, Records, Vectors

Flags = npt.NDArray[np.bool_]

TOLERANCE = 1e-6
"""Of each component of a vector of length 1, in a store that does not keep vectors bit for bit."""


class Held(Protocol):
    """A batch of a view's rows."""

    @property
    def ids(self) -> Sequence[str]: ...

    def differs(self, rows: ChunkRows, at: npt.NDArray[np.int64]) -> Flags:
        """bool[len(rows)]: whether row `at[i]` of this batch is not what `rows` says in its row `i`."""
        ...


@dataclass(frozen=True, slots=True)
class HeldRecords:
    """Rows of a store."""

    records: Records
    exact: bool
    """The store keeps vectors bit for bit; else they have one direction within `TOLERANCE`."""

    @property
    def ids(self) -> Sequence[str]:
        return self.records.ids

    def differs(self, rows: ChunkRows, at: npt.NDArray[np.int64]) -> Flags:
        whole = len(at) == len(self.records) and bool((at == np.arange(len(at))).all())
        held = self.records if whole else self.records.taken(at.tolist())
        wanted = as_records(rows)
        vectors = _bits_differ if self.exact else _directions_differ
        return (
            _texts_differ(wanted.texts, held.texts)
            | _metadata_differs(wanted.metadata, held.metadata)
            | vectors(wanted.vectors[DENSE], held.vectors[DENSE])
        )


@dataclass(frozen=True, slots=True)
class HeldDigests:
    """Rows of a lexicon, which keeps a digest of each."""

    ids: Sequence[str]
    digests: Sequence[str]

    def differs(self, rows: ChunkRows, at: npt.NDArray[np.int64]) -> Flags:
        held = (self.digests[row] for row in at.tolist())
        pairs = zip(digests(rows), held, strict=True)
        return np.fromiter((wanted != found for wanted, found in pairs), np.bool_, len(rows))


def as_records(rows: ChunkRows) -> Records:
    """The rows as a store takes them."""
    assert rows.vectors is not None
    metadata = CodedMetadata(rows.document, [described.metadata for described in rows.documents])
    return Records(rows.ids, {DENSE: rows.vectors}, Texts.of(rows.texts), metadata)


def digests(rows: ChunkRows) -> list[str]:
    """32 hex characters over what a lexicon holds of each chunk; two rows with one digest are the same row."""
    around = [_around(described) for described in rows.documents]
    found = []
    for text, number in zip(rows.texts, rows.document.tolist(), strict=True):
        before, after = around[number]
        hashed = hashlib.blake2b(before, digest_size=16)
        hashed.update(_canonical(text).encode("utf-8", "surrogatepass"))
        hashed.update(after)
        found.append(hashed.hexdigest())
    return found


def _around(described: Described) -> tuple[bytes, bytes]:
    """What stands before and after a chunk's text in the canonical JSON of [title, text, metadata]."""
    before, after = f"[{_canonical(described.title)},", f",{_canonical(described.metadata)}]"
    return before.encode("utf-8", "surrogatepass"), after.encode("utf-8", "surrogatepass")


_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode
"""One text for one value, whatever the order of its keys; 1 is not 1.0."""


def _texts_differ(wanted: Sequence[str], held: Sequence[str]) -> Flags:
    if not isinstance(held, Texts):
        pairs = zip(wanted, held, strict=True)
        return np.fromiter((one != other for one, other in pairs), np.bool_, len(held))
    import pyarrow.compute as pc

    different: Flags = pc.not_equal(Texts.of(wanted).arrow, held.arrow).to_numpy(zero_copy_only=False)
    return different.copy()  # Arrow's may not be written to


def _metadata_differs(wanted: Sequence[Metadata], held: Sequence[Metadata]) -> Flags:
    """Each pair of distinct ones is compared once: as the JSON that it came as, then, where that is not the same, by
    its canonical JSON."""
    one, other = CodedMetadata.of(wanted), CodedMetadata.of(held)
    numbers = int(other.codes.max(initial=0)) + 1
    pairs, first, of = np.unique(one.codes * np.int64(numbers) + other.codes, return_index=True, return_inverse=True)
    different = np.ones(len(pairs), np.bool_)
    if other.has_json:
        one_each, other_each = one.json.take(one.codes[first]), other.json.take(other.codes[first])
        different = _texts_differ(Texts(one_each), Texts(other_each))
    for pair in np.flatnonzero(different).tolist():
        row = int(first[pair])
        different[pair] = _canonical(one[row]) != _canonical(other[row])
    return different[of]


def _bits_differ(wanted: Vectors, held: Vectors) -> Flags:
    if wanted.shape != held.shape:
        return np.ones(len(held), np.bool_)
    one, other = (np.ascontiguousarray(vectors, "<f4").view(np.uint32) for vectors in (wanted, held))
    return np.asarray((one != other).any(axis=1))


def _directions_differ(wanted: Vectors, held: Vectors) -> Flags:
    if wanted.shape != held.shape:
        return np.ones(len(held), np.bool_)
    one, other = (vectors / np.maximum(_lengths(vectors), 1e-30) for vectors in (wanted, held))
    near = np.abs(one - other) <= TOLERANCE  # not where a component is NaN
    return np.asarray(~near.all(axis=1))


def _lengths(vectors: Vectors) -> Vectors:
    lengths: Vectors = np.linalg.norm(vectors, axis=1, keepdims=True)
    return lengths
