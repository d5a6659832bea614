"""Sentence vectors for judging: what an embedder is asked, and how its cosines are read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whimbrel.errors import TextRefused

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Awaitable[Vectors]]
"""Short texts to float32[n, dimensions] of unit length."""

UNRELATED = (
    "The weather was cold and wet last week.",
    "She bought bread and two apples at the market.",
    "The committee will meet again on Thursday.",
    "He plays the violin in a small orchestra.",
    "The train to the coast leaves in the evening.",
    "Add the salt and stir until it boils.",
)
"""Sentences about nothing in particular: how near a text is to them is what "unrelated" means to an embedder."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The cosines of some texts and others, rescaled: 0 for unrelated texts, 1 for the same."""

    vectors: Mapping[str, npt.NDArray[np.float32]]
    unrelated: Vectors

    def knows(self, text: str) -> bool:
        """False for a text that the model could not read whole."""
        return text in self.vectors

    def between(self, vector: npt.NDArray[np.float32], others: Sequence[str]) -> list[float]:
        """One for each of `others`; 0 for a text that could not be read."""
        base = float((self.unrelated @ vector).mean())
        cosines = (float(self.vectors[text] @ vector) if text in self.vectors else base for text in others)
        return [(cosine - base) / max(1.0 - base, 1e-6) for cosine in cosines]


async def compared(texts: Sequence[str], embed: Embed) -> Compared:
    """Embed each of `texts` once. Those that the model refuses are left out, not cut. Raises `ModelError`."""
    wanted = list(dict.fromkeys([*UNRELATED, *texts]))
    try:
        vectors = await embed(wanted)
    except TextRefused as refused:
        if not refused.positions:
            raise
        wanted = [text for i, text in enumerate(wanted) if i not in refused.positions]
        vectors = await embed(wanted)
    by_text = dict(zip(wanted, np.asarray(vectors, np.float32), strict=True))
    return Compared(by_text, np.stack([by_text[text] for text in UNRELATED]))
