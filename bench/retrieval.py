"""How well is found: nDCG@10, recall@100 and MRR@10 of each mode, on the collections that WHIMBREL_TEST_DATA holds.

Beside the lexicon stands bm25s, on the same titles and texts: with English stop words, the stemmer of the lexicon
(bm25s brings none), and the better of its two usual settings. Beside hybrid search stands txtai's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.figures import Figure, note
from whimbrel.evaluation import METRICS, Evaluation, Judged, evaluate, read_judged
from whimbrel.judging.compare import difference
from whimbrel.judging.metrics import DEPTH, measures

COLLECTIONS = {
    "cranfield": 1,
    "cacm": 1,
    "nfcorpus": 1,
    "anthropic_docs": 1,
    "nq_qed_dev": 1,
    "clapnq_dev": 1,
    "msmarco_dl19_dl20_pool": 2,
    "xquad_cross_to_en": 1,
}
"""With the lowest grade that counts as relevant."""

OF_OTHER_LANGUAGES = ("xquad_cross_to_en",)
"""Asked in twelve: a stemmer and stop words of English, which bm25s is given, are no match for it."""

QUICK = ("anthropic_docs", "clapnq_dev")

TXTAI = {"cranfield": 0.424, "cacm": 0.510, "nfcorpus": 0.347}
"""nDCG@10 of txtai's hybrid search with the same model's weights: measured once, elsewhere; it is not run here."""

WORSE_BY_CHANCE = 0.005
"""How far hybrid search may fall below its better half."""

BM25S = ({"k1": 1.5, "b": 0.75}, {"k1": 1.2, "b": 0.75})


def run(folder: Path, *, quick: bool) -> list[Figure]:
    named = os.environ.get("WHIMBREL_TEST_DATA")
    if not named:
        note("retrieval: WHIMBREL_TEST_DATA names no folder of judged collections; nothing was measured")
        return []
    places = {name: Path(named) / "ir" / name for name in (QUICK if quick else COLLECTIONS)}
    for name in [name for name, place in places.items() if not place.is_dir()]:
        note(f"retrieval: there is no {places.pop(name)}")
    figures: list[Figure] = []
    rows = []
    for name, place in places.items():
        grade = COLLECTIONS[name]
        found = evaluate(place, home=folder / f"retrieval-{name}", min_grade=grade)
        other = None if name in OF_OTHER_LANGUAGES else _bm25s(read_judged(place, min_grade=grade), grade)
        figures += _figures(name, found, other)
        rows += _rows(name, found, other)
    note("\n".join(["| collection | mode | nDCG@10 | recall@100 | MRR@10 |", "|---|---|---|---|---|", *rows]))
    return figures


def _figures(name: str, found: Evaluation, other: dict[str, dict[str, float]] | None) -> list[Figure]:
    means = {mode: result.mean("ndcg@10") for mode, result in found.modes.items()}
    figures = []
    for half in ("dense", "lexical"):
        target = f">= {(means[half] - WORSE_BY_CHANCE) / means[half]:.4f}"
        figures.append(
            Figure(f"{name}: nDCG@10, hybrid against {half}", means["hybrid"], "", means[half], target).show()
        )
        values = [found.modes[mode].values["ndcg@10"] for mode in (half, "hybrid")]
        tested = difference(*([of[query] for query in values[0]] for of in values))
        note(f"{tested.difference:+.4f}, 95 % interval {tested.low:+.4f} to {tested.high:+.4f}, p {tested.p:.4f}")
    if other is None:
        return figures
    bm25s = _mean(other["ndcg@10"])
    figures.append(Figure(f"{name}: nDCG@10, lexicon against bm25s", means["lexical"], "", bm25s, ">= 1").show())
    if name in TXTAI:
        txtai = TXTAI[name]
        figures.append(Figure(f"{name}: nDCG@10, hybrid against txtai", means["hybrid"], "", txtai, ">= 1").show())
    return figures


def _rows(name: str, found: Evaluation, other: dict[str, dict[str, float]] | None) -> Iterator[str]:
    for mode, result in found.modes.items():
        yield f"| {name} | {mode} | " + " | ".join(f"{result.mean(metric):.3f}" for metric in METRICS) + " |"
    if other is not None:
        yield f"| {name} | (bm25s) | " + " | ".join(f"{_mean(other[metric]):.3f}" for metric in METRICS) + " |"


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def _bm25s(judged: Judged, min_grade: int) -> dict[str, dict[str, float]]:
    """Metric -> query -> value, of the setting that is better by nDCG@10."""
    import bm25s

    texts = [f"{document.title}\n{document.text}" for document in judged.documents]
    options = {"stopwords": "en", "stemmer": _stems, "show_progress": False}
    corpus, asked = bm25s.tokenize(texts, **options), bm25s.tokenize(list(judged.queries.values()), **options)
    tried = []
    for setting in BM25S:
        index = bm25s.BM25(method="lucene", **setting)
        index.index(corpus, show_progress=False)
        found, scores = index.retrieve(asked, k=min(DEPTH, len(texts)), show_progress=False)
        values: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
        for query, places, of in zip(judged.queries, found, scores, strict=True):
            ranking = [judged.documents[place].id for place, score in zip(places, of, strict=True) if score > 0]
            for metric, value in measures(ranking, judged.grades[query], min_grade=min_grade).items():
                values[metric][query] = value
        tried.append(values)
    return max(tried, key=lambda values: _mean(values["ndcg@10"]))


def _stems(words: Sequence[str]) -> list[str]:
    """Snowball's for English, from tantivy: each word by itself."""
    from tantivy import Filter, TextAnalyzerBuilder, Tokenizer

    stemmer = TextAnalyzerBuilder(Tokenizer.raw()).filter(Filter.stemmer("english")).build()
    return [stemmer.analyze(word)[0] if word else word for word in words]
