"""An answer that appears in the terminal while it is written, and is put right at its end."""

from __future__ import annotations

import math
import shutil
import sys
import unicodedata

from whimbrel.cli import out


class Writing:
    """Text that comes in parts, and what it is in the end: checked, or written by other means after a failure."""

    def __init__(self, *, live: bool) -> None:
        """`live`: show it as it comes; else only its end."""
        self._live = live
        self._written = ""

    def add(self, text: str) -> None:
        self._written += text
        if self._live:
            sys.stdout.write(out.shown(text))
            sys.stdout.flush()

    def end(self, answer: str) -> None:
        """`answer` takes the place of what was shown, where it differs."""
        if not (self._live and self._written):
            out.line(answer)
            return
        if answer.strip() == self._written.strip():
            out.line()
            return
        if not self._erased():
            out.line("\n")
            out.note("The checked answer, which counts:")
        out.line(answer)

    def _erased(self) -> bool:
        """Whether what was shown could be taken back: in a terminal, while it is still on the screen."""
        size = shutil.get_terminal_size()
        rows = sum(max(1, math.ceil(_columns(line) / size.columns)) for line in out.shown(self._written).split("\n"))
        if not sys.stdout.isatty() or rows >= size.lines:
            return False
        sys.stdout.write("\r" + (f"\x1b[{rows - 1}A" if rows > 1 else "") + "\x1b[J")
        return True


def _columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)
