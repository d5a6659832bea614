"""What the embedder reads before a chunk's text: the path of headings above it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_LONGEST_HEADING = 200
"""Characters. What is longer is a paragraph that something upstream took for a heading."""
_KEPT = 1_024


class Contexts:
    """Makes and counts contexts of at most `most` tokens."""

    def __init__(self, count: Callable[[str], int], most: int) -> None:
        self._count = count
        self._most = most
        self._tokens: dict[str, int] = {}

    def path(self, names: Sequence[str]) -> str:
        """`Guide > Install > Linux`; the outer headings go first where that is too long, then the end of the last."""
        kept = [name for place, name in enumerate(names) if name and name.casefold() not in _folded(names[:place])]
        while kept:
            path = " > ".join(kept)
            if self.tokens(path) <= self._most:
                return path
            if len(kept) > 1:
                kept = kept[1:]
            else:
                words = kept[0].split(" ")
                kept = [" ".join(words[: len(words) * 2 // 3])] if len(words) > 1 else []
        return ""

    def with_header(self, path: str, header: str) -> str:
        """The path and, where it fits, the header row of the table that a chunk continues."""
        both = f"{path}\n{header}" if path else header
        return both if self.tokens(both) <= self._most else path

    def tokens(self, context: str) -> int:
        if not context:
            return 0
        if context not in self._tokens:
            if len(self._tokens) >= _KEPT:
                self._tokens.clear()
            self._tokens[context] = self._count(context)
        return self._tokens[context]


_MARKS = re.compile(r"!?\[([^\]\[]{0,200})\]\([^()\s]{0,500}\)|<[^<>]{1,100}>|\{#[^{}]{1,100}\}")
_HASHES = re.compile(r"^\s*#{1,6}\s+|\s+#+\s*$|^\s*=(?: ?=){0,5} ?(?=\S.*=\s*$)|(?<=\S) ?=(?: ?=){0,5}\s*$")


def plain_heading(line: str) -> str:
    """A heading without its Markdown: no hashes, emphasis, code marks, links or anchors; at most 200 characters."""
    text = _HASHES.sub("", line.strip().split("\n", 1)[0])
    text = _MARKS.sub(lambda match: match[1] or "", text).replace("`", "").replace("**", "").replace("__", "")
    return " ".join(text.strip("*# \t").split())[:_LONGEST_HEADING].strip()


def _folded(names: Sequence[str]) -> set[str]:
    return {name.casefold() for name in names}
