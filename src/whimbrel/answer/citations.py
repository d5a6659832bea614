"""Whether a passage supports a claim: what is measured, and the rule that judges by it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from whimbrel.answer.names import missing_names, names, renumbered_names
from whimbrel.answer.numbers import missing_numbers
from whimbrel.answer.polarity import polarity
from whimbrel.answer.sentences import Sentence, plain, sentences
from whimbrel.answer.words import in_order, terms
from whimbrel.domain import Hit

Support = Literal["yes", "partly", "no"]

YES = 0.5
PARTLY = 0.2
"""Least scores."""

MOST_TOGETHER = 4
"""Sentences of a passage that stand for a claim together."""

WORTH_A_SENTENCE = 0.08
"""A neighbour is taken along where it has at least this share more of the claim's terms."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Of a logistic rule: the score is 1 / (1 + exp(-(bias + sum of weight * measure)))."""

    bias: float
    covered: float
    pairs: float
    names: float
    cosine: float = 0.0


WITH_VECTORS = Weights(bias=-3.3, covered=3.8, pairs=1.6, names=-2.4, cosine=2.9)
WORDS_ONLY = Weights(bias=-2.2, covered=4.7, pairs=2.2, names=-2.7)
"""Fitted on clapnq_dev and nq_qed_dev, each weighing the same; other collections give nearly the same weights."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A claim beside the part of a passage that comes nearest to it."""

    start: int
    """In the passage's text; `[start, end)` are whole sentences."""
    end: int
    covered: float
    """0..1: share of the claim's content terms in that part, or in the passage's title and the heading above it."""
    pairs: float
    """0..1: share of the claim's pairs of neighbouring content terms that are neighbours there too."""
    names: float
    """0..1: share of the claim's names that are neither in the passage nor in its title."""
    cosine: float | None
    """Of the claim and the nearest sentence, rescaled so that unrelated texts have 0; None without vectors."""
    faults: Sequence[str] = ()
    """What makes it "no" whatever the score: a number that is not there, a negation or an opposite on one side."""
    doubts: Sequence[str] = ()
    """What makes it "partly" at best."""
    lacking: Sequence[str] = ()
    """What else it lacks, in words."""


@dataclass(frozen=True, slots=True)
class Judgement:
    supported: Support
    score: float
    """0..1; under `PARTLY` where a fault decides."""
    reason: str
    """Why it is not "yes"; empty where it is."""


def judged(measured: Measured) -> Judgement:
    """The rule: a fault is "no"; else by the score, "yes" from `YES` unless in doubt, "partly" from `PARTLY`."""
    by = WORDS_ONLY if measured.cosine is None else WITH_VECTORS
    total = by.bias + by.covered * measured.covered + by.pairs * measured.pairs + by.names * measured.names
    score = 1 / (1 + math.exp(-(total + by.cosine * (measured.cosine or 0.0))))
    if measured.faults:
        return Judgement("no", round(min(score, PARTLY) / 2, 3), "; ".join(measured.faults))
    supported: Support = "yes" if score >= YES else "partly" if score >= PARTLY else "no"
    if supported == "yes" and measured.doubts:
        return Judgement("partly", round(score, 3), "; ".join(measured.doubts))
    lacking = "" if supported == "yes" else "; ".join(measured.lacking) or "it says something else"
    return Judgement(supported, round(score, 3), lacking)


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage, read into sentences once for all claims that cite it."""

    text: str
    title: str
    sentences: Sequence[Sentence]
    said: Sequence[str]
    """Each sentence as it reads, without markup."""

    @classmethod
    def of(cls, text: str, title: str = "") -> Passage:
        found = sentences(text)
        return cls(text, plain(title), found, [plain(text[s.start : s.end]) for s in found])

    @classmethod
    def of_hit(cls, hit: Hit) -> Passage:
        return cls.of(hit.text, hit.title)


def measure(claim: str, passage: Passage, cosines: Sequence[float] | None, *, language: str = "en") -> Measured:
    """`claim`, as it reads, beside `passage`; `cosines` are those of the claim and each sentence of the passage."""
    wanted = content_terms(claim, language)
    if not passage.sentences:
        return Measured(
            0, len(passage.text), 0.0, 0.0, 0.0, None if cosines is None else 0.0, (), ("it has no sentence",)
        )
    first, last, nearest = _window(wanted, passage, cosines, language)
    part = passage.said[first : last + 1]
    heading = passage.sentences[first].heading
    source = " ".join([*part, passage.title, heading])
    whole = "\n".join([*passage.said, passage.title, *dict.fromkeys(s.heading for s in passage.sentences)])
    there = content_terms(source, language)
    covered = len(wanted & there) / len(wanted) if wanted else 1.0
    absent = missing_names(claim, whole, language=language)
    numbers = missing_numbers(claim, [*part, passage.title, heading], [*passage.said, passage.title], language=language)
    polar = polarity(claim, passage.said[nearest], " ".join(part), language=language)
    renumbered = [f'"{name}" is there with another number' for name in renumbered_names(absent, whole)]
    lacking = [f'"{name}" is not in it' for name in absent[:3]]
    return Measured(
        start=passage.sentences[first].start,
        end=passage.sentences[last].end,
        covered=covered,
        pairs=_pairs(claim, source, language),
        names=len(absent) / max(len(names(claim, language=language)), 1),
        cosine=None if cosines is None else max(cosines[first : last + 1]),
        faults=[*numbers.faults, *renumbered, *([polar.fault] if polar.fault else [])],
        doubts=[*numbers.doubts, *([polar.doubt] if polar.doubt else []), *_strange(claim, whole, language)],
        lacking=[*lacking, *(["little of it is in the passage"] if covered < 0.5 else [])],
    )


A_THIRD = 1 / 3
_CLAUSE = re.compile(r"[,;:—–]\s|\s(?:and|but|while|whereas|which|und|aber|et|mais|y|pero)\s", re.IGNORECASE)


def _strange(claim: str, whole: str, language: str) -> list[str]:
    """A doubt where a third of the claim is in clauses of which the passage has no word."""
    there = content_terms(whole, language)
    clauses = [content_terms(clause, language) for clause in _CLAUSE.split(claim) if len(clause.split()) > 2]
    strange = [wanted for wanted in clauses if len(wanted) > 1 and not wanted & there]
    share = sum(map(len, strange)) / max(len(content_terms(claim, language)), 1)
    return ["a part of it is not in the passage"] if len(clauses) > 1 and share >= A_THIRD else []


@lru_cache(maxsize=4096)
def content_terms(text: str, language: str = "en") -> frozenset[str]:
    """Terms but stop words and numbers, which have a test of their own."""
    return frozenset(term for term in terms(text, language) if not term[0].isdecimal())


def _window(
    wanted: frozenset[str], passage: Passage, cosines: Sequence[float] | None, language: str
) -> tuple[int, int, int]:
    """(first, last, nearest) sentence of the part that says most of what is wanted, in few sentences."""
    having = [wanted & content_terms(said, language) for said in passage.said]
    size = max(len(wanted), 1)
    worth = [len(found) / size + (cosines[i] if cosines is not None else 0.0) for i, found in enumerate(having)]
    nearest = max(range(len(worth)), key=lambda i: worth[i])
    first = last = nearest
    found = set(having[nearest])
    while last - first + 1 < MOST_TOGETHER:
        sides = [i for i in (first - 1, last + 1) if 0 <= i < len(having)]
        side = max(sides, key=lambda i: len(having[i] - found), default=None)
        if side is None or len(having[side] - found) < max(1, WORTH_A_SENTENCE * size):
            break
        found |= having[side]
        first, last = min(first, side), max(last, side)
    return first, last, nearest


def _pairs(claim: str, source: str, language: str) -> float:
    asked, given = _neighbours(claim, language), _neighbours(source, language)
    return len(asked & given) / len(asked) if asked else 1.0


@lru_cache(maxsize=4096)
def _neighbours(text: str, language: str) -> frozenset[tuple[str, str]]:
    content = content_terms(text, language)
    ordered = [term for term in in_order(text, language) if term in content]
    return frozenset(pairwise(ordered))
