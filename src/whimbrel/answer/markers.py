"""The `[n]` in an answer: found in every form that models write, resolved, and written in one form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple


class Marker(NamedTuple):
    """One passage, cited at one place of a `Marked` text."""

    number: int
    """From 1, into the passages that the answer was made from."""
    at: int
    """Where it stands in `Marked.text`: after the character `at - 1`."""


@dataclass(frozen=True, slots=True)
class Marked:
    """An answer apart from its markers."""

    text: str
    """The answer without any marker."""
    markers: Sequence[Marker]
    """Those that resolve, in order; at one place each number once."""
    removed: int
    """How many numbers resolved to no passage."""


def marked(text: str, passages: int) -> Marked:
    """`text` apart from its markers, those from 1 to `passages` resolved, the others counted.

    Read as markers: `[1]`, `[1, 2]`, `[1][2]`, `[1-3]`, `[^1]`, `[[1]]`, `[Source 1]`, `[1](url)`, `【1†source】`,
    digits of full width, and superscripts after a word or full stop ("blue.¹") where they resolve. Not read as markers:
    what is in code, a number of four digits or more ("[2019]"), an index ("rows[0].id"), an interval from zero
    ("[0, 1]").
    """
    kept: list[str] = []
    markers: list[Marker] = []
    length = removed = last = 0
    tail = ""
    for found in _found(text, passages):
        before = text[last : found.start]
        stripped = before.rstrip(" \t")
        if (stripped[-1:] or tail or "\n") != "\n":
            before = stripped
        kept.append(before)
        length += len(before)
        tail = before[-1:] or tail
        last = found.end
        if tail in ("", "\n"):
            last += len(text[last:]) - len(text[last:].lstrip(" \t"))
        resolved = [number for number in found.numbers if 1 <= number <= passages]
        removed += len(found.numbers) - len(resolved)
        here = {marker.number for marker in markers if marker.at == length}
        markers += [Marker(number, length) for number in dict.fromkeys(resolved) if number not in here]
    whole = "".join([*kept, text[last:]]).rstrip()
    return Marked(whole, [marker._replace(at=min(marker.at, len(whole))) for marker in markers], removed)


@dataclass(frozen=True, slots=True)
class Written:
    """An answer with its markers, each `[n]`."""

    text: str
    shifts: Sequence[tuple[int, int]]
    """(place in the text without markers, characters put in there), ascending."""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where `[start, end)` of the text without markers is in `text`; markers at its ends stay outside."""
        first = start + sum(added for at, added in self.shifts if at <= start)
        return first, end + sum(added for at, added in self.shifts if at < end)


def written(found: Marked) -> Written:
    """The answer with its markers where they stood, as " [1][2]"; after a code block on a line of their own."""
    parts: list[str] = []
    shifts: list[tuple[int, int]] = []
    last = 0
    for at, group in groupby(found.markers, key=lambda marker: marker.at):
        before, after = found.text[last:at], found.text[at : at + 1]
        gap = "" if not at or found.text[at - 1].isspace() else "\n" if _FENCE_BEFORE.search(before) else " "
        put = gap + "".join(f"[{marker.number}]" for marker in group)
        if after.isalnum() or after in tuple("([“\"'`*_"):
            put += " "
        parts += [before, put]
        shifts.append((at, len(put)))
        last = at
    return Written("".join([*parts, found.text[last:]]), shifts)


def shielded(text: str) -> str:
    """`text` with what would be taken for a marker in round brackets: a passage's own footnote "[3]" is no citation.

    Code is left as it is: what is in it is not taken for one.
    """
    kept, last = [], 0
    for found in _found(text, 0):
        kept += [text[last : found.start], text[found.start : found.end].translate(_ROUND)]
        last = found.end
    return "".join([*kept, text[last:]])


_ROUND = str.maketrans("[【［〔]】］〕", "(((())))")

# --- finding ---------------------------------------------------------------------------------------------------------

_DIGITS = "0-9０-９⁰¹²³⁴-⁹"
_NAMED = r"(?:(?:sources?|passages?|documents?|docs?|refs?\.?|references?|quelle|fuente)\s*:?\s*)?"
_NUMBER = rf"{_NAMED}#?\^?[{_DIGITS}]{{1,3}}\^?"
_BETWEEN = r"\s*(?:[,;，、；&]|and|und|et|y|[-–—‐‑~〜])\s*"
_INNER = rf"{_NUMBER}(?:{_BETWEEN}{_NUMBER})*(?:†[^\]】\n]{{0,80}})?"
_LINKED = r"(?:\((?:https?:|#|/|\.{1,2}/)[^()\s]{0,500}\))?"
_BRACKETED = re.compile(
    rf"(?:\[\[\s*(?P<a>{_INNER})\s*\]\]|\[\s*(?P<b>{_INNER})\s*\]|[【［〔]\s*(?P<c>{_INNER})\s*[】］〕]){_LINKED}",
    re.IGNORECASE,
)
_RAISED = re.compile(
    r"(?<=[^\W\d_]{3})[⁰¹²³⁴-⁹]+"
    r"|(?<=[.!?…。！？\"”’)»])[⁰¹²³⁴-⁹]+|(?<=[⁰¹²³⁴-⁹][ ,])[⁰¹²³⁴-⁹]+"
)
_UNITS = re.compile(r"\b(?:feet|foot|miles?|inch(?:es)?|yards?|met(?:er|re)s?|mile|acre|cm|km|mm)\Z", re.IGNORECASE)
_CODE = re.compile(
    r"^[ \t]*(?P<fence>```+|~~~+)[^\n]*\n(?:.*?\n)??[ \t]*(?P=fence)[ \t]*(?=$|[\[【［])"
    r"|(?P<ticks>`+)[^`\n]+(?P=ticks)",
    re.MULTILINE | re.DOTALL,
)
_OPEN_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_CODE_WORD = re.compile(r"(?:[\w.]*(?:_|\.\w|[a-z][A-Z])\w*|\b[A-Za-z])\Z")
"""Before a bracket: `a_b`, `a.b`, `aB`, or a single letter, which are names in code."""

_PART = re.compile(rf"([{_DIGITS}]+)\^?(?:\s*([-–—‐‑~〜])\s*\D{{0,12}}?([{_DIGITS}]+))?")
_FENCE_BEFORE = re.compile(r"(?:```|~~~)[ \t]*\Z")
MOST_IN_RANGE = 100
"""How far a range is followed: `[1-999]` cites no thousand passages."""


class _Found(NamedTuple):
    start: int
    end: int
    numbers: Sequence[int]


def _found(text: str, passages: int) -> list[_Found]:
    code = _code_spans(text)
    found = [_Found(m.start(), m.end(), _numbers(m["a"] or m["b"] or m["c"])) for m in _markers(text)]
    found += [_Found(m.start(), m.end(), numbers) for m, numbers in _raised(text, passages)]
    return sorted(f for f in found if not any(start <= f.start < end for start, end in code))


def _code_spans(text: str) -> list[tuple[int, int]]:
    spans = [match.span() for match in _CODE.finditer(text)]
    for fence in _OPEN_FENCE.finditer(text):
        if not any(start <= fence.start() < end for start, end in spans):
            spans.append((fence.start(), len(text)))  # an answer that breaks off in a code block
            break
    return spans


def _markers(text: str) -> Iterator[re.Match[str]]:
    for match in _BRACKETED.finditer(text):
        if not _is_index(text, match) and not _is_interval(match):
            yield match


def _is_index(text: str, match: re.Match[str]) -> bool:
    """`rows[0].id`, `a[1]`, `x_y[2]`; and `items[0]`, unless a sentence ends there."""
    before = text[max(0, match.start() - 40) : match.start()]
    if not before or not (before[-1].isalnum() or before[-1] in "_])") or match[0][0] != "[":
        return False
    after = text[match.end() : match.end() + 2]
    if re.match(r"[.(\[]?[A-Za-z_]|\(|\s?=(?!=)", after) and not after[:1].isspace() and after[:1] != "[":
        return True
    if _CODE_WORD.search(before):
        return True
    return match["b"] is not None and match["b"].strip() == "0" and after[:1].isspace() and before[-1].isalnum()


def _is_interval(match: re.Match[str]) -> bool:
    inner = match["b"] or ""
    return inner.lstrip().startswith("0") and len(re.findall(r"\d+", inner)) > 1


def _raised(text: str, passages: int) -> Iterator[tuple[re.Match[str], list[int]]]:
    """Superscripts that can be nothing else: those that resolve, as one number or digit by digit, behind no unit."""
    for match in _RAISED.finditer(text):
        digits = unicodedata.normalize("NFKC", match[0])
        whole, each = int(digits), [int(digit) for digit in digits]
        if not _UNITS.search(text, max(0, match.start() - 10), match.start()):
            if 1 <= whole <= passages:
                yield match, [whole]
            elif all(1 <= number <= passages for number in each):
                yield match, each


def _numbers(inner: str) -> list[int]:
    inner = unicodedata.normalize("NFKC", inner.partition("†")[0])
    numbers: list[int] = []
    for first, dash, last in _PART.findall(inner):
        low, high = int(first), int(last or first)
        if dash and low <= high:
            numbers += range(low, min(high, low + MOST_IN_RANGE) + 1)
        else:
            numbers += [low, high] if dash else [low]
    return numbers
