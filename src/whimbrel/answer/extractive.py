"""Answers in the documents' own sentences: what there is without any key, and what is left when models are out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from whimbrel.answer.abstaining import ABSTAIN, answerability
from whimbrel.answer.citations import Passage, judged, measure
from whimbrel.answer.markers import shielded
from whimbrel.answer.relevance import LONGEST_QUOTE, Candidate, Judged, first_needed
from whimbrel.answer.relevance import judged as judged_relevance
from whimbrel.answer.sentences import plain, sentences
from whimbrel.answer.vectors import Embed
from whimbrel.domain import Answer, CheckedSentence, Citation, Evidence, Hit
from whimbrel.ingest.blocks import Kind

MODEL = "extractive"
NOTHING = "Nothing in this collection answers the question."
NEAR_BEST = 0.8
"""Further sentences score at least this share of the best one. Between 0.7 and 0.9 one trades answers found (91.5 to
87 % on nq_qed_dev) against quotes beside the point (56 to 47 %); at 0.8 it is 91 and 54 %, and 2.3 quotes."""

SAME = 0.95
"""Two sentences whose cosine is above say the same."""


async def answer_extractively(
    question: str,
    hits: Sequence[Hit],
    embed: Embed,
    *,
    embed_query: Embed | None = None,
    max_sentences: int = 3,
    abstain: float = ABSTAIN,
    language: str = "en",
    degraded: Sequence[str] = (),
) -> Answer:
    """The sentences of `hits` that best answer `question`, best document first, each followed by its `[n]`.

    Relevance, 0..1, is (cosine + 0.3 * words) / 1.3: the cosine of question and sentence, which is read with its title
    and heading, and the share of the question's terms in them, a rarer term counting more. Where the score of
    `whimbrel.answer.abstaining` is under `abstain`, the answer says that there is none, and cites nothing; 0 always
    answers. `embed_query` embeds the question where questions are embedded in another way.

    What looks like a marker in a quote ("[3]") is dropped or set in round brackets: here `[n]` always cites.

    A model that is out leaves the words to choose by, and `degraded` says so. `usage` counts `sentences_embedded`.
    """
    found = await judged_relevance(question, hits, embed, embed_query, language=language)
    verdict = answerability(question, hits, found, language=language, threshold=abstain)
    degraded = [*degraded, *verdict.degraded]
    usage = {"sentences_embedded": 0 if found.vectors is None else len(found.candidates)}
    if not verdict.answers:
        return Answer(NOTHING, (), MODEL, degraded, usage, abstained=True)
    parts = [_Part.of(quote, language) for quote in _in_order(_picked(found, max_sentences))]
    text, checked = "", []
    for marker, part in enumerate(parts, 1):
        text += " " if text else ""
        checked += part.sentences(marker, len(text))
        text += part.written(marker)
    citations = [part.citation(marker) for marker, part in enumerate(parts, 1)]
    return Answer(text, citations, MODEL, degraded, usage, checked)


# --- writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """A quote, as the answer says it, with its check."""

    quote: _Quote
    said: str
    evidence: Sequence[tuple[int, int, Evidence]]
    """(start, end) in `said` of each of its sentences, and what the check found; marker 0."""

    @classmethod
    def of(cls, quote: _Quote, language: str) -> _Part:
        text = quote.hit.text[quote.start : quote.end]
        said = shielded(plain(text))
        passage = Passage.of(text, quote.hit.title)
        offset = quote.hit.start + quote.start
        return cls(
            quote,
            said,
            [
                (start, end, _evidence(said[start:end], said, passage, offset, language))
                for start, end, *_ in sentences(said)
            ],
        )

    def written(self, marker: int) -> str:
        gap = "\n" if self.said.endswith("```") else " "
        return f"{self.said}{gap}[{marker}]"

    def sentences(self, marker: int, shift: int) -> list[CheckedSentence]:
        return [
            CheckedSentence(shift + start, shift + end, [marker], found.supported, [replace(found, marker=marker)])
            for start, end, found in self.evidence
        ]

    def citation(self, marker: int) -> Citation:
        hit, supports = self.quote.hit, {found.supported for *_, found in self.evidence}
        return Citation(
            marker=marker,
            chunk_id=hit.chunk_id,
            document_id=hit.document_id,
            uri=hit.uri,
            start=hit.start + self.quote.start,
            end=hit.start + self.quote.end,
            quote=hit.text[self.quote.start : self.quote.end],
            supported="yes" if supports == {"yes"} else "no" if supports <= {"no"} else "partly",
            page=hit.page,
        )


def _evidence(sentence: str, said: str, passage: Passage, offset: int, language: str) -> Evidence:
    """A sentence that is in the quote word for word is supported by all of it; else the check decides."""
    if sentence in shielded(plain(passage.text)):
        return Evidence(0, offset, offset + len(passage.text), "yes", 1.0)
    measured = measure(plain(sentence), passage, None, language=language)
    found = judged(measured)
    return Evidence(0, offset + measured.start, offset + measured.end, found.supported, found.score, found.reason)


# --- picking ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Quote:
    hit: Hit
    start: int
    """In the hit's text."""
    end: int


def _picked(judged: Judged, most: int) -> list[_Quote]:
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


def _readable(candidate: Candidate) -> float:
    """Less for the row of a table, and for what a chunk or a list has cut from its sentence."""
    sentence = candidate.sentence
    if sentence.kind is Kind.TABLE:
        return 0.9
    text = candidate.hit.text[sentence.start : sentence.end]
    return 0.85 if text[0].islower() or (text.isascii() and len(text) < 20) else 1.0


def _same(judged: Judged, i: int, j: int) -> bool:
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


def _with_neighbours(candidate: Candidate) -> _Quote:
    """The sentence; from "It ..." on with the one before, at ":" or "?" with what follows."""
    hit, of, sentence, last = candidate.hit, candidate.of, candidate.sentence, candidate.place
    first = first_needed(hit, of, last)
    if hit.text[sentence.end - 1] in ":?：？":
        while last + 1 < len(of) and of[last + 1].heading == sentence.heading:
            following = of[last + 1]
            if last > candidate.place and (following.kind is Kind.TEXT or following.kind is not of[last].kind):
                break
            if following.end - of[first].start > LONGEST_QUOTE:
                break
            last += 1
    return _Quote(hit, of[first].start, of[last].end)


def _in_order(quotes: Sequence[_Quote]) -> list[_Quote]:
    """Documents as their best quotes come; within a document, as it runs."""
    documents = list(dict.fromkeys(quote.hit.document_id for quote in quotes))
    return sorted(quotes, key=lambda q: (documents.index(q.hit.document_id), q.hit.start + q.start))
