"""The measures of a ranking, as `trec_eval` defines them; each is 0..1, higher is better.

- nDCG@10: the sum of grade / log2(rank + 1) over the first ten, as a share of what the best order of all judged
  documents would give. Linear in the grade, as in `ndcg_cut_10`. Järvelin and Kekäläinen, "Cumulated gain-based
  evaluation of IR techniques" (2002).
- recall@100: the share of the relevant documents that are among the first hundred.
- MRR@10: 1 / rank of the first relevant document, 0 where none is among the first ten.

A document that was not judged is not relevant. Relevant is what has the lowest grade asked for, or more; nDCG takes
every grade as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

METRICS = ("ndcg@10", "recall@100", "mrr@10")

DEPTH = 100
"""Documents of a ranking that these measures read."""


def measures(ranking: Sequence[str], grades: Mapping[str, int], *, min_grade: int = 1) -> dict[str, float]:
    """Every measure of one query's ranking: document ids, best first, none twice."""
    relevant = {document for document, grade in grades.items() if grade >= min_grade}
    return {
        "ndcg@10": ndcg(ranking, grades, 10),
        "recall@100": recall(ranking, relevant, 100),
        "mrr@10": reciprocal_rank(ranking, relevant, 10),
    }


def ndcg(ranking: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """0 where nothing is relevant."""
    best = _dcg(sorted(grades.values(), reverse=True)[:k])
    return _dcg([grades.get(document, 0) for document in ranking[:k]]) / best if best else 0.0


def recall(ranking: Sequence[str], relevant: set[str], k: int) -> float:
    """0 where nothing is relevant."""
    return len(relevant.intersection(ranking[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranking: Sequence[str], relevant: set[str], k: int) -> float:
    return next((1 / rank for rank, document in enumerate(ranking[:k], 1) if document in relevant), 0.0)


def _dcg(gains: Sequence[int]) -> float:
    return sum(max(gain, 0) / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
