"""From what a metric measures to a score of 0..1, and back.

What a database reports is turned into the *measure* of its metric by the adapter: cosine similarity `c`, dot product
`p`, Euclidean distance `e` (not squared).

| metric | vectors of length 1 | others |
|---|---|---|
| cosine | `max(0, c)` | `max(0, c)` |
| dot | `max(0, p)` | `p / (1 + p)` above 0, else 0 |
| l2 | `max(0, 1 - e² / 2)` | `1 / (1 + e)` |

Of vectors of length 1 all three are the cosine: the same documents have the same scores, and a threshold means the
same, whatever metric a database was made with. No score is above 1, where rounding would take it there.
"""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


class Metric(StrEnum):
    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"


def scores(metric: Metric, measured: Floats, *, normalised: bool = True) -> npt.NDArray[np.float32]:
    """float32[n] in 0..1 of the metric's measures, float[n]. `normalised`: all vectors have length 1."""
    measured = np.asarray(measured, np.float64)
    if metric is Metric.L2:
        found = 1.0 - measured**2 / 2.0 if normalised else 1.0 / (1.0 + measured)
    elif metric is Metric.DOT and not normalised:
        above = np.maximum(measured, 0.0)
        found = above / (1.0 + above)
    else:
        found = measured
    clipped: npt.NDArray[np.float32] = np.clip(found, 0.0, 1.0).astype(np.float32)
    return clipped


def measure_of(metric: Metric, score: float, *, normalised: bool = True) -> float:
    """The measure at which a score begins: rows score at least `score` whose c or p is at least this, or whose e is at
    most this. A score of 0 bounds nothing: -inf, or inf for l2; a score of 1 nothing but l2 and vectors of length 1."""
    if score <= 0.0:
        return math.inf if metric is Metric.L2 else -math.inf
    if metric is Metric.L2:
        return math.sqrt(2.0 * (1.0 - score)) if normalised else 1.0 / score - 1.0
    if metric is Metric.DOT and not normalised:
        return score / (1.0 - score) if score < 1.0 else math.inf
    return score


def measure(metric: Metric, vectors: Floats, query: Floats) -> npt.NDArray[np.float64]:
    """float64[n]: what the metric measures between each of `vectors`, float[n, d], and `query`, float[d], exactly."""
    vectors, query = np.asarray(vectors, np.float64), np.asarray(query, np.float64)
    if metric is Metric.L2:
        distances: npt.NDArray[np.float64] = np.linalg.norm(vectors - query, axis=1)
        return distances
    products: npt.NDArray[np.float64] = vectors @ query
    if metric is Metric.DOT:
        return products
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    cosines: npt.NDArray[np.float64] = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return cosines
