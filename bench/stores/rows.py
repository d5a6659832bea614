"""Rows to hold in a store: made from a seed, the same in every run."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from whimbrel.stores.base import DENSE, Records, Vectors

DIMENSIONS = 384
SITES = 100
YEAR = 2010
"""Half of the rows are of this year or a later one."""
_LATENT = 40
"""Directions that the vectors spread in: like those of a language model, they fill their space unevenly."""
_WORDS = (
    *("the", "whimbrel", "flies", "thousands", "of", "kilometres", "over", "water"),
    *("and", "comes", "back", "to", "the", "same", "shore"),
)


@dataclass(frozen=True)
class Rows:
    ids: list[str]
    vectors: Vectors
    texts: list[str]
    metadata: list[dict[str, object]]
    queries: Vectors
    batch: int = 5_000
    _at: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def records(self, start: int, end: int) -> Records:
        part = slice(start, end)
        return Records(self.ids[part], {DENSE: self.vectors[part]}, self.texts[part], self.metadata[part])

    def changed(self, number: int, count: int) -> Records:
        """A batch of which half is there already."""
        there = self.records(number * count, number * count + count // 2)
        ids = [_id(f"new {number} {i}") for i in range(count - count // 2)]
        rng = np.random.default_rng(1_000 + number)
        vectors = np.concatenate([there.vectors[DENSE], self.vectors[rng.integers(0, len(self), len(ids))]])
        metadata = [{**self.metadata[i], "site": "new", "year": 1990} for i in range(len(ids))]
        texts = [f"changed {text}" for text in there.texts] + self.texts[: len(ids)]
        return Records([*there.ids, *ids], {DENSE: vectors}, texts, [*there.metadata, *metadata])

    def query(self, number: int) -> npt.NDArray[np.float32]:
        return self.queries[number % len(self.queries)]

    def nearest(
        self, query: npt.NDArray[np.float32], k: int, *, site: str | None = None, year: int | None = None
    ) -> set[str]:
        """Ids of the k nearest of the rows that were written first."""
        passing = [
            row
            for row, about in enumerate(self.metadata)
            if (site is None or about["site"] == site) and (year is None or int(str(about["year"])) >= year)
        ]
        best = np.argsort(-(self.vectors[passing] @ query))[:k]
        return {self.ids[passing[row]] for row in best}


def make_rows(count: int) -> Rows:
    rng = np.random.default_rng(7)
    spread = rng.normal(size=(_LATENT, DIMENSIONS)) * np.linspace(1.0, 0.2, _LATENT)[:, None]
    vectors = _unit(rng.normal(size=(count, _LATENT)) @ spread + 0.1 * rng.normal(size=(count, DIMENSIONS)))
    queries = _unit(rng.normal(size=(500, _LATENT)) @ spread + 0.1 * rng.normal(size=(500, DIMENSIONS)))
    words = rng.integers(0, len(_WORDS), (count, 90))
    texts = [" ".join(_WORDS[word] for word in row)[:500] for row in words]
    metadata: list[dict[str, object]] = [
        {
            "site": f"docs{row % SITES}",
            "year": 1990 + row // 7 % 40,
            "title": f"Page {row // 10}",
            "draft": row % 3 == 0,
            "weight": row % 1_000 / 8,
        }
        for row in range(count)
    ]
    return Rows([_id(str(row)) for row in range(count)], vectors, texts, metadata, queries)


def _unit(vectors: npt.NDArray[np.float64]) -> Vectors:
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _id(seed: str) -> str:
    return blake2b(seed.encode(), digest_size=16).hexdigest()
