"""Sentences of Markdown, with their exact places."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from whimbrel.ingest.blocks import Block, Kind, blocks

LONGEST = 600
"""Characters; a longer run without a full stop comes as several sentences, cut at a line or between words."""


class Sentence(NamedTuple):
    """`[start, end)` of the text it was found in, without Markdown's markers of lists, quotes and table cells."""

    start: int
    end: int
    kind: Kind
    """`TEXT` and `ITEM` are sentences, `TABLE` is a row; `CODE` is a whole block, with its fences."""
    block: int
    """Which block of the text it is in; sentences of one paragraph or list item share it."""
    heading: str
    """The nearest heading before it in this text; empty without one."""


def sentences(text: str) -> list[Sentence]:
    """The sentences, table rows and code blocks of `text`, ascending, none empty, none overlapping.

    Headings, front matter and lines without a letter or digit are left out.
    """
    found: list[Sentence] = []
    heading = ""
    for number, block in enumerate(blocks(text)):
        if block.kind is Kind.HEADING:
            heading = plain(text[block.start : block.end].strip("#=- \t\n"))
        elif not text.startswith("---\n", block.start):
            found += (Sentence(start, end, block.kind, number, heading) for start, end in _spans(text, block))
    return found


def plain(text: str) -> str:
    """One line to read: links by their text, no emphasis, no footnote numbers, whitespace collapsed.

    Code keeps its backticks, and a code block its lines. Numbers in brackets go, because in an answer they cite.
    """
    parts = _FENCED.split(text)
    parts[::2] = [_plain_prose(part) for part in parts[::2]]
    return "\n".join(part for part in parts if part)


# --- spans -----------------------------------------------------------------------------------------------------------

_MARKERS = re.compile(r"(?:[\s>]|#{1,6}[ \t]|[-*+•][ \t]+(?:\[[ xX]\][ \t])?|\d{1,9}[.)][ \t])*")
_CELL_BORDER = re.compile(r"[\s|]*")
_QUOTED_BREAK = re.compile(r"\n(?=[ \t]*>[> \t]*(?:\n|(?:[-*+•]|\d{1,9}[.)])[ \t]))")
"""Inside a block quote: an empty line, or a list item."""

_CLOSERS = "[\"'”’»)\\]*_`」』）》】]*"
_STOP = re.compile(rf"[.!?…؟।॥።]+{_CLOSERS}(?:\[\^?\w{{1,4}}\])*(?=\s)|[。！？｡]+{_CLOSERS}|{_QUOTED_BREAK.pattern}")
_LINE = re.compile(r"[^\n]+")
_WORD_BEFORE = re.compile(r"[^\s([\"'“‘*_]+\Z")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_OPENERS = re.compile(r"(?:The|This|That|These|It|They|He|She|We|You|In|On|At|But|If|When|As|For|A|An|After)\b")
_ABBREVIATION = re.compile(
    r"mr|mrs|ms|dr|prof|st|sr|jr|vs|etc|e\.g|i\.e|eg|ie|cf|al|figs?|eq|sec|nos?|vol|pp?|eds?|ca|approx|inc|ltd|co|corp|dept"
    r"|est|gen|gov|rev|sen|capt|lt|col|art|ch|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mt|ft|usw|z\.b|bzw|nr|bd|sig"
    r"|mme|mlle|env",
    re.IGNORECASE,
)


def _spans(text: str, block: Block) -> Iterator[tuple[int, int]]:
    if block.kind is Kind.CODE:
        if _has_words(text, block.start, block.end):
            yield block.start, block.end
        return
    pieces: Iterator[tuple[int, int]]
    if block.kind is Kind.TABLE:
        pieces = (row.span() for row in _LINE.finditer(text, block.start, block.end))
    else:
        pieces = _stopped(text, block.start, block.end)
    for start, end in pieces:
        for left, right in _shortened(text, start, end, block.kind):
            if _has_words(text, left, right):
                yield left, right


def _stopped(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """From stop to stop; a line break alone ends nothing, because paragraphs may be hard-wrapped."""
    for stop in _STOP.finditer(text, start, end):
        if _ends_sentence(text, start, stop, end):
            yield start, stop.end()
            start = stop.end()
    yield start, end


def _ends_sentence(text: str, start: int, stop: re.Match[str], end: int) -> bool:
    """False at "e.g. this", "Dr. No", "J. Smith", "3. Third" and before a word in lower case."""
    if text[stop.start()] in "\n。！？｡":
        return True
    if not (following := text[stop.end() : min(stop.end() + 40, end)].lstrip(" \t\n>\"'“‘(*_")):
        return True
    if following[0].islower():
        return False
    if stop[0][0] != "." or stop[0].startswith(".."):
        return True
    word = _WORD_BEFORE.search(text[max(start, stop.start() - 12) : stop.start()])
    if word is None:
        return True
    if _ABBREVIATION.fullmatch(word[0]) or (word[0].isdecimal() and text[start : stop.start()].strip() == word[0]):
        return False
    return _INITIALS.fullmatch(word[0]) is None or _OPENERS.match(following) is not None


def _trimmed(text: str, start: int, end: int, kind: Kind) -> tuple[int, int]:
    """Without the markers before it, and without whitespace, cell borders or empty quote lines at its end."""
    marked = (_CELL_BORDER if kind is Kind.TABLE else _MARKERS).match(text, start, end)
    start = marked.end() if marked else start
    body = text[start:end].rstrip(" \t\n|") if kind is Kind.TABLE else text[start:end].rstrip()
    while body.endswith(">"):
        above, newline, line = body.rpartition("\n")
        if not newline or line.strip("> \t"):
            break
        body = above.rstrip()
    return start, start + len(body)


def _shortened(text: str, start: int, end: int, kind: Kind) -> Iterator[tuple[int, int]]:
    start, end = _trimmed(text, start, end, kind)
    while end - start > LONGEST:
        half = start + LONGEST // 2
        cut = text.rfind("\n", half, start + LONGEST)
        if cut < 0:
            cut = next((i for i in range(start + LONGEST, half, -1) if text[i].isspace()), start + LONGEST)
        yield _trimmed(text, start, cut, kind)
        start, end = _trimmed(text, cut, end, kind)
    yield start, end


def _has_words(text: str, start: int, end: int) -> bool:
    return any(char.isalnum() for char in _IMAGE.sub("", text[start:end]))


# --- reading ---------------------------------------------------------------------------------------------------------

_FENCED = re.compile(r"(^[ \t]*(?:```|~~~)[^\n]*\n(?:[^\n]*\n)*?[ \t]*(?:```|~~~)[ \t]*$)", re.MULTILINE)
_CODE = re.compile(r"(`+[^`]+`+)")
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\[\]]*)\](?:\([^()\s]*(?:\([^()]*\)[^()\s]*)?(?:\s+\"[^\"]*\")?\)|\[[^\[\]]*\])")
_STRONG = re.compile(r"(\*\*|__|~~)(?=\S)(.+?)(?<=\S)\1", re.DOTALL)
_EMPHASIS = re.compile(r"(?<![\w*])([*_])(?=[^\s*_])([^*_]*[^\s*_])\1(?![\w*])")
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
_FOOTNOTE = re.compile(r"\s?\[\^?\d{1,3}\]")
_NEXT_ITEM = re.compile(r"(?<![.;:,!?\s])\s*\n[\s>]*(?:[-*+•]|\d{1,9}[.)])[ \t]+")
_LINE_START = re.compile(r"\n[ \t>]*(?:(?:[-*+•]|\d{1,9}[.)])[ \t])?")


def _plain_prose(text: str) -> str:
    parts = _CODE.split(_LINE_START.sub("\n", _NEXT_ITEM.sub("; ", text)))
    for i in range(0, len(parts), 2):
        part = _LINK.sub(r"\1", _IMAGE.sub("", parts[i]))
        part = _EMPHASIS.sub(r"\2", _STRONG.sub(r"\2", part))
        parts[i] = _FOOTNOTE.sub("", _ESCAPE.sub(r"\1", part).replace("<br>", " "))
    return " ".join("".join(parts).split())
