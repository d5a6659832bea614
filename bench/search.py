"""A hybrid search over HTTP, against what it is made of: embed, store and lexicon, called in turn in this process.

Both sides read the same views and 100 candidates of each; they take turns, question by question.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

from bench.corpus import question
from bench.figures import Figure, median, note, percentile
from bench.homes import open_home, searched_home, tokenizer
from bench.server import Serve
from whimbrel import Whimbrel
from whimbrel.catalog import collections
from whimbrel.domain import EmbedKind

CANDIDATES = 100
WARM = 30


def run(folder: Path, *, quick: bool) -> list[Figure]:
    chunks, rounds, seconds = (10_000, 100, 5) if quick else (100_000, 400, 20)
    home = searched_home(folder, chunks)
    figures = []
    with open_home(home) as whimbrel, Serve(home) as serve:
        serve.wait_for("/ready")
        bare, served = asyncio.run(_take_turns(whimbrel, serve, rounds))
        p50 = median(served)
        figures.append(Figure("search over HTTP, p50", p50, "ms", median(bare), "<= 1.5").show())
        figures.append(Figure("search over HTTP, p95", percentile(served, 95), "ms", p50, "<= 3").show())
        figures.append(Figure("search bare, p95", percentile(bare, 95), "ms", median(bare)).show())
    with Serve(home) as serve:
        serve.wait_for("/ready")
        for clients in (1, 16):
            found = _load(serve, clients, seconds)
            target = ">= 80" if clients == 16 and found["errors"] == 0 else ""
            note(f"{clients} clients: p50 {found['p50_ms']:.1f} ms, p95 {found['p95_ms']:.1f} ms")
            figures.append(Figure(f"searches, {clients} clients", found["per_second"], "1/s", target=target).show())
        figures.append(Figure("failed searches, 16 clients", found["errors"], "", target="<= 0").show())
        if found["errors"]:
            note(found["first_error"])
    return figures


async def _take_turns(whimbrel: Whimbrel, serve: Serve, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each search, bare and over HTTP."""
    with whimbrel.catalog.read() as connection:
        collection = collections.find(connection, "default")
        store_row, lexicon_row = collections.live_views(connection, collection)
    assert store_row is not None
    assert lexicon_row is not None
    embedder = whimbrel.embedder()
    store = await whimbrel.engine.readers.store(store_row)
    lexicon = await whimbrel.engine.readers.lexicon(lexicon_row, collection.language)
    client = serve.client()
    bare, served = [], []
    for number in range(WARM + rounds):
        text = question(tokenizer(), 1_000 + number)
        began = time.perf_counter()
        vector = await embedder.embed([text], EmbedKind.QUERY)
        await store.search(vector[0], CANDIDATES)
        lexicon.search(text, CANDIDATES)
        bare.append(1000 * (time.perf_counter() - began))
        text = question(tokenizer(), 100_000 + number)
        began = time.perf_counter()
        found = client.search(text)
        served.append(1000 * (time.perf_counter() - began))
        assert len(found["hits"]) == 10
        assert not found["degraded"]
    await whimbrel.engine.readers.close_all()
    return bare[WARM:], served[WARM:]


def _load(serve: Serve, clients: int, seconds: int) -> dict:
    command = [sys.executable, "-m", "bench.load", str(serve.port), str(clients), str(seconds), str(10_000 * clients)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
