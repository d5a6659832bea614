"""The calls of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.domain import Matches
from whimbrel.filters import Filter, matches, paths
from whimbrel.stores.metrics import Metric, scores
from whimbrel.stores.qdrant.backend import Backend
from whimbrel.stores.qdrant.payload import ID, ODD, Shapes, decode
from whimbrel.stores.qdrant.rules import to_point
from whimbrel.stores.qdrant.where import compile_filter
from whimbrel.stores.records import DENSE

_DIGITS = 6
"""Of a score: equal vectors differ in the last bits, by where in the index they are measured."""
_MAX_TIES = 4_096
_NONE = Matches([], np.zeros(0, np.float32))


async def nearest(
    backend: Backend,
    name: str,
    vector: npt.NDArray[np.float32],
    k: int,
    where: Filter | None,
    shapes: Shapes,
    among: Sequence[str] | None,
) -> Matches:
    """The k nearest of the rows that pass, of the ids `among` if given; ties by id."""
    condition = compile_filter(where, shapes) if where is not None else True
    if condition is False:
        return _NONE
    odd = [path for path in paths(where) if shapes.is_odd(path)] if where is not None else []
    within = _within(None if condition is True else condition, among)
    window = k + 1  # one more tells whether the last place is tied
    exact = False
    while True:
        found = await _query(backend, name, vector, window, within, exact=exact, odd=bool(odd))
        hits = await _passing(backend, name, found, where if odd else None)
        exhausted = len(found) < window
        if exhausted and not exact and not backend.single_process:
            exact = True  # the graph may have led to fewer than pass
            continue
        tied = len(hits) > k and hits[k - 1][0] == hits[-1][0] and window < max(_MAX_TIES, 2 * k)
        if exhausted or (len(hits) >= k and not tied):
            break
        window *= 4
    best = sorted((-score, id_) for score, id_ in hits)[:k]
    return Matches([id_ for _, id_ in best], scores(Metric.COSINE, np.array([-score for score, _ in best])))


def _within(condition: Any, among: Sequence[str] | None) -> Any:
    if among is None:
        return condition
    from qdrant_client import models

    only = models.HasIdCondition(has_id=[to_point(id_) for id_ in among])
    return models.Filter(must=[only] if condition is None else [only, condition])


async def _query(
    backend: Backend,
    name: str,
    vector: npt.NDArray[np.float32],
    limit: int,
    within: Any,
    *,
    exact: bool,
    odd: bool,
) -> list[Any]:
    from qdrant_client import models

    params = None if backend.single_process else models.SearchParams(exact=True) if exact else None
    answer = await backend.do(
        lambda client: client.query_points(
            name,
            query=vector.tolist(),
            using=DENSE,
            query_filter=within,
            limit=limit,
            with_payload=[ID, ODD] if odd else [ID],
            search_params=params,
        )
    )
    return list(answer.points)


async def _passing(
    backend: Backend, name: str, found: Sequence[Any], unchecked: Filter | None
) -> list[tuple[float, str]]:
    """(score, id). Rows that have odd paths are checked against their metadata."""
    failing: set[str] = set()
    doubtful = [point.id for point in found if unchecked is not None and (point.payload or {}).get(ODD)]
    if doubtful:
        assert unchecked is not None
        rows = await backend.do(lambda client: client.retrieve(name, ids=doubtful, with_payload=True))
        failing = set(doubtful) - {row.id for row in rows if matches(unchecked, decode(row.payload or {}))}
    return [(round(point.score, _DIGITS), point.payload[ID]) for point in found if point.id not in failing]
