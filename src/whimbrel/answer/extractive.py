"""Answers in the documents' own sentences: what there is without any key, and what is left when models are out."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whimbrel.answer.abstaining import ABSTAIN
from whimbrel.answer.citations import check, terms
from whimbrel.answer.sentences import Sentence, plain, sentences
from whimbrel.domain import Answer, Citation, Hit
from whimbrel.errors import ModelError, TextRefused
from whimbrel.ingest.blocks import Kind

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Awaitable[Vectors]]
"""Short texts to float32[n, dimensions] of unit length."""

MODEL = "extractive"
NOTHING = "Nothing in this collection answers the question."
MOST_EMBEDDED = 16
"""Sentences embedded for an answer, chosen by their words and their hit's score. On 200 questions of nq_qed_dev the
answer is among the quotes as often (89.5 %) with 12 or 16 of them as with 24, and time goes with their number."""

FLOOR = 0.36
"""The least relevance of the best sentence. With the built-in model, 120 questions put to a collection about something
else reached 0.14 (median) to 0.356 and are all turned away; so is less than 1 % of 420 that the collection answers. Of
120 whose subject is there and whose answer is not (clapnq_dev) it turns away 10 %: a cosine sees the subject only."""

WORDS_FLOOR = 0.3
"""The same where there are no vectors, only words."""

NEAR_BEST = 0.8
"""Further sentences score at least this share of the best one. Between 0.7 and 0.9 one trades answers found (91.5 to
87 % on nq_qed_dev) against quotes beside the point (56 to 47 %); at 0.8 it is 91 and 54 %, and 2.3 quotes."""

SAME = 0.95
"""Two sentences whose cosine is above say the same."""

LONGEST_QUOTE = 900
"""Characters; up to this a sentence brings its neighbours along."""


async def answer_extractively(
    question: str,
    hits: Sequence[Hit],
    embed: Embed,
    *,
    embed_query: Embed | None = None,
    max_sentences: int = 3,
    floor: float = FLOOR,
    abstain: float = ABSTAIN,
    language: str = "en",
    degraded: Sequence[str] = (),
) -> Answer:
    """The sentences of `hits` that best answer `question`, best document first, each followed by its `[n]`.

    Relevance, 0..1, is (cosine + 0.3 * words) / 1.3: the cosine of question and sentence, which is read with its title
    and heading, and the share of the question's terms in them, a rarer term counting more. Where the best is under
    `floor`, the answer says that there is none, and cites nothing; `abstain` 0 always answers. The floor holds for the
    built-in model; others have cosines of their own. `embed_query` embeds the question where questions are embedded in
    another way.

    A model that is out leaves the words to judge by, and `degraded` says so. `usage` counts `sentences_embedded`.
    """
    candidates = _candidates(question, hits, language)
    judged = await _judged(question, candidates, embed, embed_query or embed)
    if abstain == 0:
        floor = 0.0
    if judged.vectors is None:
        floor = min(floor, WORDS_FLOOR)
    degraded = [*degraded, *judged.degraded]
    usage = {"sentences_embedded": 0 if judged.vectors is None else len(judged.candidates)}
    if not judged.candidates or max(judged.relevance) < floor:
        return Answer(NOTHING, (), MODEL, degraded, usage)
    written, citations = [], []
    for marker, quote in enumerate(_in_order(_picked(judged, max_sentences)), 1):
        text = quote.hit.text[quote.start : quote.end]
        sentence = plain(text)
        after = "\n" if sentence.endswith("```") else " "
        written.append(f"{sentence}{after}[{marker}]")
        citations.append(
            Citation(
                marker=marker,
                chunk_id=quote.hit.chunk_id,
                document_id=quote.hit.document_id,
                uri=quote.hit.uri,
                start=quote.hit.start + quote.start,
                end=quote.hit.start + quote.end,
                quote=text,
                supported=check(sentence, text, language=language),
                page=quote.hit.page,
            )
        )
    return Answer(" ".join(written), citations, MODEL, degraded, usage)


# --- candidates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Candidate:
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
    def said(self) -> str:
        """The sentence alone, to compare with another."""
        return plain(self.hit.text[self.sentence.start : self.sentence.end]).casefold()


_ASKING = re.compile(
    r"\b(?:what|how|who|whom|whose|which|when|where|why|do|does|did|can|could|should|would|is|are|was|were|am|be|i|you|we"
    r"|my|your|our|me|us|there|have|has|had|much|many|please|tell|explain)\b",
    re.IGNORECASE,
)
"""Words of English questions that their answers lack."""


def _candidates(question: str, hits: Sequence[Hit], language: str) -> list[_Candidate]:
    """The most promising `MOST_EMBEDDED` sentences. Overlapping chunks give theirs once."""
    highest = max((hit.score for hit in hits), default=0.0)
    found: list[tuple[Hit, list[Sentence], int, str, set[str]]] = []
    taken: set[tuple[str, int]] = set()
    for hit in hits:
        of = sentences(hit.text)
        for place, sentence in enumerate(of):
            where = (hit.document_id, hit.start + sentence.end)
            if sentence.kind is not Kind.CODE and where not in taken:
                taken.add(where)
                said = plain(hit.text[of[_first(hit, of, place)].start : sentence.end])
                text = ": ".join(part for part in (plain(hit.title)[:80], sentence.heading[:80], said) if part)
                found.append((hit, of, place, text, set(terms(text, language))))
    frequency = Counter(term for *_, present in found for term in present)
    asked = _asked(question, language)
    weight = {term: math.log(1 + len(found) / (1 + frequency[term])) for term in asked}
    total = sum(weight.values()) or 1.0
    candidates = [
        _Candidate(
            hit,
            of,
            place,
            text,
            words=sum(weight[term] for term in asked & present) / total,
            standing=hit.score / highest if highest > 0 else 0.0,
        )
        for hit, of, place, text, present in found
    ]
    return sorted(candidates, key=lambda c: c.words + 0.3 * c.standing, reverse=True)[:MOST_EMBEDDED]


def _asked(question: str, language: str) -> set[str]:
    content = _ASKING.sub(" ", question) if language == "en" else question
    return set(terms(content, language) or terms(question, language))


# --- judging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Judged:
    candidates: Sequence[_Candidate]
    relevance: Sequence[float]
    vectors: Vectors | None
    degraded: Sequence[str] = ()


async def _judged(question: str, candidates: Sequence[_Candidate], embed: Embed, embed_query: Embed) -> _Judged:
    """The candidates that could be judged. One that the model cannot read whole is left out, not cut."""
    if not candidates:
        return _Judged((), (), None)
    try:
        asked = (await embed_query([question]))[0]
        try:
            vectors = await embed([c.text for c in candidates])
        except TextRefused as refused:
            if not refused.positions:
                raise
            candidates = [c for i, c in enumerate(candidates) if i not in refused.positions]
            vectors = await embed([c.text for c in candidates])
    except ModelError as error:
        complaint = f"answer: sentences were chosen by their words alone ({error.message})"
        return _Judged(candidates, [c.words for c in candidates], None, [complaint])
    relevance = [(float(v @ asked) + 0.3 * c.words) / 1.3 for v, c in zip(vectors, candidates, strict=True)]
    return _Judged(candidates, relevance, vectors)


# --- picking ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Quote:
    hit: Hit
    start: int
    """In the hit's text."""
    end: int


def _picked(judged: _Judged, most: int) -> list[_Quote]:
    """At most `most` different sentences, best first, with the neighbours that they need to be understood."""
    scores = [
        (relevance + 0.3 * c.standing) * _readable(c)
        for relevance, c in zip(judged.relevance, judged.candidates, strict=True)
    ]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    picked: list[int] = []
    quotes: list[_Quote] = []
    for i in order:
        if len(picked) == most or scores[i] < NEAR_BEST * scores[order[0]]:
            break
        if any(_same(judged, i, j) for j in picked):
            continue
        picked.append(i)
        _add(quotes, _with_neighbours(judged.candidates[i]))
    return quotes


def _readable(candidate: _Candidate) -> float:
    """Less for the row of a table, and for what a chunk or a list has cut from its sentence."""
    sentence = candidate.sentence
    if sentence.kind is Kind.TABLE:
        return 0.9
    text = candidate.hit.text[sentence.start : sentence.end]
    return 0.85 if text[0].islower() or (text.isascii() and len(text) < 20) else 1.0


def _same(judged: _Judged, i: int, j: int) -> bool:
    if judged.vectors is not None and float(judged.vectors[i] @ judged.vectors[j]) > SAME:
        return True
    return judged.candidates[i].said == judged.candidates[j].said


def _add(quotes: list[_Quote], new: _Quote) -> None:
    """Two quotes that overlap become one."""
    for quote in quotes:
        shift = new.hit.start - quote.hit.start
        overlap = new.start + shift < quote.end and quote.start < new.end + shift
        if overlap and quote.hit.document_id == new.hit.document_id:
            if quote.hit is new.hit:
                quote.start, quote.end = min(quote.start, new.start), max(quote.end, new.end)
            return
    quotes.append(new)


_DANGLING = re.compile(
    r"(?:This|That|These|Those|It|Its|They|Their|Them|He|She|His|Her|Such|Both|Then|Therefore|However|Thus|Also|Hence"
    r"|Otherwise|Instead|So|But|And|Dies|Diese[rs]?|Er|Sie|Cela|Il|Elle|Ils|Esto|Ella)\b"
)


def _with_neighbours(candidate: _Candidate) -> _Quote:
    """The sentence; from "It ..." on with the one before, at ":" or "?" with what follows."""
    hit, of, sentence, last = candidate.hit, candidate.of, candidate.sentence, candidate.place
    first = _first(hit, of, last)
    if hit.text[sentence.end - 1] in ":?：？":
        while last + 1 < len(of) and of[last + 1].heading == sentence.heading:
            following = of[last + 1]
            if last > candidate.place and (following.kind is Kind.TEXT or following.kind is not of[last].kind):
                break
            if following.end - of[first].start > LONGEST_QUOTE:
                break
            last += 1
    return _Quote(hit, of[first].start, of[last].end)


def _first(hit: Hit, of: Sequence[Sentence], place: int) -> int:
    """The place before, where this sentence cannot be understood without that one."""
    sentence = of[place]
    if place and _DANGLING.match(hit.text, sentence.start):
        before = of[place - 1]
        if before.block == sentence.block and sentence.end - before.start <= LONGEST_QUOTE:
            return place - 1
    return place


def _in_order(quotes: Sequence[_Quote]) -> list[_Quote]:
    """Documents as their best quotes come; within a document, as it runs."""
    documents = list(dict.fromkeys(quote.hit.document_id for quote in quotes))
    return sorted(quotes, key=lambda q: (documents.index(q.hit.document_id), q.hit.start + q.start))
