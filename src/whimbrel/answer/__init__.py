"""From hits to an answer whose citations have been checked."""

from whimbrel.answer.citations import Support, check
from whimbrel.answer.extractive import answer_extractively

__all__ = ["Support", "answer_extractively", "check"]
