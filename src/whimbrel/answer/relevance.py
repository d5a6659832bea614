"""Sentences of the hits beside a question: which come nearest, by their words and by their vectors."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whimbrel.answer.asked import Asked
from whimbrel.answer.sentences import Sentence, plain, sentences
from whimbrel.answer.vectors import Embed, Vectors, compared
from whimbrel.domain import Hit
from whimbrel.errors import ModelError
from whimbrel.ingest.blocks import Kind

MOST_EMBEDDED = 16
"""Sentences embedded for an answer, chosen by their words and their hit's score. On 200 questions of nq_qed_dev the
answer is among the quotes as often (89.5 %) with 12 or 16 of them as with 24, and time goes with their number."""

HITS_EMBEDDED = 3
"""Hits embedded whole, for an answer that takes several sentences. Their titles and headings are left out: with those,
passages about the subject that do not answer come nearer (area under the curve of abstention .84, without .88)."""

LONGEST_PART = 1_000
"""Characters of a hit that are embedded at once. Most chunks are shorter; a model refuses what it cannot read whole."""

LONGEST_QUOTE = 900
"""Characters; up to this a sentence brings its neighbours along."""


@dataclass(frozen=True, slots=True)
class Candidate:
    hit: Hit
    of: Sequence[Sentence]
    """All sentences of the hit."""
    place: int
    """Which of them this is."""
    text: str
    """As the model reads it, with title and heading before it."""
    words: float
    """0..1: the share of the question's terms in `text`, by weight."""
    standing: float
    """0..1: the hit's score beside that of the best hit."""

    @property
    def sentence(self) -> Sentence:
        return self.of[self.place]

    @property
    def spoken(self) -> str:
        """The sentence alone, as it reads."""
        return plain(self.hit.text[self.sentence.start : self.sentence.end])

    @property
    def said(self) -> str:
        """The same, to compare with another."""
        return self.spoken.casefold()


def candidates(question: str, hits: Sequence[Hit], language: str) -> list[Candidate]:
    """The most promising `MOST_EMBEDDED` sentences. Overlapping chunks give theirs once."""
    highest = max((_found(hit) for hit in hits), default=0.0)
    asked = Asked.of(question, language)
    found: list[tuple[Hit, list[Sentence], int, str, set[str]]] = []
    taken: set[tuple[str, int]] = set()
    for hit in hits:
        of = sentences(hit.text)
        for place, sentence in enumerate(of):
            where = (hit.document_id, hit.start + sentence.end)
            if sentence.kind is not Kind.CODE and where not in taken:
                taken.add(where)
                said = plain(hit.text[of[first_needed(hit, of, place)].start : sentence.end])
                text = ": ".join(part for part in (plain(hit.title)[:80], sentence.heading[:80], said) if part)
                found.append((hit, of, place, text, asked.within(text)))
    frequency = Counter(term for *_, present in found for term in present)
    weight = {term: math.log(1 + len(found) / (1 + frequency[term])) for term in asked.terms}
    total = sum(weight.values()) or 1.0
    made = [
        Candidate(
            hit,
            of,
            place,
            text,
            words=sum(weight[term] for term in present) / total,
            standing=_found(hit) / highest if highest > 0 else 0.0,
        )
        for hit, of, place, text, present in found
    ]
    return sorted(made, key=lambda c: c.words + 0.3 * c.standing, reverse=True)[:MOST_EMBEDDED]


def _found(hit: Hit) -> float:
    """The score that what judges here was calibrated with, whatever a reranker says."""
    return hit.score if hit.retrieval_score is None else hit.retrieval_score


# --- judging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judged:
    """The candidates that could be judged: one that the model cannot read whole is left out, not cut."""

    candidates: Sequence[Candidate]
    relevance: Sequence[float]
    """(cosine + 0.3 * words) / 1.3; the words alone where the model is out."""
    vectors: Vectors | None
    """float32[len(candidates), dimensions]; None where the model is out."""
    near: Sequence[float] = ()
    """Cosine of the question and each candidate, rescaled as `whimbrel.answer.vectors.Compared` does."""
    hits_near: Sequence[float] = ()
    """The same for the best `HITS_EMBEDDED` hits."""
    degraded: Sequence[str] = ()


async def judged(
    question: str, hits: Sequence[Hit], embed: Embed, embed_query: Embed | None = None, *, language: str = "en"
) -> Judged:
    """The sentences of `hits` beside `question`. A model that is out leaves the words, and `degraded` says so."""
    found = candidates(question, hits, language)
    if not found:
        return Judged((), (), None)
    whole = [part for hit in hits[:HITS_EMBEDDED] for part in _body(hit)]
    try:
        asked = (await (embed_query or embed)([question]))[0]
        compare = await compared([*(candidate.text for candidate in found), *whole], embed)
    except ModelError as error:
        complaint = f"answer: sentences were chosen by their words alone ({error.message})"
        return Judged(found, [candidate.words for candidate in found], None, degraded=[complaint])
    found = [candidate for candidate in found if compare.knows(candidate.text)]
    if not found:
        return Judged((), (), None)
    vectors = np.stack([compare.vectors[candidate.text] for candidate in found])
    relevance = [(float(v @ asked) + 0.3 * c.words) / 1.3 for v, c in zip(vectors, found, strict=True)]
    near = compare.between(asked, [candidate.text for candidate in found])
    hits_near = compare.between(asked, [text for text in whole if compare.knows(text)])
    return Judged(found, relevance, vectors, near, hits_near)


def _body(hit: Hit) -> list[str]:
    """What a hit says, without its headings, in parts of about `LONGEST_PART`; its text where it has no sentence."""
    parts = [""]
    for sentence in sentences(hit.text):
        said = plain(hit.text[sentence.start : sentence.end])
        if parts[-1] and len(parts[-1]) + len(said) > LONGEST_PART:
            parts.append("")
        parts[-1] = f"{parts[-1]} {said}".strip()
    return [part for part in parts if part] or [hit.text]


# --- what a sentence needs -------------------------------------------------------------------------------------------

_DANGLING = re.compile(
    r"(?:This|That|These|Those|It|Its|They|Their|Them|He|She|His|Her|Such|Both|Then|Therefore|However|Thus|Also|Hence"
    r"|Otherwise|Instead|So|But|And|Dies|Diese[rs]?|Er|Sie|Cela|Il|Elle|Ils|Esto|Ella)\b"
)


def first_needed(hit: Hit, of: Sequence[Sentence], place: int) -> int:
    """The place before, where this sentence cannot be understood without that one."""
    sentence = of[place]
    if place and _DANGLING.match(hit.text, sentence.start):
        before = of[place - 1]
        if before.block == sentence.block and sentence.end - before.start <= LONGEST_QUOTE:
            return place - 1
    return place
