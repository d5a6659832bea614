"""Whether an embedder is the one that made the vectors of a collection: a sample of its texts is embedded again.

| median cosine of stored and new vectors | |
|---|---|
| 0.999 and more | the embedder's own space |
| 0.99 to 0.999 | near, such as another numeric form: a space of its own, which the embedder is declared to serve |
| less | refused, with the figures and what comes nearer |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.domain import EmbedKind
from whimbrel.errors import BadInput, SpaceMismatch
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.shortening import reads_whole, shortened

SAMPLE = 32
"""Texts that are embedded."""
FEW = 5
"""Texts that the model reads whole, below which longer ones are cut and embedded too."""
VARIANTS = 8
"""Of them, those that are tried in other forms where the first did not fit."""
SAME, LEAST = 0.999, 0.99
KNOWN = {
    384: "all-MiniLM-L6-v2, bge-small, e5-small, gte-small",
    512: "openai text-embedding-3-small cut to 512, clip",
    768: "all-mpnet-base-v2, bge-base, e5-base, gte-base, nomic-embed-text",
    1024: "bge-m3, bge-large, e5-large, mxbai-embed-large, cohere embed-v3",
    1536: "openai text-embedding-ada-002, text-embedding-3-small",
    3072: "openai text-embedding-3-large",
}
"""Models that people use, by dimensions: a hint, not a rule."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fit:
    """How stored vectors compare with an embedder's."""

    texts: int
    median: float
    lowest: float
    cut: int = 0
    """Texts that are longer than the model reads, of the sample: they were cut before they were embedded again."""

    @property
    def same(self) -> bool:
        return self.median >= SAME

    def as_dict(self) -> dict[str, Any]:
        return {
            "texts": self.texts,
            "median_cosine": round(self.median, 5),
            "lowest_cosine": round(self.lowest, 5),
            "longer_than_the_model_reads": self.cut,
            "wanted": LEAST,
        }


def check_dimensions(dimensions: int, embedder: Embedder, spec: str, where: str) -> None:
    """Raises `SpaceMismatch` before a row is read."""
    space = embedder.space
    if space.dimensions != dimensions:
        raise SpaceMismatch(
            f"{where} has vectors of {dimensions:,} dimensions; {spec!r} makes {space.dimensions:,}. Nothing was "
            "adopted.",
            f"Name the model that made them: `--embedder`.{_guess(dimensions)} {WITHOUT}",
        )


WITHOUT = "`--embedder none` adopts it for search by words alone, with its vectors kept for a model that comes later."


async def check(
    embedder: Embedder,
    spec: str,
    texts: Sequence[str],
    titles: Sequence[str],
    vectors: Floats,
    where: str,
    others: Mapping[str, Sequence[str]],
) -> Fit:
    """`others`: what other fields hold, one value for each of `texts`.

    Raises `SpaceMismatch` where the median is below `LEAST`, `BadInput` where there is no text to tell by; and what
    the embedder raises."""
    chosen = [row for row, text in enumerate(texts) if text.strip()]
    if not chosen:
        raise BadInput(f"{where}: no row of the sample has a text to compare the embedder by. Nothing was adopted.")
    readable = [row for row in chosen if reads_whole(embedder, texts[row])]
    cut = len(chosen) - len(readable)
    rows = (readable if len(readable) >= FEW else chosen)[:SAMPLE]
    given = [shortened(embedder, texts[row]) for row in rows]
    cosines = _cosines(vectors[rows], await embedder.embed(given, EmbedKind.DOCUMENT))
    fit = Fit(len(rows), float(np.median(cosines)), float(cosines.min()), cut)
    if fit.median >= LEAST:
        return fit
    few = rows[:VARIANTS]
    fields = {name: [held[row] for row in few] for name, held in others.items()}
    nearer = await _nearer(embedder, [(texts[row], titles[row]) for row in few], vectors[few], fields)
    raise SpaceMismatch(
        f"{where}: {spec!r} did not make these vectors. Of {fit.texts} texts embedded again the median cosine to the "
        f"stored vector is {fit.median:.3f} (lowest {fit.lowest:.3f}); at least {LEAST} is wanted. Nothing was "
        "adopted.",
        f"{nearer}Name the model that made them: `--embedder`.{_guess(vectors.shape[1])} {WITHOUT}",
    )


async def _nearer(
    embedder: Embedder, pairs: Sequence[tuple[str, str]], vectors: Floats, fields: Mapping[str, Sequence[str]]
) -> str:
    """What else those vectors may have been made of by this model, in words; empty where nothing comes near."""
    forms = {
        "the text after its title": [f"{title}\n{text}" for text, title in pairs],
        "the text after `passage: `": [f"passage: {text}" for text, _ in pairs],
        "the text after `query: `": [f"query: {text}" for text, _ in pairs],
        "the text after `search_document: `": [f"search_document: {text}" for text, _ in pairs],
        "the text without line breaks": [" ".join(text.split()) for text, _ in pairs],
        "the first 512 characters of the text": [text[:512] for text, _ in pairs],
        "the title alone": [title or " " for _, title in pairs],
        **{f"the field {name!r}": list(held) for name, held in fields.items()},
    }
    found = {}
    for name, given in forms.items():
        some = [shortened(embedder, text or " ") for text in given]
        found[name] = float(np.median(_cosines(vectors, await embedder.embed(some, EmbedKind.DOCUMENT))))
    best = max(found, key=lambda name: found[name])
    if found[best] < 0.95:
        return ""
    said = f"They may be of {best} (median cosine {found[best]:.3f}): "
    is_field = best.startswith("the field ")
    return f"{said}{'name it with `--text-field`' if is_field else 'that cannot be adopted as it is'}. "


def _cosines(one: Floats, other: Floats) -> npt.NDArray[np.float64]:
    left, right = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: npt.NDArray[np.float64] = np.sum(left * right, axis=1) / np.maximum(lengths, 1e-30)
    return cosines


def _guess(dimensions: int) -> str:
    known = KNOWN.get(dimensions)
    return f" Of {dimensions:,} dimensions are, among others: {known}." if known else ""
