"""How many tokens a text has for a model whose tokenizer is not here: an estimate, rather too high than too low."""

from __future__ import annotations

import math
import re

_RUNS = re.compile(r"[A-Za-z]+|[0-9]+|\s+|[^\sA-Za-z0-9]")
_LETTERS_A_TOKEN = 5
_DIGITS_A_TOKEN = 3


def estimated_tokens(text: str) -> int:
    """A token for each five letters of an ASCII word, each three digits, and each other character but white space.

    So Chinese and code are counted nearly character by character, as tokenizers of models for English read them.
    """
    return sum(_tokens(match[0]) for match in _RUNS.finditer(text))


def _tokens(run: str) -> int:
    if run.isspace():
        return run.count("\n")
    if run.isascii() and run.isalpha():
        return math.ceil(len(run) / _LETTERS_A_TOKEN)
    if run.isascii() and run.isdigit():
        return math.ceil(len(run) / _DIGITS_A_TOKEN)
    return 1


def fitting(texts: list[str], tokens: int) -> int:
    """How many of `texts`, from the first on, have together at most so many tokens."""
    used = 0
    for place, text in enumerate(texts):
        used += estimated_tokens(text)
        if used > tokens:
            return place
    return len(texts)


def shortened(text: str, tokens: int) -> str:
    """The beginning of `text` that has at most so many tokens, up to the end of a word."""
    used = 0
    for match in _RUNS.finditer(text):
        used += _tokens(match[0])
        if used > tokens:
            return text[: match.start()].rstrip()
    return text
