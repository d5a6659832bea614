"""Markdown cut into blocks, in one pass, without copying the document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple
from unicodedata import category

MAX_BLOCK = 16_384
"""Characters. A longer paragraph, code block or table comes as several blocks, so that memory does not follow the
longest line of a document."""

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
_SETEXT = re.compile(r" {0,3}(?:=+|-{2,})[ \t]*$")
_ITEM = re.compile(r"[ \t]*(?:[-*+•]|\d{1,9}[.)])[ \t]")
_FENCE = re.compile(r"[ \t]*(`{3,}(?=[^`]*$)|~{3,})")
_FRONT_MATTER = re.compile(r"---[ \t]*\n(?:[^\n]*\n){1,64}?---[ \t]*(?:\n|$)")
_WIKI = re.compile(r" {0,1}(?P<marks>=(?: ?=){0,5}) ?(?P<name>[^\s=](?:[^\n]*[^\s=])?) ?(?P=marks)[ \t]*$")
"""`== Name ==`, and `= = Name = =` as collections of articles write it."""
_LONG_LINE = 100
_SHORT_LINE = re.compile(r"(?=.{3,80}$)[A-Z0-9][^\n|]*[^\s.!?:;,|]$")
_RULE = re.compile(r" {0,3}(?:-{3,}|\*{3,}|_{3,}|(?:- ){2,}-|(?:\* ){2,}\*)[ \t]*$")


class Kind(IntEnum):
    HEADING = 0
    TEXT = 1
    ITEM = 2
    CODE = 3
    TABLE = 4


class Strength(IntEnum):
    """How good a place is to end one chunk and begin the next; higher is better."""

    INSIDE = 0
    """Inside a word: only where one word is longer than a chunk may be."""
    GLUE = 1
    """After a heading, or after "as follows:"."""
    WORD = 2
    LINE = 3
    SENTENCE = 4
    ROW = 5
    """A line of code, a row of a table."""
    ITEM = 6
    GROUP = 7
    """A blank line inside code."""
    BLOCK = 8
    SECTION = 9


class Block(NamedTuple):
    kind: Kind
    start: int
    end: int
    before: Strength
    """The boundary before this block."""
    level: int = 0
    """1 to 6 for a heading."""
    head: tuple[int, int] | None = None
    """Where the header row of a table is; also on the parts of a long table."""


def blocks(text: str) -> Iterator[Block]:
    """The blocks of `text`, ascending, without gaps other than whitespace."""
    return _Scanner(text).run()


class _Scanner:
    """A line-by-line state machine. `start` is -1 where no block is open."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.kind = Kind.TEXT
        self.start = -1
        self.end = -1
        self.lines = 0
        self.before = Strength.BLOCK
        self.fence = ""
        self.head: tuple[int, int] | None = None
        self.in_list = False

    def run(self) -> Iterator[Block]:
        text, size, pos = self.text, len(self.text), 0
        if front := _FRONT_MATTER.match(text):
            yield Block(Kind.TEXT, 0, front.end(), Strength.BLOCK)
            pos = front.end()
        while pos < size:
            newline = text.find("\n", pos)
            eol = size if newline < 0 else newline
            if eol - pos > MAX_BLOCK:
                yield from self._long_line(pos, eol)
            elif self.fence:
                yield from self._fenced(pos, eol)
            else:
                yield from self._line(pos, eol)
            pos = eol + 1
        yield from self._close()

    def _line(self, pos: int, eol: int) -> Iterator[Block]:
        line = self.text[pos:eol]
        body = line.lstrip()
        if not body:
            yield from self._close()
            return
        first = body[0]
        indent = len(line) - len(body)
        if first == "#" and (atx := _ATX.match(line)):
            yield from self._close()
            self.in_list = False
            yield Block(Kind.HEADING, pos, eol, Strength.SECTION, len(atx[1]))
        elif first in "`~" and (fence := _FENCE.match(line)):
            yield from self._close()
            self.fence = fence[1]
            self._open(Kind.CODE, pos, eol)
        elif first == "=" and (wiki := _WIKI.match(line)):
            yield from self._close()
            self.in_list = False
            yield Block(Kind.HEADING, pos, eol, Strength.SECTION, min(wiki["marks"].count("="), 6))
        elif self.start < 0 and indent == 0 and self._is_title(line, eol):
            self.in_list = False
            yield Block(Kind.HEADING, pos, eol, Strength.SECTION, 6)
        elif first == "|":
            if self.start < 0 or self.kind is not Kind.TABLE:
                yield from self._close()
                self._open(Kind.TABLE, pos, eol)
                self.head = (pos, eol)
            else:
                yield from self._extend(pos, eol, Strength.ROW)
        elif first in "=-" and self._is_setext(line):
            start, self.start = self.start, -1
            self.in_list = False
            yield Block(Kind.HEADING, start, eol, Strength.SECTION, 1 if first == "=" else 2)
        elif first in "-*_" and _RULE.match(line):
            yield from self._close()
            self._open(Kind.TEXT, pos, eol)
            yield from self._close()
        elif _ITEM.match(line) and (first in "-*+•1" or self.in_list or self.start < 0):
            yield from self._close()
            self._open(Kind.ITEM, pos, eol, Strength.ITEM if self.in_list else Strength.BLOCK)
            self.in_list = True
        elif self.start >= 0 and self.kind is not Kind.TABLE and not (self.kind is Kind.CODE and indent < 4):
            yield from self._extend(pos, eol, Strength.ROW if self.kind is Kind.CODE else Strength.LINE)
        else:
            yield from self._close()
            if indent >= 4 and not self.in_list:
                self._open(Kind.CODE, pos, eol)
            elif indent >= 2 and self.in_list:
                self._open(Kind.ITEM, pos, eol, Strength.ITEM)
            else:
                self.in_list = False
                self._open(Kind.TEXT, pos, eol)

    def _fenced(self, pos: int, eol: int) -> Iterator[Block]:
        body = self.text[pos:eol].strip()
        if body.startswith(self.fence) and not body.strip(self.fence[0]):
            self.end = eol
            if self.start < 0:
                self.start = pos
            self.fence = ""
            yield from self._close()
        elif self.start < 0:
            self._open(Kind.CODE, pos, eol, Strength.ROW)
        else:
            yield from self._extend(pos, eol, Strength.ROW)

    def _is_setext(self, line: str) -> bool:
        return (
            self.start >= 0
            and self.kind is Kind.TEXT
            and self.lines == 1
            and self.end - self.start <= 200
            and _SETEXT.match(line) is not None
        )

    def _is_title(self, line: str, eol: int) -> bool:
        """A short line right above one that goes on and on: the title of a paragraph, where nothing marks it as one."""
        if not 3 <= len(line) <= 80 or _SHORT_LINE.match(line) is None:
            return False
        return self.text.find("\n", eol + 1, eol + 1 + _LONG_LINE) < 0 and len(self.text) > eol + _LONG_LINE

    def _open(self, kind: Kind, pos: int, eol: int, before: Strength = Strength.BLOCK) -> None:
        self.kind, self.start, self.end, self.before, self.lines = kind, pos, eol, before, 1

    def _extend(self, pos: int, eol: int, between: Strength) -> Iterator[Block]:
        """Adds a line to the open block; one that would grow too long is handed on, and goes on as another block."""
        if eol - self.start <= MAX_BLOCK:
            self.end = eol
            self.lines += 1
            return
        kind, head = self.kind, self.head
        yield from self._close()
        self._open(kind, pos, eol, between)
        self.head = head
        self.lines = 2

    def _long_line(self, pos: int, eol: int) -> Iterator[Block]:
        kind = self.kind if self.start >= 0 or self.fence else Kind.TEXT
        before = Strength.LINE if self.start >= 0 else Strength.BLOCK
        head = self.head
        yield from self._close()
        while pos < eol:
            end, between = _cut(self.text, pos, eol)
            yield Block(kind, pos, end, before, 0, head if kind is Kind.TABLE else None)
            pos, before = end, between

    def _close(self) -> Iterator[Block]:
        if self.start >= 0:
            yield Block(self.kind, self.start, self.end, self.before, 0, self.head)
        self.start = -1
        self.head = None


def _cut(text: str, pos: int, eol: int) -> tuple[int, Strength]:
    """Where a line longer than a block is cut: after the last whitespace of its second half, else anywhere."""
    limit = pos + MAX_BLOCK
    if limit >= eol:
        return eol, Strength.LINE
    for place in range(limit, pos + MAX_BLOCK // 2, -1):
        if text[place - 1].isspace():
            return place, Strength.WORD
    return inside_word(text, limit), Strength.INSIDE


def inside_word(text: str, pos: int) -> int:
    """The nearest place at or before `pos` that separates no mark from its letter (at most 32 characters back)."""
    for place in range(pos, max(pos - 32, 0), -1):
        if place >= len(text) or not _joins(text, place):
            return place
    return pos


def _joins(text: str, place: int) -> bool:
    """Whether the character at `place` belongs to the one before it: a mark, a joiner, a skin tone."""
    char = text[place]
    return (
        char == "\u200d"
        or "\U0001f3fb" <= char <= "\U0001f3ff"
        or category(char)[0] == "M"
        or text[place - 1] == "\u200d"
    )
