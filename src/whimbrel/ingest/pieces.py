"""Places where a block may be cut: its sentences, lines and words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from whimbrel.ingest.blocks import Block, Kind, Strength, inside_word


class Cut(NamedTuple):
    """A span between two boundaries; the span before it ends at or before its start."""

    start: int
    end: int
    before: Strength


_SHORT_ITEM = 400
_STOP = re.compile("[.!?…]+[\"'”’»)\\]*_]*(?=\\s)|[。！？｡؟।]+[」』”’）)]*|\n")
_ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "sr",
        "jr",
        "vs",
        "etc",
        "e.g",
        "i.e",
        "eg",
        "ie",
        "cf",
        "al",
        "fig",
        "eq",
        "sec",
        "no",
        "nos",
        "vol",
        "pp",
        "ca",
        "approx",
        "inc",
        "ltd",
        "co",
        "corp",
        "dept",
    ]
)
_LINE = re.compile(r"[^\n]*\S[^\n]*")
_WORD = re.compile(r"\S+")


def cuts(text: str, block: Block) -> Iterator[Cut]:
    """The pieces of a block that a chunk takes whole: sentences and lines of prose; a list item, a code block and a
    table are one each."""
    prose = block.kind is Kind.TEXT or (block.kind is Kind.ITEM and block.end - block.start > _SHORT_ITEM)
    if not prose:
        yield Cut(block.start, block.end, block.before)
        return
    start, before = block.start, block.before
    for stop in _STOP.finditer(text, block.start, block.end):
        strength = _strength_of(text, stop, block.end)
        if strength is None:
            continue
        end = stop.end()
        yield Cut(start, end, before)
        start, before = end, strength
    if start < block.end:
        yield Cut(start, block.end, before)


def lines(text: str, start: int, end: int, before: Strength, kind: Kind) -> Iterator[Cut]:
    """The lines with something in them; a blank line before one makes a stronger boundary."""
    between = Strength.ROW if kind in (Kind.CODE, Kind.TABLE) else Strength.LINE
    last = start
    for line in _LINE.finditer(text, start, end):
        yield Cut(line.start(), line.end(), before)
        last = line.end()
        before = Strength.GROUP if _BLANK.match(text, last, end) else between
    if last == start:
        yield Cut(start, end, before)


_BLANK = re.compile(r"\n[^\S\n]*\n")


def words(text: str, start: int, end: int, before: Strength) -> Iterator[Cut]:
    """Runs without whitespace."""
    for word in _WORD.finditer(text, start, end):
        yield Cut(word.start(), word.end(), before)
        before = Strength.WORD


def halves(text: str, start: int, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """A word of two characters or more in two, no mark parted from its letter where that can be helped."""
    middle = inside_word(text, (start + end) // 2)
    if middle <= start:
        middle = (start + end) // 2
    return (start, middle), (middle, end)


def _strength_of(text: str, stop: re.Match[str], end: int) -> Strength | None:
    """Of the boundary after `stop`; None where it ends nothing: at "e.g. ", before a lower-case word."""
    first = text[stop.start()]
    if first == "\n":
        ended = stop.start() > 0 and text[stop.start() - 1] in '.!?…:"”)'
        return Strength.SENTENCE if ended else Strength.LINE
    if first == ".":
        place = stop.end()
        while place < end and text[place].isspace():
            place += 1
        if place < end and text[place].islower():
            return None
        word = text[max(stop.start() - 8, 0) : stop.start()].split()
        if word and stop.end() - stop.start() == 1:
            last = word[-1].lstrip("([\"'“‘*_").lower()
            if last in _ABBREVIATIONS or (len(last) == 1 and last.isalpha()) or (last.isdecimal() and len(word) == 1):
                return None
    return Strength.SENTENCE
