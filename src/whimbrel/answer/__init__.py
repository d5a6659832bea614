"""From hits to an answer whose citations have been checked."""

from whimbrel.answer.abstaining import Answerability, answerable
from whimbrel.answer.checking import Checked, Judge, check_answer
from whimbrel.answer.citations import Support
from whimbrel.answer.extractive import answer_extractively

__all__ = [
    "Answerability",
    "Checked",
    "Judge",
    "Support",
    "answer_extractively",
    "answerable",
    "check_answer",
]
