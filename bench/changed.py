"""Sentences with one thing changed: a number, or a negation. For the bench of citations."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

SMALL = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SPELLED = [*SMALL, "twenty", "thirty", "forty", "fifty", "hundred", "thousand"]
_SPELLED = re.compile(rf"\b(?:{'|'.join(SPELLED)})\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w])")
_AUXILIARY = re.compile(
    r"\b(?:is|are|was|were|can|could|will|would|should|must|has|have|had|does|do|did|may|might)\b(?!\s+(?:not|no|never)|n't)",
    re.IGNORECASE,
)
_NEGATION = re.compile(r"\s(?:not|never)\b(?!\s+(?:only|just|merely))|n't\b", re.IGNORECASE)
OPPOSITES = [
    ("with", "without"),
    ("without", "with"),
    ("always", "never"),
    ("never", "always"),
    ("before", "after"),
    ("after", "before"),
    ("more", "less"),
    ("less", "more"),
    ("first", "last"),
    ("increase", "decrease"),
    ("increases", "decreases"),
    ("higher", "lower"),
    ("largest", "smallest"),
]


def numbers_changed(sentence: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, changed): one digit of a number made another; one spelled number made another."""
    if found := [m for m in _NUMBER.finditer(sentence) if m[0] not in ("0", "1")]:
        chosen = rng.choice(found)
        place = rng.choice([i for i, char in enumerate(chosen[0]) if char.isdigit()])
        digit = rng.choice([d for d in "23456789" if d != chosen[0][place]])
        changed = chosen[0][:place] + digit + chosen[0][place + 1 :]
        yield "digit", sentence[: chosen.start()] + changed + sentence[chosen.end() :]
    if found := list(_SPELLED.finditer(sentence)):
        chosen = rng.choice(found)
        word = rng.choice([w for w in SMALL if w != chosen[0].lower()])
        yield "spelled number", sentence[: chosen.start()] + word + sentence[chosen.end() :]


def negations_changed(sentence: str) -> Iterator[tuple[str, str]]:
    """(kind, changed): "not" after the first auxiliary, a "not" or "never" taken out, a word made its opposite."""
    if (verb := _AUXILIARY.search(sentence)) and not _NEGATION.search(sentence):
        yield "not put in", f"{sentence[: verb.end()]} not{sentence[verb.end() :]}"
    if gone := _NEGATION.search(sentence):
        yield "not taken out", sentence[: gone.start()] + sentence[gone.end() :]
    for word, other in OPPOSITES:
        if found := re.search(rf"\b{word}\b", sentence):
            yield "opposite", sentence[: found.start()] + other + sentence[found.end() :]
            return
