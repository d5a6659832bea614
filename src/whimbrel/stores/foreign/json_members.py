"""The members of objects in a JSON file, one after the other, however large the file is: in memory is one at a time.

A file's outermost value is an object, whose own members are objects: `{"section": {"name": value, ...}, ...}`. Each
value is decoded by `json`; where it lies in the file is told with it, so that it can be read again alone.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from whimbrel.errors import HomeError, NotFound, ViewDamaged

_PIECE = 1 << 20
_BLANK = re.compile(r"[ \t\n\r]*")
_AFTER = ",:}] \t\n\r"
_decode = json.JSONDecoder().raw_decode


@dataclass(frozen=True, slots=True)
class Span:
    """Of a value, in bytes of its file."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Member:
    section: str
    name: str
    value: Any
    span: Span


def members(path: Path) -> Iterator[Member]:
    """Those of every section that is an object, in the order of the file; other sections are skipped.

    Raises `NotFound`, `ViewDamaged` for what is no such JSON, or ends within it.
    """
    try:
        with path.open("rb") as file:
            yield from _Reader(file, path).sections()
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {path}.", "Check the path.") from error
    except OSError as error:
        raise HomeError(f"{path} cannot be read: {error.strerror}.", "Check its owner and permissions.") from error


class _Reader:
    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._mark = 0
        self._offset = 0
        """Of the character at `_mark`, in bytes of the file."""
        self._ended = False

    def sections(self) -> Iterator[Member]:
        """Raises `ViewDamaged`."""
        self._take("{")
        if self._next() == "}":
            return
        while True:
            section = self._name()
            if self._next() == "{":
                yield from self._members(section)
            else:
                self._value()
            if not self._more():
                return

    def _members(self, section: str) -> Iterator[Member]:
        self._take("{")
        if self._next() == "}":
            self._take("}")
            return
        while True:
            name = self._name()
            self._next()
            value, span = self._value()
            yield Member(section, name, value, span)
            if not self._more():
                return

    # --- tokens ------------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        self._next()
        name, _ = self._value()
        if not isinstance(name, str):
            raise self._broken("a name is no string")
        self._take(":")
        return name

    def _more(self) -> bool:
        """Whether another member follows; past the comma, or past the end of the object."""
        found = self._next()
        if found not in (",", "}"):
            raise self._broken("a comma is missing")
        self._at += 1
        return found == ","

    def _take(self, token: str) -> None:
        if self._next() != token:
            raise self._broken(f"{token!r} is missing")
        self._at += 1

    def _next(self) -> str:
        """The next character that is not blank; it is not taken."""
        while True:
            match = _BLANK.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                raise self._broken("it ends in the middle")

    def _value(self) -> tuple[Any, Span]:
        while True:
            try:
                value, end = _decode(self._text, self._at)
                # A number may go on in what was not read yet: `1.` is one that is followed by a dot.
                whole = end < len(self._text) and self._text[end] in _AFTER
            except (ValueError, RecursionError) as error:
                whole = False
                if self._ended:
                    raise self._broken("a value is no JSON") from error
            if whole or self._ended:
                break
            # Twice as much each time: a value that is longer than what is read at once is not decoded over and over.
            self._read(len(self._text) - self._at)
        start = self._offset + _bytes(self._text, self._mark, self._at)
        span = Span(start, _bytes(self._text, self._at, end))
        self._mark = self._at = end
        self._offset = span.start + span.length
        return value, span

    def _read(self, least: int = 0) -> bool:
        piece = self._file.read(max(_PIECE, least))
        try:
            self._text = self._text[self._mark :] + self._utf8.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise self._broken("it is not UTF-8") from error
        self._at, self._mark, self._ended = self._at - self._mark, 0, not piece
        return bool(piece)

    def _broken(self, why: str) -> ViewDamaged:
        return ViewDamaged(f"{self._path} cannot be read: {why}.", "Write it anew with the program that made it.")


def _bytes(text: str, start: int, end: int) -> int:
    part = text[start:end]
    return len(part) if part.isascii() else len(part.encode())


def read_value(file: IO[bytes], span: Span) -> Any:
    """The value that `members` told of there. Raises ValueError where the file has been changed."""
    file.seek(span.start)
    return json.loads(file.read(span.length))
