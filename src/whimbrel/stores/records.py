"""Rows as columns, which is how they move between the catalog, the stores and each other.

A column is a sequence: a list, or what keeps an Arrow array as it is (`whimbrel.stores.arrays`), so that rows which a
database gives as arrays and another takes as arrays never become objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Metadata
from whimbrel.errors import BadInput, SpaceMismatch
from whimbrel.stores.arrays import join_columns, take_rows

Vectors = npt.NDArray[np.float32]
"""float32[n, dimensions]"""

DENSE = "dense"
"""Name of the one dense vector that a view holds."""


@dataclass(frozen=True, slots=True)
class Records:
    """Rows as columns; all of one length."""

    ids: Sequence[str]
    """A list or `Texts`, and so are `texts`."""
    vectors: Mapping[str, Vectors]
    """Named dense vectors, each float32[n, d]."""
    texts: Sequence[str]
    metadata: Sequence[Metadata]
    """A list or `CodedMetadata`."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def none(cls, dimensions: int) -> Records:
        """No rows."""
        return cls([], {DENSE: np.zeros((0, dimensions), np.float32)}, [], [])

    @classmethod
    def joined(cls, parts: Sequence[Records], dimensions: int) -> Records:
        """The rows of all parts, in their order."""
        if not parts:
            return cls.none(dimensions)
        if len(parts) == 1:
            return parts[0]
        return cls(
            join_columns([part.ids for part in parts]),
            {name: np.concatenate([part.vectors[name] for part in parts]) for name in parts[0].vectors},
            join_columns([part.texts for part in parts]),
            join_columns([part.metadata for part in parts]),
        )

    def between(self, start: int, stop: int) -> Records:
        """Rows `[start, stop)`; no vector is copied, and no Arrow array."""
        return Records(
            self.ids[start:stop],
            {name: vectors[start:stop] for name, vectors in self.vectors.items()},
            self.texts[start:stop],
            self.metadata[start:stop],
        )

    def taken(self, rows: Sequence[int]) -> Records:
        """The rows of these numbers, in this order."""
        return Records(
            take_rows(self.ids, rows),
            {name: vectors[list(rows)] for name, vectors in self.vectors.items()},
            take_rows(self.texts, rows),
            take_rows(self.metadata, rows),
        )


def writable(records: Records, dimensions: int) -> Records:
    """The rows as every store writes them: finite float32 vectors of its dimensions, and each id once, as it comes
    last: most databases write both rows of an id that comes twice in a batch, or refuse.

    Raises `SpaceMismatch` and `BadInput`; nothing has been written then.
    """
    vectors = np.ascontiguousarray(records.vectors[DENSE], np.float32)
    if vectors.shape != (len(records), dimensions):
        raise SpaceMismatch(
            f"{len(records)} rows of {dimensions} dimensions were due, vectors of {vectors.shape} came. "
            "Nothing was written."
        )
    if not np.isfinite(vectors).all():
        raise BadInput("A vector has a component that is not a finite number. Nothing was written.")
    whole = Records(records.ids, {DENSE: vectors}, records.texts, records.metadata)
    ids = list(records.ids)
    if len(set(ids)) == len(ids):
        return whole
    return whole.taken(list({id_: row for row, id_ in enumerate(ids)}.values()))


def checked_query(vector: npt.NDArray[np.float32], dimensions: int) -> npt.NDArray[np.float32]:
    """The vector of a query, float32[d]. Raises `SpaceMismatch` for another shape, `BadInput` for NaN or infinity."""
    if vector.shape != (dimensions,):
        raise SpaceMismatch(f"The query's vector has the shape {vector.shape}, the view {dimensions} dimensions.")
    if not np.isfinite(vector).all():
        raise BadInput("The query's vector has a component that is not a finite number.")
    return np.ascontiguousarray(vector, np.float32)
