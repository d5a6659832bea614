"""Vectors in a file of ours, searched by comparing all of them: for sources that have no index.

    FOLDER/vectors.f32   float32[n, d], little-endian, of length 1
    FOLDER/ids           16 bytes a row

The files are mapped, not read: what a search holds is one block's products, and the system keeps of the rest what it
has room for, once for all processes.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.errors import DiskFull, HomeError, ViewDamaged

_BLOCK = 16_384
_ID = 16

Floats = npt.NDArray[np.float32]


class ExactIndex:
    """Compares all vectors with the query's."""

    def __init__(self, ids: npt.NDArray[np.void], vectors: Floats) -> None:
        """`ids`: void of 16 bytes, [n]; `vectors`: float32[n, d] of length 1."""
        self._ids = ids
        self._vectors = vectors
        self._order: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(cls, batches: Iterable[tuple[Sequence[str], Floats]]) -> ExactIndex:
        """In memory."""
        names, blocks = [b""], []
        for some, block in batches:
            names.append(_bytes(some))
            blocks.append(_unit(block))
        ids = np.frombuffer(b"".join(names), np.dtype((np.void, _ID)))
        return cls(ids, np.concatenate(blocks) if blocks else np.zeros((0, 0), np.float32))

    @classmethod
    def read(cls, folder: Path, dimensions: int) -> ExactIndex:
        """Of a folder that `build` has made. Raises `ViewDamaged` where the files are not what was written."""
        ids, vectors = folder / "ids", folder / "vectors.f32"
        try:
            count = ids.stat().st_size // _ID
            if vectors.stat().st_size != 4 * dimensions * count:
                raise ViewDamaged(f"The files in {folder} do not fit together.", "Remove the folder: it is made anew.")
            return cls(
                np.fromfile(ids, np.dtype((np.void, _ID))),
                np.memmap(vectors, "<f4", "r", shape=(count, dimensions))
                if count
                else np.zeros((0, dimensions), np.float32),
            )
        except OSError as error:
            raise ViewDamaged(f"{folder} cannot be read: {error.strerror}.", "Remove it: it is made anew.") from error

    def __len__(self) -> int:
        return len(self._ids)

    def nearest(self, vector: Floats, k: int, among: Sequence[str] | None = None) -> list[tuple[str, float]]:
        """(id, cosine similarity) of the k nearest, best first; ties by id."""
        length = float(np.linalg.norm(vector))
        if k <= 0 or not length:
            return []
        query = (vector / length).astype(np.float32)
        rows = self._rows(among) if among is not None else None
        count = len(self._ids) if rows is None else len(rows)
        best_rows = np.zeros(0, np.int64)
        best = np.zeros(0, np.float32)
        for start in range(0, count, _BLOCK):
            some = np.arange(start, min(start + _BLOCK, count)) if rows is None else rows[start : start + _BLOCK]
            block = self._vectors[start : start + _BLOCK] if rows is None else self._vectors[some]
            cosines = block @ query
            kept = np.argpartition(-cosines, k - 1)[:k] if len(cosines) > k else np.arange(len(cosines))
            best = np.concatenate([best, cosines[kept]])
            best_rows = np.concatenate([best_rows, some[kept]])
            if len(best) > k:
                kept = np.argpartition(-best, k - 1)[:k]
                best, best_rows = best[kept], best_rows[kept]
        found = [(self._ids[row].tobytes().hex(), float(cosine)) for row, cosine in zip(best_rows, best, strict=True)]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))

    def _rows(self, among: Sequence[str]) -> npt.NDArray[np.int64]:
        """The numbers of the rows of those ids that are there, ascending."""
        if self._order is None:
            self._order = np.argsort(self._ids.view(f"S{_ID}"), kind="stable")
        wanted = np.frombuffer(_bytes(among), f"S{_ID}")
        sorted_ids = self._ids.view(f"S{_ID}")[self._order]
        at = np.minimum(np.searchsorted(sorted_ids, wanted), max(len(sorted_ids) - 1, 0))
        if not len(sorted_ids):
            return np.zeros(0, np.int64)
        there = sorted_ids[at] == wanted
        return np.unique(self._order[at[there]])


def _bytes(ids: Iterable[str]) -> bytes:
    return b"".join(bytes.fromhex(one) for one in ids)


def _unit(block: Floats) -> Floats:
    """Of length 1, little-endian."""
    lengths = np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-30)
    return np.ascontiguousarray(block / lengths, "<f4")


def build(folder: Path, batches: Iterable[tuple[Sequence[str], Floats]]) -> None:
    """Write the files: there whole or not at all. Where others have made the folder meanwhile, theirs stays.

    Raises `DiskFull`, `HomeError`.
    """
    made = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    try:
        made.mkdir(parents=True, mode=0o700)
        with (made / "ids").open("wb") as ids, (made / "vectors.f32").open("wb") as vectors:
            for names, block in batches:
                ids.write(_bytes(names))
                vectors.write(_unit(block).tobytes())
            for file in (ids, vectors):
                file.flush()
                os.fsync(file.fileno())
        made.rename(folder)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"No space left to write {folder}.", "Free some space; the source is as it was.") from error
        raise HomeError(f"{folder} cannot be written: {error.strerror}.", "Check owner and permissions.") from error
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
