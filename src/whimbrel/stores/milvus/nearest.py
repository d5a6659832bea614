"""The calls of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Matches
from whimbrel.filters import Filter, matches, paths
from whimbrel.stores.metrics import Metric, measure, scores
from whimbrel.stores.milvus.backend import LOOSE, MAX_WINDOW, METADATA, VECTOR, Backend
from whimbrel.stores.milvus.rows import from_milvus, metadata_of, takes_key, to_milvus
from whimbrel.stores.milvus.where import Compiled, both, compile_filter, ids_in

_DIGITS = 6
"""Of a similarity: rows that are not in the index yet are measured otherwise, and equal ones would differ in the last
bits."""
_MAX_TIES = 4_096
_MANY = 500
"""Ids that are read and measured here; fewer go into the expression."""
_PAGE = 500


async def nearest(
    backend: Backend,
    name: str,
    vector: npt.NDArray[np.float32],
    k: int,
    where: Filter | None,
    ids: Sequence[str] | None,
) -> Matches:
    """The k nearest of the rows that pass, of the ids if given; ties by id."""
    compiled = compile_filter(where, backend.facts) if where else Compiled("", True)
    if compiled.never:
        return Matches([], np.zeros(0, np.float32))
    checks = _Checks(where, compiled, backend)
    if ids is not None and len(ids) > _MANY:
        hits = await _measured(backend, name, vector, [to_milvus(id_) for id_ in ids], checks)
        return _best(hits, k)
    among = None if ids is None else ids_in([to_milvus(id_) for id_ in ids])
    condition = both(compiled.where, among or "")
    window = k + 1  # one more tells whether the last place is tied
    hits, seen = list[tuple[float, str]](), set[str]()
    while window <= MAX_WINDOW:
        found = await backend.search(name, vector, window, condition, checks.fields)
        passing = await checks.passing(name, [(hit.id, hit.row) for hit in found])
        hits = [(hit.similarity, hit.id) for hit in found if hit.id in passing]
        seen = {hit.id for hit in found}
        if len(found) < window:
            break  # these are all, or the index did not lead to the others
        near = [round(similarity, _DIGITS) for similarity, _ in hits]
        tied = len(hits) > k and near[k - 1] == near[-1] and window < max(_MAX_TIES, 2 * k)
        if len(hits) >= k and not tied:
            return _best(hits, k)
        window = window * 4 if window == MAX_WINDOW else min(window * 4, MAX_WINDOW)
    others = [id_ for id_ in await backend.ids(name, condition) if id_ not in seen]
    return _best(hits + await _measured(backend, name, vector, others, checks), k)


class _Checks:
    """Which hits pass the filter where the condition does not say it."""

    def __init__(self, where: Filter | None, compiled: Compiled, backend: Backend) -> None:
        self._where = where
        self._exact = compiled.exact
        self._backend = backend
        self._asked = [] if where is None else [*filter(takes_key, paths(where)), METADATA]
        """The fields that say of the metadata what the filter asks for."""
        loose = [LOOSE] if where is not None and backend.facts.may_be_loose else []
        self.fields: Sequence[str] = loose if compiled.exact else self._asked

    async def passing(self, name: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> set[str]:
        if not self._exact:
            return {id_ for id_, row in rows if self.row_passes(row)}
        unsure = [id_ for id_, row in rows if row.get(LOOSE)]
        passing = {id_ for id_, _ in rows} - set(unsure)
        for start in range(0, len(unsure), _PAGE):
            found = await self._backend.get(name, unsure[start : start + _PAGE], self._asked)
            passing.update(row["id"] for row in found if self.row_passes(row))
        return passing

    def row_passes(self, row: Mapping[str, Any]) -> bool:
        return self._where is None or matches(self._where, metadata_of(row))


async def _measured(
    backend: Backend,
    name: str,
    vector: npt.NDArray[np.float32],
    ids: Sequence[str],
    checks: _Checks,
) -> list[tuple[float, str]]:
    """Those of the rows that pass, measured here."""
    hits = []
    for start in range(0, len(ids), _PAGE):
        rows = await backend.get(name, ids[start : start + _PAGE], ["*"])
        rows = [row for row in rows if checks.row_passes(row)]
        if rows:
            vectors = np.asarray([row[VECTOR] for row in rows], np.float32)
            hits += list(
                zip(measure(Metric.COSINE, vectors, vector).tolist(), (row["id"] for row in rows), strict=True)
            )
    return hits


def _best(hits: Sequence[tuple[float, str]], k: int) -> Matches:
    found = sorted((-round(similarity, _DIGITS), from_milvus(id_)) for similarity, id_ in hits)[:k]
    return Matches([id_ for _, id_ in found], scores(Metric.COSINE, np.array([-one for one, _ in found])))
