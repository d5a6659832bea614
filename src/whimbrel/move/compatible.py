"""Whether a model may serve a space that it did not make: its vectors of probe texts, held against those of record.

| | at least |
|---|---|
| mean cosine of the probes' vectors | 0.98 |
| lowest cosine | 0.90 |
| of the ten nearest chunks to a probe, by either model, those in common | 0.80 |

all-MiniLM-L6-v2 in int8 per channel against fp32 has a mean of 0.993; quantised per tensor it drifts to 0.936, and is
refused. Only models of as many dimensions can be compared, and other models of as many fall far below.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.catalog import conversations, rows, sizes
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import EmbedKind, Space
from whimbrel.errors import Conflict, SpaceMismatch
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.shortening import reads_whole, shortened
from whimbrel.move.recall import ExactSearch

PROBES = 100
"""Chunks, from all over the collection, whose vectors of record are compared."""
QUESTIONS = 50
"""The last ones of stored conversations."""
LEAST_PROBES = 5
MEAN, LOWEST, OVERLAP = 0.98, 0.90, 0.80
K = 10
BLOCK = 5_000

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Probed:
    """What was measured."""

    chunks: int
    questions: int
    """Embedded by both models; 0 where the space's own one is not here."""
    mean: float
    lowest: float
    overlap: float
    """Mean share of the ten nearest chunks that both models' vectors have in common."""
    longer: int = 0
    """Chunks that are longer than the model reads, as those of other programs may be. They were left out; cut where
    there were too few others, as the program that made their vectors will have had them cut."""

    @property
    def said(self) -> list[str]:
        """What falls short of what is wanted."""
        found = [("mean cosine", self.mean, MEAN), ("lowest cosine", self.lowest, LOWEST)]
        found.append((f"overlap of the nearest {K}", self.overlap, OVERLAP))
        return [f"{name} {value:.4f}, at least {least:g} is wanted" for name, value, least in found if value < least]

    def as_dict(self) -> dict[str, Any]:
        return {
            "chunks": self.chunks,
            "questions": self.questions,
            "mean_cosine": round(self.mean, 5),
            "lowest_cosine": round(self.lowest, 5),
            f"overlap@{K}": round(self.overlap, 4),
            "longer_than_the_model_reads": self.longer,
            "wanted": {"mean_cosine": MEAN, "lowest_cosine": LOWEST, f"overlap@{K}": OVERLAP},
        }


def check_spaces(space: Space, serving: Space, other: Space, embedder: str) -> None:
    """`serving`: of the model that serves `space` now. Raises `SpaceMismatch` for a model whose vectors can never be
    compared with those of a space, `Conflict` for the one that serves it."""
    if serving.key == other.key:
        raise Conflict(f"{embedder!r} serves these vectors already: there is nothing to declare.")
    if (space.dimensions, space.normalised) != (other.dimensions, other.normalised):
        said = f"{other.dimensions:,} dimensions" if space.dimensions != other.dimensions else "another length"
        raise SpaceMismatch(
            f"{embedder!r} makes vectors of {said}; those of the collection are of {space.model}, {space.dimensions:,} "
            "dimensions. They can never be compared. Nothing was changed.",
            "Move the collection: `whimbrel move start --embedder`, without --compatible, embeds it anew.",
        )


def check_probed(probed: Probed, embedder: str) -> None:
    """Raises `SpaceMismatch` where what was measured is not good enough."""
    if probed.said:
        raise SpaceMismatch(
            f"{embedder!r} cannot serve this space: {'; '.join(probed.said)} "
            f"(by {probed.chunks} chunks and {probed.questions} questions). Nothing was changed.",
            "Move the collection: `whimbrel move start --embedder`, without --compatible, embeds it anew.",
        )


def check_quality(found: Mapping[str, Any], min_ndcg: float, embedder: str) -> None:
    """Raises `SpaceMismatch` where hybrid search for judged queries finds less well than was asked for."""
    reached = found["modes"]["hybrid"]["ndcg@10"]
    if reached["after"] < min_ndcg:
        raise SpaceMismatch(
            f"{embedder!r} cannot serve this space: by {found['queries']:,} judged queries its nDCG@10 is "
            f"{reached['after']:.4f} ({reached['before']:.4f} now); at least {min_ndcg:g} was asked for. Nothing was "
            "changed.",
            "Move the collection: `whimbrel move start --embedder`, without --compatible, embeds it anew.",
        )


async def probe(catalog: Catalog, row: ViewRow, embedder: Embedder, own: Embedder | None) -> Probed:
    """Compare a model with the space of a store view. `own`: the space's model; None where it is not here.

    Raises `Conflict` where the collection is too small to tell, and what the models raise.
    """
    texts, before = await asyncio.to_thread(_chunks, catalog, row)
    if len(texts) < LEAST_PROBES:
        raise Conflict(
            f"The collection has {len(texts)} chunks with a vector: too few to compare models by. Nothing was changed.",
            "Ingest its documents first, or move it to the other model: so few are embedded at once.",
        )
    readable = [row for row, text in enumerate(texts) if reads_whole(embedder, text)]
    cut = len(texts) - len(readable)
    if len(readable) >= LEAST_PROBES:
        texts, before = [texts[row] for row in readable], before[readable]
    after = await embedder.embed([shortened(embedder, text) for text in texts], EmbedKind.DOCUMENT)
    questions = await asyncio.to_thread(_questions, catalog, row) if own is not None else []
    if own is not None and questions:
        before = np.concatenate([before, await own.embed(questions, EmbedKind.QUERY)])
        after = np.concatenate([after, await embedder.embed(questions, EmbedKind.QUERY)])
    cosines = _cosines(before, after)
    overlap = await asyncio.to_thread(_overlap, catalog, row, before, after)
    return Probed(len(texts), len(questions), float(cosines.mean()), float(cosines.min()), overlap, cut)


def _chunks(catalog: Catalog, row: ViewRow) -> tuple[list[str], Vectors]:
    """What the embedder was given, and the vectors of record, of chunks from all over; the same ones each time."""
    view = row.view
    with catalog.read() as connection:
        last = rows.max_chunk_key(connection, view.collection_id, view.chunking_id)
        places = sorted(random.Random(0).sample(range(last), min(PROBES, last)))
        where = (view.collection_id, view.chunking_id)
        near = (rows.next_keys(connection, *where, after=place, upto=last, limit=1) for place in places)
        keys = sorted({key for found in near for key in found})
        found, _, _ = rows.load_chunks(connection, keys, view.space_id)
        texts = sizes.embeddable(connection, found.keys.tolist())
    assert found.vectors is not None
    return texts, found.vectors


def _questions(catalog: Catalog, row: ViewRow) -> list[str]:
    with catalog.read() as connection:
        return conversations.recent_questions(connection, row.view.collection_id, QUESTIONS)


def _cosines(before: Vectors, after: Vectors) -> npt.NDArray[np.float64]:
    one, other = before.astype(np.float64), after.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines: npt.NDArray[np.float64] = np.sum(one * other, axis=1) / np.maximum(lengths, 1e-30)
    return cosines


def _overlap(catalog: Catalog, row: ViewRow, before: Vectors, after: Vectors) -> float:
    """By exact search among the vectors of record. A probe's own chunk, the nearest to both, does not count."""
    count = len(before)
    exact = ExactSearch(np.concatenate([before, after]), K + 1)
    view = row.view
    with catalog.read() as connection:
        last = rows.max_chunk_key(connection, view.collection_id, view.chunking_id)
        reached = 0
        while keys := rows.next_keys(
            connection, view.collection_id, view.chunking_id, after=reached, upto=last, limit=BLOCK
        ):
            reached = keys[-1]
            exact.add(*rows.load_vectors(connection, keys, view.space_id))
    found = [ids for ids, _ in exact.best()]
    shares = [_share(one[1:], other[1:]) for one, other in zip(found[:count], found[count:], strict=True)]
    return float(np.mean(shares))


def _share(one: Sequence[str], other: Sequence[str]) -> float:
    return len(set(one) & set(other)) / max(len(one), len(other), 1)
