"""Which chunks a view should hold, as arrays: 25 bytes a chunk, where a set of ids takes 120."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, select

from whimbrel.catalog import tables as t
from whimbrel.catalog.keys import among

_PART = 20_000
"""Rows that are objects at one time."""
_BYTES = 16
"""Of a public id."""


class Ledger:
    """The chunks of a collection under one chunking, by public id. Entries are numbered in the order of their ids."""

    def __init__(self, public_ids: bytes, keys: npt.NDArray[np.int64]) -> None:
        """`public_ids`: 16 bytes for each key, in the order of `keys`."""
        halves = _halves(public_ids)
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        self._halves = halves[order]
        self._first = np.ascontiguousarray(self._halves[:, 0])
        self.keys = keys[order]
        """int64[n]: the key of each entry's chunk."""

    @classmethod
    def read(cls, connection: Connection, collection_id: int, chunking_id: int) -> Ledger:
        chunks = t.chunks.c
        query = select(chunks.public_id, chunks.id).where(
            chunks.collection_id == collection_id, chunks.chunking_id == chunking_id
        )
        ids, keys = bytearray(), []
        for part in connection.execute(query, execution_options={"yield_per": _PART}).partitions():
            publics, numbers = zip(*part, strict=True)
            ids += b"".join(publics)
            keys.append(np.array(numbers, np.int64))
        return cls(bytes(ids), np.concatenate(keys) if keys else np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """int64[len(ids)]: the entry of each public id; -1 where there is none. An id may be any string: a damaged view
        says anything."""
        found = np.full(len(ids), -1, np.int64)
        possible, packed = _packed(ids)
        if len(possible) and len(self):
            found[possible] = self._find(_halves(packed))
        return found

    def id(self, entry: int) -> str:
        high, low = self._halves[entry].tolist()
        return f"{high:016x}{low:016x}"

    def _find(self, wanted: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        at = np.searchsorted(self._first, wanted[:, 0])
        found = np.full(len(wanted), -1, np.int64)
        open_ = np.arange(len(wanted))
        while len(open_):
            open_ = open_[at[open_] < len(self)]
            open_ = open_[self._first[at[open_]] == wanted[open_, 0]]
            same = self._halves[at[open_], 1] == wanted[open_, 1]
            found[open_[same]] = at[open_[same]]
            open_ = open_[~same]
            at[open_] += 1  # ids that begin alike
        return found


def _halves(packed: bytes) -> npt.NDArray[np.uint64]:
    """uint64[n, 2] of n ids, which sorts as they do."""
    return np.frombuffer(packed, ">u8").astype(np.uint64).reshape(-1, 2)


def _packed(ids: Sequence[str]) -> tuple[npt.NDArray[np.int64], bytes]:
    """Which of these can be public ids: 32 lower-case hex digits; and those, 16 bytes each."""
    listed = list(ids)
    packed = _bytes_of(listed)
    if packed is not None:
        return np.arange(len(listed)), packed
    possible = [(row, one) for row, id_ in enumerate(listed) if (one := _bytes_of([id_])) is not None]
    return np.array([row for row, _ in possible], np.int64), b"".join(one for _, one in possible)


def _bytes_of(ids: list[str]) -> bytes | None:
    """None where one of them is no public id."""
    digits = "".join(ids)
    if set(map(len, ids)) - {2 * _BYTES}:
        return None
    try:
        packed = bytes.fromhex(digits)
    except ValueError:
        return None
    return packed if packed.hex() == digits else None  # blanks and capitals are read too


def with_vectors(connection: Connection, keys: Sequence[int], space_id: int) -> npt.NDArray[np.int64]:
    """Those of these chunks that have a vector in a space."""
    joined = t.chunks.join(t.vectors, t.vectors.c.text_id == t.chunks.c.text_id)
    query = select(t.chunks.c.id).select_from(joined)
    query = query.where(t.vectors.c.space_id == space_id, t.vectors.c.data.is_not(None))
    found: list[int] = []
    for start in range(0, len(keys), _PART):
        batch = among(t.chunks.c.id, keys[start : start + _PART])
        found.extend(connection.execute(query.where(batch)).scalars())
    return np.array(found, np.int64)
