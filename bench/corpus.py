"""Made-up prose that looks like text to an index, and vectors for it that look like embeddings. All from a seed.

Words are whole words of the embedder's vocabulary with Zipf's frequencies; a document draws a third of its words from
its topic. A chunk's vector is its topic's (a real embedding) with noise, of unit length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.catalog.documents import text_hash
from whimbrel.domain import EmbedKind, embedded_text
from whimbrel.ingest.chunk import Chunking, chunk
from whimbrel.ingest.extract import Limits, extract
from whimbrel.ingest.tokens import load_token_spans
from whimbrel.models.embedders.base import Embedder

CHUNKING = Chunking(tokens=112, overlap=12)
"""Makes chunks of about 500 characters of this prose."""
PARAGRAPHS = 10
WORDS = 84
TOPICS = 500
TOPIC_WORDS = 120
NOISE = 0.7
"""Length of the noise beside a topic's unit vector: two chunks of a topic then have a cosine of about 0.67."""


@dataclass(frozen=True, slots=True)
class Written:
    """The chunks that ingest will make of some documents."""

    hashes: list[bytes]
    """Of each chunk's embedded text."""
    topics: list[int]


@lru_cache(maxsize=1)
def vocabulary(tokenizer: Path) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(forms, cumulated Zipf weights, words of each topic). Forms: each word plain, capitalised, ending a sentence."""
    known = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    words = [word for word in known if word.isalpha() and word.isascii() and len(word) > 1]
    forms = np.array([*words, *(word.capitalize() for word in words), *(f"{word}." for word in words)], object)
    weights = 1 / np.arange(3, len(words) + 3)
    chosen = np.random.default_rng(1).integers(200, len(words), (TOPICS, TOPIC_WORDS))
    return forms, np.cumsum(weights) / weights.sum(), chosen


def document(tokenizer: Path, number: int) -> tuple[str, int]:
    """(Markdown, topic) of a document; always the same for the same number."""
    forms, cumulated, topics = vocabulary(tokenizer)
    random = np.random.default_rng([7, number])
    count = len(forms) // 3
    topic = int(random.integers(TOPICS))
    total = PARAGRAPHS * WORDS + 6
    words = np.searchsorted(cumulated, random.random(total))
    own = random.random(total) < 1 / 3
    words[own] = topics[topic][random.integers(0, TOPIC_WORDS, int(own.sum()))]
    words = np.minimum(words, count - 1)
    title, body = words[:6], words[6:].reshape(PARAGRAPHS, WORDS)
    body[:, ::12] += count
    body[:, 11::12] += 2 * count
    paragraphs = [" ".join(forms[line]) for line in body]
    return f"# {' '.join(forms[title])}\n\n" + "\n\n".join(paragraphs) + "\n", topic


def question(tokenizer: Path, number: int) -> str:
    """Seven words, four of them of one topic."""
    forms, cumulated, topics = vocabulary(tokenizer)
    random = np.random.default_rng([11, number])
    own = topics[random.integers(TOPICS)][random.integers(0, TOPIC_WORDS, 4)]
    others = np.searchsorted(cumulated, random.random(3))
    return " ".join(forms[[*own, *others]])


def write_files(folder: Path, tokenizer: Path, first: int, count: int) -> Iterator[Written]:
    """Write documents `first` and on as files under `folder`; yields, in parts, the chunks that they will become."""
    parts = [(folder, tokenizer, start, min(500, first + count - start)) for start in range(first, first + count, 500)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_write_part, parts)


def _write_part(part: tuple[Path, Path, int, int]) -> Written:
    folder, tokenizer, first, count = part
    token_spans = load_token_spans(tokenizer)
    place = folder / f"{first // 500:05d}"
    place.mkdir(parents=True, exist_ok=True)
    written = Written([], [])
    for number in range(first, first + count):
        text, topic = document(tokenizer, number)
        place.joinpath(f"{number:07d}.md").write_text(text, encoding="utf-8")
        found = extract(text.encode(), name=f"{number:07d}.md", limits=Limits())
        for span in chunk(found.text, CHUNKING, token_spans, title=found.title):
            written.hashes.append(text_hash(embedded_text(span.context, found.text[span.start : span.end])))
            written.topics.append(topic)
    return written


class Vectors:
    """Makes vectors as if the texts had been embedded."""

    def __init__(self, centres: npt.NDArray[np.float32]) -> None:
        self._centres = centres

    @classmethod
    async def of(cls, embedder: Embedder) -> Vectors:
        forms, _, topics = vocabulary(embedder.tokenizer)
        texts = [" ".join(forms[words[:40]]) for words in topics]
        return cls(await embedder.embed(texts, EmbedKind.DOCUMENT))

    def __call__(self, topics: Sequence[int], seed: int) -> npt.NDArray[np.float32]:
        """float32[len(topics), d], of unit length."""
        centres = self._centres[np.asarray(topics)]
        random = np.random.default_rng([13, seed])
        noise = random.standard_normal(centres.shape, dtype=np.float32) * (NOISE / np.sqrt(centres.shape[1]))
        mixed = centres + noise
        return np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True), np.float32)
