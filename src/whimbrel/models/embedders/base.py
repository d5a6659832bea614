"""The embedder port."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.domain import EmbedKind, Space


class Embedder(ABC):
    """Turns texts into vectors of one space."""

    @property
    @abstractmethod
    def space(self) -> Space: ...

    @abstractmethod
    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        """float32[len(texts), space.dimensions], in the order of `texts`.

        The same text gives the same vector, whatever else is in the batch or runs beside it. Raises `TextRefused` for
        a text that the model cannot read whole, `ModelError` when the model cannot answer.
        """

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """Tokens that the model would read for `text`, special tokens included."""

    def reads(self, text: str) -> float:
        """0..1: how far the model's vocabulary has words for `text`; 1 where that cannot be told. A text in a language
        that it has no words for gets a vector that says little of its meaning."""
        return 1.0

    @property
    @abstractmethod
    def tokenizer(self) -> Path:
        """A `tokenizer.json` whose tokens `count_tokens` counts; chunks are measured with it in other processes."""

    async def close(self) -> None:
        """Release what the model holds."""
