"""The query for a bag of terms, its upper bound, and the best rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tantivy import Occur, Query, Schema, Searcher

from whimbrel.domain import Matches
from whimbrel.lexicon.layout import POSITION, ROW

K1 = 1.2
"""tantivy's constant; its b is 0.75."""

FIELD_WEIGHTS = {"text": 1.0, "title": 0.1}
"""A title is read twice before the text, and once more as a field of its own. nDCG@10 of whole documents, without
titles / once before the text / so: Cranfield .370 .387 .393, CACM .391 .473 .488, NFCorpus .316 .322 .326,
NQ .841 .917 .933, an API's documentation .701 .713 .735. With the stop words of `whimbrel.lexicon.english`, and a title
as Markdown's heading in the text too, a weight of 0.0 / 0.1 / 0.2 / 0.4: Cranfield .394 .399 .400 .401, CACM .511 .506
.495 .496, the API's documentation .747 .755 .764 .774, ClapNQ .957 .959 .959 .958."""

MOST_TERMS = 1_024
"""Different terms of one query that are searched for, those that weigh most; all count in the upper bound."""


@dataclass(frozen=True, slots=True)
class Bm25:
    query: Query | None
    """None where no row has any of the terms."""
    bound: float
    """More than the score of any row."""


def bm25(searcher: Searcher, schema: Schema, terms: Mapping[str, int]) -> Bm25:
    """The query for `terms` with their number of occurrences."""
    total = searcher.doc_freq("kind", ROW) + searcher.doc_freq("kind", POSITION)
    bound = 0.0
    known: list[tuple[float, Query]] = []
    for term, times in terms.items():
        for field, weight in FIELD_WEIGHTS.items():
            frequency = searcher.doc_freq(field, term)
            most = weight * times * _idf(frequency, total) * (K1 + 1)
            bound += most
            if frequency:
                found = Query.term_query(schema, field, term, "freq")
                known.append((most, Query.boost_query(found, weight * times)))
    known.sort(key=lambda entry: -entry[0])
    query = Query.boolean_query([(Occur.Should, found) for _, found in known[:MOST_TERMS]]) if known else None
    return Bm25(query, bound)


def best(searcher: Searcher, query: Query, k: int, bound: float) -> Matches:
    """The k best rows; ties by id, also where the last place is tied."""
    limit = k + 16
    while True:
        hits = searcher.search(query, limit, count=False).hits
        shares = [_share(score, bound) for score, _ in hits]
        if len(hits) < limit or shares[-1] < shares[k - 1]:
            break
        limit *= 4
    lowest = shares[k - 1] if len(shares) >= k else 0.0
    rows = [(-share, searcher.doc(at)["id"][0]) for share, (_, at) in zip(shares, hits, strict=True) if share >= lowest]
    rows.sort()
    return Matches([row_id for _, row_id in rows[:k]], np.array([-share for share, _ in rows[:k]], dtype=np.float32))


def no_matches() -> Matches:
    return Matches([], np.zeros(0, dtype=np.float32))


def _idf(frequency: int, total: int) -> float:
    return math.log(1 + (total - frequency + 0.5) / (frequency + 0.5))


def _share(score: float, bound: float) -> float:
    # Six decimals: equal rows in two segments differ in the last bits, since their terms are added in another order.
    return min(round(score / bound, 6), 1.0)
