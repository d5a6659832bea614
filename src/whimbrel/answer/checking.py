"""An answer as a model wrote it, made into one whose citations resolve and have been checked."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from whimbrel.answer.citations import check
from whimbrel.answer.sentences import plain, sentences
from whimbrel.domain import CheckedSentence, Citation, Evidence, Hit

Judge = Callable[[str, str], Awaitable[str]]
"""(sentence, passage) to `yes`, `partly` or `no`, by a model. Raises `ModelError`."""

_MARKER = re.compile(r"\s?\[(\d{1,3})\]")


@dataclass(frozen=True, slots=True)
class Checked:
    text: str
    citations: Sequence[Citation]
    sentences: Sequence[CheckedSentence]
    removed: int
    degraded: Sequence[str]


async def check_answer(
    text: str,
    passages: Sequence[Hit],
    *,
    embed: Any,
    judge: Judge | None = None,
    language: str = "en",
    degraded: Sequence[str] = (),
) -> Checked:
    """Resolve and check the `[n]` of `text`, n from 1 into `passages`."""
    removed = sum(not 1 <= int(number) <= len(passages) for number in _MARKER.findall(text))
    text = _MARKER.sub(lambda match: match[0] if 1 <= int(match[1]) <= len(passages) else "", text)
    checked, found = [], dict.fromkeys(int(number) for number in _MARKER.findall(text))
    for span in sentences(text):
        before = re.match(r"(?:\s?\[\d{1,3}\]\s*)*", text[span.start : span.end])
        said = text[span.start + (before.end() if before else 0) : span.end]
        if not said:
            continue
        after = re.match(r"(?:\s?\[\d{1,3}\])*", text[span.end :])
        numbers = [int(number) for number in _MARKER.findall(said + (after[0] if after else ""))]
        evidence = []
        for number in numbers:
            hit = passages[number - 1]
            supported = check(_MARKER.sub("", said), hit.text, language=language)
            if judge is not None:
                supported = await judge(plain(said), hit.text)  # type: ignore[assignment]
            evidence.append(Evidence(number, hit.start, hit.end, supported, 1.0 if supported == "yes" else 0.0))
        verdicts = {one.supported for one in evidence}
        verdict = "yes" if "yes" in verdicts else "partly" if "partly" in verdicts else "no"
        checked.append(CheckedSentence(span.end - len(said), span.end, numbers, verdict, evidence))
    citations = [_citation(number, passages[number - 1], checked) for number in found]
    return Checked(text, citations, checked, removed, degraded)


def _citation(number: int, hit: Hit, checked: Sequence[CheckedSentence]) -> Citation:
    verdicts = {one.supported for sentence in checked for one in sentence.evidence if one.marker == number}
    supported = "yes" if verdicts == {"yes"} else "no" if verdicts <= {"no"} else "partly"
    return Citation(number, hit.chunk_id, hit.document_id, hit.uri, hit.start, hit.end, hit.text, supported, hit.page)
