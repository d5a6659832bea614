"""One score per mode, 0..1, comparable between queries.

| mode | score |
|---|---|
| dense | `max(0, c)`: c is the cosine between query and chunk |
| lexical | BM25 as a share of its upper bound: what the query's terms at full weight would give |
| hybrid | `w x dense + (1 - w) x min(1, g x lexical)`; a half that did not find the chunk counts 0 |

`g = (n / 5) ** 0.75` for a query of n > 5 words that are searched for, else 1. The more words a question has, the
smaller the share of them that any passage holds: without g, long questions would be answered by meaning alone.
`docs/decisions/0007` has the evidence.

`w` is 0.5 for a query whose language the model's vocabulary has words for, and falls to 0.1 for one that comes to it in
single letters: its vector is noise then, and what words it shares with a passage are names and numbers. See
`docs/decisions/0013`.

Of several queries (`search.queries`) the best of a chunk's scores counts. Nothing in them depends on the other hits.
Ties break by chunk id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from whimbrel.domain import Matches, Mode

WEIGHT_DENSE = 0.5

WEIGHT_DENSE_UNREAD = 0.1
"""Of a query that the model has no words for."""

FEW_WORDS = 5
"""A query of so many words, or fewer, is weighed as it is."""

GROWTH = 0.75
"""The exponent of the gain for those of more."""


class Candidate(NamedTuple):
    chunk_id: str
    score: float


def fuse(
    mode: Mode, dense: Matches | None, lexical: Matches | None, words: int = 0, read: float = 1.0
) -> list[Candidate]:
    """Candidates, best first. A view that did not answer is None; in hybrid mode the other half then stands alone.

    `words`: how many the lexicon has searched for, repeats counted. `read`: 0..1, how far the embedder's vocabulary has
    words for the query.
    """
    if mode is Mode.DENSE or (mode is Mode.HYBRID and lexical is None):
        return _ranked(_scores(dense))
    if mode is Mode.LEXICAL or dense is None:
        return _ranked(_scores(lexical))
    gain = (max(words, FEW_WORDS) / FEW_WORDS) ** GROWTH
    weight = WEIGHT_DENSE_UNREAD + (WEIGHT_DENSE - WEIGHT_DENSE_UNREAD) * read
    scores: dict[str, float] = {}
    for chunk_id, score in _scores(dense):
        scores[chunk_id] = weight * score
    for chunk_id, score in _scores(lexical):
        scores[chunk_id] = scores.get(chunk_id, 0.0) + (1 - weight) * min(1.0, gain * score)
    return _ranked(list(scores.items()))


def merge(rankings: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """Of several queries: each chunk with the best of its scores."""
    best: dict[str, float] = {}
    for ranking in rankings:
        for chunk_id, score in ranking:
            best[chunk_id] = max(score, best.get(chunk_id, 0.0))
    return _ranked(list(best.items()))


def _scores(matches: Matches | None) -> list[tuple[str, float]]:
    if matches is None:
        return []
    return list(zip(matches.ids, matches.scores.tolist(), strict=True))


def _ranked(scores: Sequence[tuple[str, float]]) -> list[Candidate]:
    ordered = sorted(scores, key=lambda pair: (-pair[1], pair[0]))
    return [Candidate(chunk_id, min(max(score, 0.0), 1.0)) for chunk_id, score in ordered]
