"""Ingest with embedding, against the bare embedder on the texts that it embedded; both in this process and run.

They take turns, the bare embedder before and after each ingest, so that what else the machine does falls on both.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

from bench.corpus import document
from bench.figures import Figure, clock, median, note
from bench.homes import tokenizer
from whimbrel import Whimbrel
from whimbrel.catalog import collections
from whimbrel.catalog import tables as t
from whimbrel.catalog.spans import read_spans
from whimbrel.domain import EmbedKind, embedded_text

ROUNDS = 3


def run(folder: Path, *, quick: bool) -> list[Figure]:
    place = folder / "ingest"
    shutil.rmtree(place, ignore_errors=True)
    name, texts = _documents(quick)
    sources = place / "sources"
    sources.mkdir(parents=True)
    for number, text in enumerate(texts):
        sources.joinpath(f"{number:05d}.md").write_text(text, encoding="utf-8")
    rates, ratios, bare_rates = [], [], []
    for round_ in range(1 if quick else ROUNDS):
        with Whimbrel(place / f"home-{round_}") as whimbrel:
            asyncio.run(whimbrel.embedder().embed(["warm"], EmbedKind.DOCUMENT))
            with clock() as seconds:
                result = whimbrel.ingest([sources])
            chunks = result["chunks_added"]
            embedded = _embedded(whimbrel)
            rates.append(chunks / seconds())
            with clock() as bare_seconds:
                asyncio.run(whimbrel.embedder().embed(embedded, EmbedKind.DOCUMENT))
            bare_rates.append(chunks / bare_seconds())
            ratios.append(rates[-1] / bare_rates[-1])
        note(f"{name}: {chunks} chunks; ingest {rates[-1]:.1f}/s, bare embedder {bare_rates[-1]:.1f}/s")
    shutil.rmtree(place)
    at = ratios.index(median(ratios))  # a pair that was measured together
    return [
        Figure(f"ingest with embedding ({name})", rates[at], "chunks/s", bare_rates[at], ">= 0.9").show(),
    ]


def _embedded(whimbrel: Whimbrel) -> list[str]:
    """The exact texts that were given to the embedder."""
    from sqlalchemy import select

    with whimbrel.catalog.read() as connection:
        collection = collections.find(connection, "default")
        found = connection.execute(
            select(t.chunks.c.context, t.chunks.c.start, t.chunks.c.end, t.chunks.c.segment_id)
            .where(t.chunks.c.collection_id == collection.id)
            .order_by(t.chunks.c.id)
        ).all()
        texts = read_spans(connection, found)
    return list(dict.fromkeys(embedded_text(row.context, text) for row, text in zip(found, texts, strict=True)))


def _documents(quick: bool) -> tuple[str, list[str]]:
    """Articles of $WHIMBREL_TEST_DATA, or made-up ones."""
    folder = Path(os.environ.get("WHIMBREL_TEST_DATA", "")) / "ir"
    count = 200 if quick else 4_000
    found: list[str] = []
    for name in ("nq_qed_dev", "nfcorpus"):
        corpus = folder / name / "corpus.jsonl"
        if corpus.is_file():
            lines = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
            found += [f"# {line.get('title', '')}\n\n{line['text']}\n" for line in lines]
    if not found:
        return "made-up prose", [document(tokenizer(), number)[0] for number in range(count // 5)]
    return "articles and abstracts", found[:count]
