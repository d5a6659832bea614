"""From passages to a checked answer, in events: by a generator, or without one in the documents' own sentences.

A generator that is out costs an answer its fluency, never the answer: what it wrote so far is given up, the extractive
answer takes its place, and `degraded` says why.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from whimbrel.answer.abstaining import ABSTAIN, answerable
from whimbrel.answer.checking import Judge, check_answer
from whimbrel.answer.extractive import NOTHING, answer_extractively
from whimbrel.answer.languages import NAMES, foreign
from whimbrel.answer.prompt import NO_ANSWER, answer_prompt, choose, judge_prompt
from whimbrel.catalog.conversations import Turn
from whimbrel.domain import Answer, AnswerEvent, Hit, Passages, SearchResult, TextDelta
from whimbrel.errors import MissingExtra, ModelError, ModelMalformed, ModelUnusable
from whimbrel.models.generators.base import Generator, Usage

Embed = Callable[[Sequence[str]], Awaitable[npt.NDArray[np.float32]]]
"""Short texts to float32[n, dimensions] of unit length."""


@dataclass(frozen=True, slots=True)
class Means:
    """What an answer is made with."""

    embed: Embed
    embed_query: Embed
    language: str = "en"
    """Of the collection."""
    generator: Generator | None = None
    insists: bool = False
    """The generator was asked for by name, for this question: if it cannot be used as configured, that is an error."""
    abstain: float = ABSTAIN
    """How sure an answer must be to be given, 0..1."""
    passage_tokens: int = 4_000
    max_tokens: int = 4_096
    judge: Literal["none", "model"] = "none"

    @property
    def main_language(self) -> str:
        """The first of several, such as `ru+en`."""
        return self.language.split("+")[0]


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    """Standing alone."""
    history: Sequence[Turn] = ()
    """Bounded already."""
    degraded: Sequence[str] = ()
    usage: Mapping[str, int] = field(default_factory=dict)
    """Tokens that making it stand alone took."""
    generator_is_out: bool = False
    """It failed at that: it is not asked again."""


async def answering(question: Question, found: SearchResult, means: Means) -> AsyncGenerator[AnswerEvent]:
    """`Passages`, then `TextDelta`s where a generator writes, then the `Answer`, which counts.

    Raises `ModelUnusable` and `MissingExtra` where the generator was insisted on; else a generator's errors are told in
    `degraded`.
    """
    generator = None if question.generator_is_out else means.generator
    chosen = choose(found.hits, means.passage_tokens) if generator is not None else None
    hits = found.hits if chosen is None else chosen.hits
    degraded = [*question.degraded, *found.degraded]
    yield Passages(hits, question.text, found.position, list(degraded))
    if generator is not None and chosen is not None:
        if chosen.note:
            degraded.append(chosen.note)
        try:
            async with aclosing(_generated(question, hits, generator, means, degraded)) as events:
                async for event in events:
                    yield event
            return
        except (ModelError, MissingExtra) as error:
            if means.insists and isinstance(error, ModelUnusable | MissingExtra):
                raise
            degraded.append(outage(error))
    yield await _extractive(question, found.hits, means, degraded)


def outage(error: ModelError | MissingExtra) -> str:
    """How an answer says that its generator is out."""
    return f"model: {error.message} {error.hint}".strip()


async def _generated(
    question: Question, hits: Sequence[Hit], generator: Generator, means: Means, degraded: Sequence[str]
) -> AsyncGenerator[AnswerEvent]:
    complaints = list(degraded)
    if not foreign(question.text, means.language):  # else what compares words tells nothing: let it try
        language, threshold = means.main_language, means.abstain
        verdict = await answerable(
            question.text, hits, means.embed, means.embed_query, language=language, threshold=threshold
        )
        complaints += verdict.degraded
        if not verdict.answers:
            nothing = Answer(NOTHING, (), generator.name, complaints, question.usage, abstained=True)
            yield replace(nothing, question=question.text)
            return
    prompt = answer_prompt(question.text, hits, question.history, max_tokens=means.max_tokens)
    opening = _Opening()
    usage = Usage(0, 0)
    async with aclosing(generator.stream(prompt)) as parts:
        async for part in parts:
            if isinstance(part, Usage):
                usage = part
            elif text := opening.add(part):
                yield TextDelta(text)
    if rest := opening.end():
        yield TextDelta(rest)
    complaints += usage.degraded
    if usage.cut:
        complaints.append("model: the answer reached `answer.max_tokens` and ends there")
    counted = {
        "input_tokens": usage.input_tokens + question.usage.get("input_tokens", 0),
        "output_tokens": usage.output_tokens + question.usage.get("output_tokens", 0),
    }
    answer = await _checked(opening.text, hits, generator, means, complaints, abstained=opening.abstained)
    model = usage.model or generator.name
    yield replace(answer, model=model, question=question.text, usage={**counted, **answer.usage})


async def _checked(
    text: str, hits: Sequence[Hit], generator: Generator, means: Means, degraded: Sequence[str], *, abstained: bool
) -> Answer:
    told: list[str] = []
    checked = await check_answer(
        text.strip() or NOTHING,
        () if abstained else hits,
        embed=means.embed,
        judge=judge_by(generator, told) if means.judge == "model" else None,
        language=means.main_language,
        degraded=degraded,
    )
    return Answer(
        checked.text,
        checked.citations,
        generator.name,
        [*checked.degraded, *(said for said in dict.fromkeys(told) if said not in checked.degraded)],
        {"citations_removed": checked.removed},
        checked.sentences,
        abstained=abstained,
    )


async def _extractive(question: Question, hits: Sequence[Hit], means: Means, degraded: Sequence[str]) -> Answer:
    complaints = list(degraded)
    if asked_in := foreign(question.text, means.language):
        complaints.append(
            f"answer: the question seems to be in {asked_in} and the collection in {NAMES[means.main_language]}; "
            "without a model that writes answers neither is translated"
        )
    answer = await answer_extractively(
        question.text,
        hits,
        means.embed,
        embed_query=means.embed_query,
        abstain=means.abstain,
        language=means.main_language,
        degraded=complaints,
    )
    usage = {**question.usage, **answer.usage}
    return replace(answer, question=question.text, usage=usage, abstained=answer.abstained or not answer.citations)


class _Opening:
    """An answer's text as it comes, without the mark by which a model says first that there is no answer."""

    def __init__(self) -> None:
        self.text = ""
        self.abstained = False
        self._held: str | None = ""

    def add(self, part: str) -> str:
        """What of the text can be shown now."""
        if self._held is None:
            self.text += part
            return part
        self._held += part
        begun = self._held.lstrip().lower()
        if len(begun) < len(NO_ANSWER) and NO_ANSWER.startswith(begun):
            return ""
        return self.end()

    def end(self) -> str:
        """What was held back."""
        held, self._held = self._held, None
        if not held:
            return ""
        if held.lstrip().lower().startswith(NO_ANSWER):
            self.abstained = True
            held = held.lstrip()[len(NO_ANSWER) :].lstrip()
        self.text += held
        return held


def judge_by(generator: Generator, told: list[str]) -> Judge:
    """A generator as judge of single citations; `told` is given what was out, where another model stood in. Raises
    `ModelError`."""

    async def judge(sentence: str, passage: str) -> str:
        judged = await generator.complete(judge_prompt(sentence, passage))
        told.extend(judged.usage.degraded)
        said = judged.text.strip().lower().strip("`'\". ")
        if said not in ("yes", "partly", "no"):
            raise ModelMalformed(f"{generator.name} judged a citation, and said neither yes nor partly nor no.")
        return said

    return judge
