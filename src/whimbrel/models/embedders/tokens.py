"""Texts to tokens, for a model that comes with a `tokenizer.json`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from whimbrel.errors import ModelError, TextRefused

if TYPE_CHECKING:
    from tokenizers import Encoding

PIECE = 8192
"""Characters read at once for spans. A tokenizer holds about 20 bytes for each character, and the interpreter's lock
while it reads (some 5 ms for this many)."""

FOREIGN, FAMILIAR = 2.0, 2.5
"""Letters to a token: what a vocabulary has hardly a word of comes in pieces of `FOREIGN` or fewer, what it has words
for in pieces of `FAMILIAR` or more. English questions have 4 to 6, German ones 2.8, to a vocabulary of English."""

_SYLLABLES = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
"""Letters that say as much as several of an alphabet."""

_SPACE = re.compile(r"\s")
_SURROGATE = re.compile("[\ud800-\udfff]")

Offsets = npt.NDArray[np.int32]


class TextTokenizer:
    """Reads whole texts: cutting and padding, if the file asks for them, are off. Safe to use from many threads.

    Only the one-text calls of the library are used: its batch calls start threads of their own beside ours, and warn
    when the process forks.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(f"{path} cannot be loaded: {error}", hint="Is it a tokenizers file?") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        model = self._tokenizer.model
        self._unknown = self._tokenizer.token_to_id(getattr(model, "unk_token", None) or "<unk>")
        self._special = int(self._tokenizer.num_special_tokens_to_add(is_pair=False))

    def count(self, text: str) -> int:
        """Tokens of `text`, special tokens included."""
        return len(self._encode(text)) + self._special

    def windows(self, text: str, size: int) -> list[npt.NDArray[np.int64]]:
        """The token ids of `text`, special tokens included: int64[n] with n <= `size` each.

        One array where the text fits, else the fewest that hold it, of nearly equal length, none overlapping.
        """
        encoding = self._encode(text)
        parts = -(-len(encoding) // (size - self._special))
        if parts > 1:
            encoding.truncate(-(-len(encoding) // parts))
        return [
            np.array(self._tokenizer.post_process(part).ids, dtype=np.int64)
            for part in (encoding, *encoding.overflowing)
        ]

    def parts(self, text: str, size: int) -> list[str]:
        """`text` in few parts of at most `size` tokens, special ones not counted, of nearly equal length; cut between
        words where that can be."""
        starts, _ = self.spans(text)
        words = [int(start) for start in starts if start == 0 or text[start - 1].isspace()]
        for places in (words, starts.tolist()):
            for count in range(-(-len(starts) // size), 2 * (-(-len(starts) // size)) + 1):
                cuts = [0, *(places[part * len(places) // count] for part in range(1, count)), len(text)]
                parts = [text[start:end] for start, end in pairwise(cuts)]
                if all(len(self._encode(part)) <= size for part in parts):
                    return parts
        raise TextRefused("The text cannot be cut into parts that the model reads.", "Put blanks between its words.")

    def familiar(self, text: str) -> float:
        """0..1: how far the vocabulary has words for `text`, by the letters to a token; 1 where there are no letters.

        What the vocabulary does not know at all has as many tokens as letters, and counts none of them. See
        `docs/decisions/0013`.
        """
        encoding = self._encode(text)
        letters, tokens, read = 0, 0, 0
        for (start, end), token in zip(encoding.offsets, encoding.ids, strict=True):
            new = [letter for letter in text[max(start, read) : end] if letter.isalpha()]
            if token == self._unknown:
                tokens += len(new)
            elif new or any(letter.isalpha() for letter in text[start:end]):
                tokens += 1
                letters += sum(3 if _SYLLABLES.match(letter) else 1 for letter in new)
            read = max(read, end)
        share = (letters / tokens - FOREIGN) / (FAMILIAR - FOREIGN) if tokens else 1.0
        return min(1.0, max(0.0, share))

    def total(self, windows: Sequence[npt.NDArray[np.int64]]) -> int:
        """As `count`, of a text's windows."""
        return sum(window.size - self._special for window in windows) + self._special

    def spans(self, text: str) -> tuple[Offsets, Offsets]:
        """(starts, ends) of the tokens in `text`, in characters; without special tokens."""
        parts = [self._piece_spans(text[start:end], start) for start, end in pieces(text)]
        pairs = np.concatenate(parts) if parts else np.empty((0, 2), np.int32)
        return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])

    def _piece_spans(self, text: str, start: int) -> Offsets:
        encoding = self._encode(text)
        flat = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int32, count=2 * len(encoding))
        return flat.reshape(-1, 2) + np.int32(start)

    def _encode(self, text: str) -> Encoding:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except TypeError:  # what the library says of a string that is not valid Unicode
            found = _SURROGATE.search(text)
            if found is None:
                raise
            raise TextRefused(
                f"The text holds half a character (a lone surrogate) at {found.start()}, which no model can read.",
                hint="Decode its bytes as UTF-8 with errors='replace'.",
            ) from None


def pieces(text: str) -> Iterator[tuple[int, int]]:
    """Spans that cover `text`, cut at white space after `PIECE` characters, or else after twice as many."""
    start = 0
    while start < len(text):
        end = start + 2 * PIECE
        space = _SPACE.search(text, start + PIECE, end)
        if space:
            end = space.start()
        end = min(end, len(text))
        yield start, end
        start = end
