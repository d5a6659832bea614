"""The built-in embedder by itself: how fast it loads, embeds and answers, and what it weighs.

    python bench/bare_embedder.py [--embedder SPEC] [--threads N]

Prints one JSON object. Texts are cut from $WHIMBREL_TEST_DATA/ir/nq_qed_dev, or else made of words, which the tokenizer
splits less. This is the rate that ingest is measured against.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import time
from pathlib import Path

from whimbrel.domain import EmbedKind
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.resolve import resolve_embedder

QUESTION = "how do I move all documents from one database to another"
RUNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure an embedder by itself.")
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    before = peak_memory()
    start = time.perf_counter()
    embedder = resolve_embedder(arguments.embedder, threads=arguments.threads)
    asyncio.run(embedder.embed([QUESTION], EmbedKind.QUERY))
    figures: dict[str, float] = {"load_seconds": time.perf_counter() - start}
    figures |= asyncio.run(measure(embedder))
    figures["peak_memory_added_mb"] = peak_memory() - before
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


async def measure(embedder: Embedder) -> dict[str, float]:
    figures: dict[str, float] = {}
    for length in (200, 800):
        batch = [text for text in texts(length) if embedder.count_tokens(text) <= embedder.space.max_tokens][:200]
        # The best of several: what other programs take from this machine is not the embedder's.
        figures[f"texts_{length}_per_second"] = max([await rate(embedder, batch) for _ in range(RUNS)])
    waits = [1000 / await rate(embedder, [f"{QUESTION} {i}"], EmbedKind.QUERY) for i in range(200)]
    figures["query_p50_ms"] = statistics.median(waits)
    figures["query_p95_ms"] = statistics.quantiles(waits, n=20)[-1]
    return figures


async def rate(embedder: Embedder, batch: list[str], kind: EmbedKind = EmbedKind.DOCUMENT) -> float:
    """Texts per second."""
    start = time.perf_counter()
    await embedder.embed(batch, kind)
    return len(batch) / (time.perf_counter() - start)


def texts(length: int) -> list[str]:
    """Texts of `length` characters."""
    corpus = Path(os.environ.get("WHIMBREL_TEST_DATA", "")) / "ir/nq_qed_dev/corpus.jsonl"
    if corpus.is_file():
        lines = corpus.read_text(encoding="utf-8").splitlines()
        whole = [json.loads(line)["text"] for line in lines]
        return [text[:length] for text in whole if len(text) >= length]
    words = ("the", "of", "river", "stone", "answer", "market", "engine", "letter", "number", "between", "people")
    generator = random.Random(0)
    return [" ".join(generator.choices(words, k=length // 3))[:length] for _ in range(200)]


def peak_memory() -> float:
    """MB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
