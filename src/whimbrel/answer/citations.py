"""Whether a quote supports a sentence, judged by its words."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Literal

from whimbrel.answer.sentences import plain, sentences
from whimbrel.lexicon.analysis import Analysis

Support = Literal["yes", "partly", "no"]

ENOUGH = 0.8
SOME = 0.5
"""Shares of a sentence's terms; measured in `check`."""


def check(sentence: str, quote: str, *, language: str = "en") -> Support:
    """Whether `quote` says what `sentence` says: "yes", "partly" or "no".

    The method is *lexical coverage*: the share of the sentence's content terms (stemmed, stop words left out) that are
    in the quote. It is "yes" from `ENOUGH`, "partly" from `SOME`, else "no". Two things make it "no" whatever the
    coverage: a number in the sentence that is not in the quote, and a negation on one side only, where the side of the
    quote is the sentence of it that shares most terms. It reads words, not meaning: a paraphrase in other words is
    "no", and two names that change places go unnoticed.

    On the 647 sentences of human answers in clapnq_dev it says "yes" to 95 % beside their own passage, and "no" to 99 %
    beside another passage, to 95 % with a negation put in, and to 95 % with a digit changed.
    """
    claim, source = plain(sentence), plain(quote)
    wanted = _words(claim, language)
    if not wanted or claim == source:
        return "yes" if claim and claim in source else "no"
    if not numbers(claim) | _spelled(claim) - {"0", "1"} <= numbers(source) | _spelled(source):
        return "no"
    spans = sentences(quote)
    nearest = max(
        (plain(quote[span.start : span.end]) for span in spans),
        key=lambda text: len(wanted & _words(text, language)),
        default=source,
    )
    if negated(claim) != negated(nearest):
        return "no"
    covered = len(wanted & _words(source, language)) / len(wanted)
    return "yes" if covered >= ENOUGH else "partly" if covered >= SOME else "no"


def terms(text: str, language: str = "en") -> Counter[str]:
    """Content terms, as the lexicon stems them, and how often each occurs; stop words if there is nothing else."""
    return _analysis(language).query_terms(text)


def numbers(text: str) -> set[str]:
    """The numbers written in digits, without thousands separators: "1,024.50" is "1024.5"."""
    found = (_THOUSANDS.sub("", match) for match in _NUMBER.findall(text))
    return {number.rstrip("0").rstrip(".") if "." in number else number for number in found}


def negated(text: str) -> bool:
    """An odd number of English, German, French or Spanish negations."""
    return len(_NEGATION.findall(text)) % 2 == 1


_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")
_NEGATION = re.compile(
    r"\b(?:not(?!\s+only)|never|none|nor|neither|nobody|nothing|without|cannot|no(?!\s+(?:longer|\.)|\.\s*\d)|no longer"
    r"|nicht|kein(?:e[nmrs]?)?|nie|ohne|pas|jamais|sans|nunca|tampoco)\b|n['’]t\b",
    re.IGNORECASE,
)
_SPELLED = {"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7"}
_SPELLED |= {"eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12"}
_ASCII_WORD = re.compile(r"[a-z]+")


def _words(text: str, language: str) -> set[str]:
    """Terms but numbers, which have their own test."""
    return {term for term in terms(text, language) if not term.isdecimal() and term not in _SPELLED}


def _spelled(text: str) -> set[str]:
    return {_SPELLED[word] for word in _ASCII_WORD.findall(text.lower()) if word in _SPELLED}


@cache
def _analysis(language: str) -> Analysis:
    return Analysis(language)
