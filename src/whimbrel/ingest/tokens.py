"""Token counts of any span of a document, from one pass of the tokenizer over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.models.embedders.tokens import TextTokenizer

TokenSpans = Callable[[str], tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]
"""`text -> (starts, ends)`: int32[n] each, the character offsets of the text's tokens, without special tokens."""

PIECE = 16_384
"""Characters tokenised at a time. Measured on a WordPiece tokenizer: 16k pieces are 1.3 x as fast as 100k pieces."""


def load_token_spans(path: Path) -> TokenSpans:
    """The `token_spans` of a `tokenizer.json`, without loading any model. Raises `ModelError`."""
    return TextTokenizer(path).spans


class TokenCounter:
    """How many tokens start before a position of `text`. Positions are asked for in ascending windows, so that no more
    than the tokens of the current window are held."""

    def __init__(self, text: str, token_spans: TokenSpans) -> None:
        self._text = text
        self._token_spans = token_spans
        self._starts = np.empty(0, np.int64)
        """Starts of the tokens of the window, as offsets into the document."""
        self._before = 0
        """Tokens that start before the window."""
        self._covered = 0
        """The text is tokenised up to here."""

    def before(self, positions: Sequence[int]) -> list[int]:
        """For each position, the number of the document's tokens that start before it. `positions` ascend, and none
        lies before the first one of an earlier call."""
        wanted = np.asarray(positions, np.int64)
        self._forget(int(wanted[0]))
        self._cover(int(wanted[-1]))
        counts: list[int] = (np.searchsorted(self._starts, wanted) + self._before).tolist()
        return counts

    def count(self, text: str) -> int:
        """Tokens of a text of its own."""
        return len(self._token_spans(text)[0])

    def _forget(self, position: int) -> None:
        gone = int(np.searchsorted(self._starts, position))
        self._starts = self._starts[gone:]
        self._before += gone

    def _cover(self, position: int) -> None:
        found = [self._starts]
        while self._covered < position:
            end = self._piece_end(self._covered)
            starts, _ = self._token_spans(self._text[self._covered : end])
            found.append(starts.astype(np.int64) + self._covered)
            self._covered = end
        if len(found) > 1:
            self._starts = np.concatenate(found)

    def _piece_end(self, start: int) -> int:
        """After a newline of the piece's second half, else after a space, else anywhere."""
        limit = start + PIECE
        if limit >= len(self._text):
            return len(self._text)
        for mark in ("\n", " "):
            place = self._text.rfind(mark, start + PIECE // 2, limit)
            if place >= 0:
                return place + 1
        return limit
