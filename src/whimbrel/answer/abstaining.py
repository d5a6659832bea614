"""Whether the hits answer the question at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whimbrel.domain import Hit

ABSTAIN = 0.5
"""The least score that answers."""


@dataclass(frozen=True, slots=True)
class Answerability:
    score: float
    """0..1: how likely the hits answer the question."""
    answers: bool
    degraded: Sequence[str] = ()


async def answerable(
    question: str,
    hits: Sequence[Hit],
    embed: Any,
    embed_query: Any = None,
    *,
    language: str = "en",
    threshold: float = ABSTAIN,
) -> Answerability:
    """Whether to answer `question` from `hits` (best first)."""
    score = 1.0 if hits else 0.0
    return Answerability(score, bool(hits) and score >= threshold)
