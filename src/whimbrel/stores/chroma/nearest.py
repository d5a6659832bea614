"""The calls of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Matches
from whimbrel.filters import Filter, matches
from whimbrel.stores.chroma.backend import Backend, Collection, Nearest
from whimbrel.stores.chroma.metadata import Shapes, decode
from whimbrel.stores.chroma.rows import PAGE_ROWS, from_chroma, get, pages, present
from whimbrel.stores.chroma.where import Compiled, compile_filter
from whimbrel.stores.metrics import Metric, measure, scores

_DIGITS = 6
"""Of a distance, as exact as the vectors that Chroma gives back: rows that are not in its graph yet, and those that it
does not lead to, are measured otherwise, and equal ones would differ in the last bits."""
_MAX_TIES = 4_096


async def nearest(
    backend: Backend,
    collection: Collection,
    vector: npt.NDArray[np.float32],
    k: int,
    where: Filter | None,
    shapes: Shapes,
    among: Sequence[str] | None,
) -> Matches:
    """The k nearest of the rows that pass, of the ids `among` if given; ties by id. Raises `UnknownId`."""
    compiled = compile_filter(where, shapes) if where else Compiled(True, True)
    if compiled.where is False:
        return Matches([], np.zeros(0, np.float32))
    condition = None if isinstance(compiled.where, bool) else compiled.where
    unchecked = None if compiled.exact else where
    if among is not None:  # Chroma fails on an id that it does not have
        among = await present(backend, collection, among)
        if not among:
            return Matches([], np.zeros(0, np.float32))
    window = k + 1  # one more tells whether the last place is tied
    while True:
        checked = unchecked is not None
        found = await backend.query(collection, vector, window, ids=among, where=condition, metadata=checked)
        hits = _passing(found, unchecked)
        exhausted = len(found.ids) < window
        tied = len(hits) > k and hits[k - 1][0] == hits[-1][0] and window < max(_MAX_TIES, 2 * k)
        if exhausted or (len(hits) >= k and not tied):
            break
        window *= 4
    if exhausted:
        hits += await _overlooked(backend, collection, vector, unchecked, condition, among, set(found.ids))
    best = sorted((distance, from_chroma(id_)) for distance, id_ in hits)[:k]
    cosines = 1.0 - np.array([distance for distance, _ in best])
    return Matches([id_ for _, id_ in best], scores(Metric.COSINE, cosines))


async def _overlooked(
    backend: Backend,
    collection: Collection,
    vector: npt.NDArray[np.float32],
    unchecked: Filter | None,
    condition: Mapping[str, Any] | None,
    among: Sequence[str] | None,
    found: set[str],
) -> list[tuple[float, str]]:
    """Rows that pass and that Chroma's graph did not lead to: after many deletions, parts of it hang loose."""
    every = await get(backend, collection, ids=among, where=condition)
    hits: list[tuple[float, str]] = []
    for some in pages([id_ for id_ in every.ids if id_ not in found], PAGE_ROWS):
        rows = await get(backend, collection, ids=some, include=["embeddings", "metadatas"])
        if rows.ids:
            distances = (1.0 - measure(Metric.COSINE, rows.vectors, vector)).tolist()
            hits += _passing(Nearest(rows.ids, distances, rows.metadata), unchecked)
    return hits


def _passing(found: Nearest, unchecked: Filter | None) -> list[tuple[float, str]]:
    hits = list(zip((round(distance, _DIGITS) for distance in found.distances), found.ids, strict=True))
    if unchecked is None:
        return hits
    return [hit for hit, one in zip(hits, found.metadata, strict=True) if matches(unchecked, decode(one))]
