"""An answer as a model wrote it, made into one whose citations resolve and have been checked.

The method, named *words, vectors and faults*, is written in `whimbrel.answer.citations`; `docs/citations.md` has its
figures. A generator that is given as judge says more about meaning, and is heard, but not about numbers and negation.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from whimbrel.answer.citations import Judgement, Measured, Passage, Support, content_terms, judged, measure
from whimbrel.answer.markers import Marked, marked, written
from whimbrel.answer.sentences import plain, sentences
from whimbrel.answer.vectors import Compared, Embed, compared
from whimbrel.domain import CheckedSentence, Citation, Evidence, Hit
from whimbrel.errors import ModelError

Judge = Callable[[str, str], Awaitable[str]]
"""(sentence, passage) to `yes`, `partly` or `no`, by a model. Raises `ModelError`."""

MOST_EMBEDDED = 6
"""Sentences of each cited passage that are embedded: those that share most words with what cites it."""

ITS_PART = 0.25
"""Share of a sentence's terms that a passage has which supports it together with others."""

JUDGED_TOGETHER = 4
"""Questions put to a judge at a time."""

_STOPPED = re.compile(r"(?P<stop>(?:(?<=[.!?…。！？])|[.!?…。！？]+))\s*(?![a-zà-ÿ])")
"""Where a marker stands: behind a full stop, or before one; then no word in lower case."""
_RANK = {"no": 0, "partly": 1, "yes": 2}
_SUPPORT: tuple[Support, ...] = ("no", "partly", "yes")


@dataclass(frozen=True, slots=True)
class Checked:
    text: str
    """The answer; every `[n]` in it but in code resolves to one of `citations`."""
    citations: Sequence[Citation]
    """One for each passage that is cited, in the order of the first marker; numbers are those of the passages."""
    sentences: Sequence[CheckedSentence]
    removed: int
    """Markers that resolved to no passage, and are gone from `text`."""
    degraded: Sequence[str]


async def check_answer(
    text: str,
    passages: Sequence[Hit],
    *,
    embed: Embed | None,
    judge: Judge | None = None,
    language: str = "en",
    degraded: Sequence[str] = (),
) -> Checked:
    """Resolve and check the `[n]` of `text`, n from 1 into `passages`.

    A marker keeps its number, so that text which was streamed before stays true. A citation spans the sentences of its
    passage that support what cites it, from the first to the last; the evidence of a sentence is its own part of that.
    A citation is `yes` where it supports, by itself, every sentence that cites it, `no` where it supports none.

    Without `embed`, or where it is out, words, numbers and names judge alone; a judge that is out is done without:
    `degraded` says so.
    """
    found = marked(text, len(passages))
    claims = _claims(found)
    cited = {number: Passage.of_hit(passages[number - 1]) for claim in claims for number in claim.markers}
    complaints = list(degraded)
    vectors = None
    if embed is not None and cited:
        try:
            vectors = await compared(_to_embed(claims, cited, language), embed)
        except ModelError as error:
            complaints.append(f"answer: citations were checked by their words alone ({error.message})")
    checks = [_Check.of(claim, cited, vectors, language) for claim in claims]
    if judge is not None:
        checks, complaint = await _heard(checks, cited, judge)
        complaints += complaint
    final = written(found)
    return Checked(
        text=final.text,
        citations=_citations(found, checks, passages),
        sentences=[check.sentence(final.span(check.claim.start, check.claim.end), passages) for check in checks],
        removed=found.removed,
        degraded=complaints,
    )


# --- claims ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Claim:
    start: int
    """In the text without markers."""
    end: int
    said: str
    """As it reads."""
    markers: Sequence[int]


def _claims(found: Marked) -> list[_Claim]:
    """The sentences, each with the markers in it and those that follow it; at a line's start they mean what comes."""
    spans = _spans(found)
    bears: list[list[int]] = [[] for _ in spans]
    for marker in found.markers:
        if (place := _bearer(found.text, spans, marker.at)) is not None and marker.number not in bears[place]:
            bears[place].append(marker.number)
    return [
        _Claim(start, end, plain(found.text[start:end]), numbers)
        for (start, end), numbers in zip(spans, bears, strict=True)
    ]


def _spans(found: Marked) -> list[tuple[int, int]]:
    """Sentences; one ends where a full stop and a marker meet, whatever the word before ("400 g [1]. It")."""
    places = sorted({marker.at for marker in found.markers})
    spans: list[tuple[int, int]] = []
    for start, end, *_ in sentences(found.text):
        for at in (_STOPPED.match(found.text, at) for at in places if start < at < end):
            if at is not None and start < at.end("stop") < at.end() < end:
                spans.append((start, at.end("stop")))
                start = at.end()
        spans.append((start, end))
    return spans


def _bearer(text: str, spans: Sequence[tuple[int, int]], at: int) -> int | None:
    before = max((i for i, (start, _) in enumerate(spans) if start < at), default=None)
    if before is not None and at <= spans[before][1]:
        return before
    follows = before + 1 if before is not None else 0
    line_start = text[:at].rpartition("\n")[2].strip(" \t>-*+•|0123456789.)#") == ""
    in_code = before is not None and text[: spans[before][1]].endswith(("```", "~~~"))
    if (before is None or (line_start and not in_code)) and follows < len(spans) and spans[follows][0] >= at:
        same_line = "\n" not in text[at : spans[follows][0]]
        return follows if same_line or before is None else before
    return before


def _to_embed(claims: Sequence[_Claim], cited: Mapping[int, Passage], language: str) -> list[str]:
    texts = [claim.said for claim in claims if claim.markers]
    for number, passage in cited.items():
        wanted = [content_terms(claim.said, language) for claim in claims if number in claim.markers]
        shared = {said: max(len(terms & content_terms(said, language)) for terms in wanted) for said in passage.said}
        texts += sorted(shared, key=lambda said: -shared[said])[:MOST_EMBEDDED]
    return texts


# --- checks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Check:
    """A claim beside each passage that it cites, and beside all of them."""

    claim: _Claim
    measured: Sequence[Measured]
    each: Sequence[Judgement]
    together: Judgement

    @classmethod
    def of(cls, claim: _Claim, cited: Mapping[int, Passage], vectors: Compared | None, language: str) -> _Check:
        passages = [cited[number] for number in claim.markers]
        measured = [
            measure(claim.said, passage, _cosines(claim.said, passage, vectors), language=language)
            for passage in passages
        ]
        each = [judged(one) for one in measured]
        if len(each) < 2 or any(judgement.supported == "yes" for judgement in each):
            return cls(claim, measured, each, max(each, key=lambda j: j.score, default=_NOTHING_CITED))
        parts = [passage.text[one.start : one.end] for passage, one in zip(passages, measured, strict=True)]
        joined = Passage.of("\n\n".join(parts), " ".join(passage.title for passage in passages))
        together = judged(measure(claim.said, joined, _cosines(claim.said, joined, vectors), language=language))
        if together.supported == "yes":
            each = [_part_of(judgement, one) for judgement, one in zip(each, measured, strict=True)]
        return cls(claim, measured, each, max(together, *each, key=lambda j: _RANK[j.supported]))

    def sentence(self, span: tuple[int, int], passages: Sequence[Hit]) -> CheckedSentence:
        evidence = [
            Evidence(
                marker=number,
                start=passages[number - 1].start + one.start,
                end=passages[number - 1].start + one.end,
                supported=judgement.supported,
                score=judgement.score,
                reason=judgement.reason,
            )
            for number, one, judgement in zip(self.claim.markers, self.measured, self.each, strict=True)
        ]
        return CheckedSentence(*span, self.claim.markers, self.together.supported, evidence)


def _part_of(judgement: Judgement, measured: Measured) -> Judgement:
    """One of several that support a sentence together: what it lacks, another has."""
    if judgement.supported == "no" and measured.covered >= ITS_PART:
        return replace(judgement, supported="partly")
    return judgement


_NOTHING_CITED = Judgement("no", 0.0, "it cites nothing")


def _cosines(claim: str, passage: Passage, vectors: Compared | None) -> list[float] | None:
    if vectors is None or not vectors.knows(claim):
        return None
    return vectors.between(vectors.vectors[claim], passage.said)


async def _heard(
    checks: Sequence[_Check], cited: Mapping[int, Passage], judge: Judge
) -> tuple[list[_Check], list[str]]:
    """The checks with the judge's word for the method's, but for faults: a "yes" despite one is "partly"."""
    turns = asyncio.Semaphore(JUDGED_TOGETHER)

    async def ask(said: str, passage: str) -> str:
        async with turns:
            return await judge(said, passage)

    async def hear(check: _Check) -> _Check:
        texts = [cited[number].text for number in check.claim.markers]
        verdicts = [await ask(check.claim.said, text) for text in texts]
        each = [_with(*old) for old in zip(check.each, check.measured, verdicts, strict=True)]
        best = max(each, key=lambda judgement: _RANK[judgement.supported])
        if len(texts) > 1 and best.supported != "yes" and not any(one.faults for one in check.measured):
            best = _with(check.together, check.measured[0], await ask(check.claim.said, "\n\n".join(texts)))
        return replace(check, each=each, together=best)

    citing = [check for check in checks if check.claim.markers]
    heard = await asyncio.gather(*(hear(check) for check in citing), return_exceptions=True)
    for outcome in heard:
        if isinstance(outcome, ModelError):
            said = f"answer: the judge of citations was out, the built-in check judged ({outcome.message})"
            return list(checks), [said]
        if isinstance(outcome, BaseException):
            raise outcome
    by_claim = {check.claim.start: check for check in heard if isinstance(check, _Check)}
    return [by_claim.get(check.claim.start, check) for check in checks], []


def _with(old: Judgement, measured: Measured, verdict: str) -> Judgement:
    supported = verdict.strip().casefold()
    if supported not in _RANK:
        return old
    if measured.faults and supported == "yes":
        supported = "partly"
    reason = "" if supported == "yes" else old.reason or "the judging model says so"
    return Judgement(_SUPPORT[_RANK[supported]], old.score, reason)


# --- citations -------------------------------------------------------------------------------------------------------


def _citations(found: Marked, checks: Sequence[_Check], passages: Sequence[Hit]) -> list[Citation]:
    by_number: dict[int, list[tuple[Measured, Judgement]]] = {marker.number: [] for marker in found.markers}
    for check in checks:
        for number, one, judgement in zip(check.claim.markers, check.measured, check.each, strict=True):
            by_number[number].append((one, judgement))
    return [_citation(number, passages[number - 1], judged) for number, judged in by_number.items()]


def _citation(number: int, hit: Hit, found: Sequence[tuple[Measured, Judgement]]) -> Citation:
    """Spans what supports; where nothing does, what comes nearest; the whole passage where no sentence bears it."""
    if not found:
        whole = Measured(0, len(hit.text), 0.0, 0.0, 0.0, None)
        found = [(whole, Judgement("no", 0.0, "no sentence bears it"))]
    best = max(_RANK[judgement.supported] for _, judgement in found)
    worst = min(_RANK[judgement.supported] for _, judgement in found)
    spans = [(one.start, one.end) for one, judgement in found if best == 0 or judgement.supported != "no"]
    start, end = min(start for start, _ in spans), max(end for _, end in spans)
    return Citation(
        marker=number,
        chunk_id=hit.chunk_id,
        document_id=hit.document_id,
        uri=hit.uri,
        start=hit.start + start,
        end=hit.start + end,
        quote=hit.text[start:end],
        supported="yes" if worst == 2 else "no" if best == 0 else "partly",
        page=hit.page,
    )
