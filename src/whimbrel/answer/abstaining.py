"""Whether the hits answer the question at all: what is measured, and the rule that judges by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from whimbrel.answer.asked import Asked
from whimbrel.answer.relevance import Judged, judged
from whimbrel.answer.vectors import Embed
from whimbrel.domain import Hit

ABSTAIN = 0.5
"""The least score that answers. Weights are shifted so that this is the default trade-off; `docs/citations.md`."""


@dataclass(frozen=True, slots=True)
class Answerability:
    score: float
    """0..1: how likely the hits answer the question."""
    answers: bool
    """The score reaches the threshold; always where the embedder is out, because words alone cannot tell."""
    degraded: Sequence[str] = ()


async def answerable(
    question: str,
    hits: Sequence[Hit],
    embed: Embed,
    embed_query: Embed | None = None,
    *,
    language: str = "en",
    threshold: float = ABSTAIN,
) -> Answerability:
    """Whether to answer `question` from `hits` (best first). `threshold` 0 always answers, if there is a hit.

    `embed_query` embeds the question where questions are embedded in another way. Cosines are rescaled by what
    "unrelated" means to the embedder, so that the rule holds for other embedders than the built-in one.
    """
    found = await judged(question, hits, embed, embed_query, language=language)
    return answerability(question, hits, found, language=language, threshold=threshold)


def answerability(
    question: str, hits: Sequence[Hit], found: Judged, *, language: str = "en", threshold: float = ABSTAIN
) -> Answerability:
    """As `answerable`, for sentences that have been judged."""
    if not found.candidates:
        return Answerability(0.0, answers=False, degraded=found.degraded)
    if found.vectors is None:
        return Answerability(max(found.relevance), answers=True, degraded=found.degraded)
    score = _score(signs(question, hits, found, language=language))
    return Answerability(score, answers=score >= threshold, degraded=found.degraded)


# --- signs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signs:
    """What tells an answerable question. Cosines are rescaled: 0 is unrelated, whatever the embedder."""

    sentence: float
    """Highest cosine of the question and a sentence, with its title and heading."""
    passage: float
    """Highest cosine of the question and one of the best hits, as a whole."""
    words: float
    """0..1: share of the question's terms in the best sentence, a rarer term counting more."""
    together: float
    """1 where one sentence has all of the question's terms, of which there are several; else 0."""
    covered: float
    """0..1: share of the question's terms in the hit that has most of them."""
    absent: float
    """0..1: share of the question's terms that no hit has."""


def signs(question: str, hits: Sequence[Hit], found: Judged, *, language: str = "en") -> Signs:
    """Of hits with at least one judged sentence."""
    asked = Asked.of(question, language)
    in_hits = [asked.within(f"{hit.title}\n{hit.text}") for hit in hits]
    size = max(len(asked.terms), 1)
    words = max(candidate.words for candidate in found.candidates)
    return Signs(
        sentence=max(found.near),
        passage=max(found.hits_near, default=max(found.near)),
        words=words,
        together=float(words > 0.99 and len(asked.terms) > 1),
        covered=max((len(there) for there in in_hits), default=0) / size,
        absent=1.0 - len(set[str]().union(*in_hits)) / size,
    )


# --- the rule --------------------------------------------------------------------------------------------------------

_BIAS = -5.15
_WEIGHTS = Signs(sentence=2.8, passage=5.0, words=1.5, together=0.8, covered=0.6, absent=-0.2)
"""A logistic rule, fitted on clapnq_dev and anthropic_docs, rounded. Tried, and no help: the hit's own score, how far
the best hit is ahead (long documents spoil it), whether the sentences hold the kind of thing that is asked for (a name,
a number), the question's length."""


def _score(found: Signs) -> float:
    total = _BIAS + sum(weight * sign for weight, sign in zip(astuple(_WEIGHTS), astuple(found), strict=True))
    return 1 / (1 + math.exp(-total))
