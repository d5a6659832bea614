"""The embedder of vectors whose model is not here: it says so to whoever asks it for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import SpaceMismatch
from whimbrel.models.embedders.base import Embedder

UNKNOWN = "none"
"""In the place of `provider:model`."""


class UnknownEmbedder(Embedder):
    """Texts are measured by another model's tokens."""

    def __init__(self, space: Space, measure: Embedder) -> None:
        self._space = space
        self._measure = measure

    @property
    def space(self) -> Space:
        return self._space

    @property
    def tokenizer(self) -> Path:
        return self._measure.tokenizer

    def count_tokens(self, text: str) -> int:
        return self._measure.count_tokens(text)

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        raise SpaceMismatch(
            f"The collection was adopted without the model that made its vectors ({self._space.dimensions:,} "
            "dimensions): it is searched by words.",
            "When the model is there: `whimbrel move start COLLECTION --embedder MODEL --compatible` measures that it "
            "fits. Any other model: the same without --compatible, which embeds the texts anew.",
        )
