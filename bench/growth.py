"""How ingest and search grow with the collection, their vectors computed before."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from statistics import harmonic_mean

from bench.corpus import PARAGRAPHS, question
from bench.figures import Figure, clock, median, note, rss_mb
from bench.homes import Grown, open_home, tokenizer
from whimbrel import Whimbrel
from whimbrel.owner.views import AT_REST_S

SMALL = 10_000
STEP = 50_000
LAST = 5
"""Steps that the rate at the end is taken over."""
SEARCHES = 200


def run(folder: Path, *, quick: bool) -> list[Figure]:
    """Chunks/s of a step of ingest, and a search's p50, at 10,000 chunks and at the end."""
    large = 100_000 if quick else 1_000_000
    place = folder / "growth"
    shutil.rmtree(place, ignore_errors=True)
    grown = Grown(place)
    with open_home(grown.home) as whimbrel:
        grown.grow(whimbrel, SMALL // PARAGRAPHS)
        _rest()
        small_p50 = _search(whimbrel)
        small_rate = _step(whimbrel, grown, SMALL)
        note(f"{SMALL} chunks: {small_rate:.0f} chunks/s for as many more, search p50 {small_p50:.1f} ms")
        rates: list[float] = []
        while grown.chunks < large:
            rates.append(_step(whimbrel, grown, STEP))
            memory = rss_mb(os.getpid())["VmRSS"]
            p50 = _search(whimbrel)
            note(f"{grown.chunks} chunks: {rates[-1]:.0f} chunks/s, search p50 {p50:.1f} ms, RSS {memory:.0f} MB")
        large_rate = harmonic_mean(rates[-LAST:])  # all of their time: maintenance falls into some of them
        _rest()
        large_p50 = _search(whimbrel)
    if not quick:
        shutil.rmtree(place)
    return [
        Figure(f"ingest at {large:,} chunks against 10,000", large_rate, "chunks/s", small_rate, ">= 0.7").show(),
        Figure(f"search p50 at {large:,} chunks against 10,000", large_p50, "ms", small_p50, "<= 2").show(),
    ]


def _rest() -> None:
    """Until the views are as they are left in peace: segments merged, the last rows indexed."""
    time.sleep(AT_REST_S + 30)


def _step(whimbrel: Whimbrel, grown: Grown, chunks: int) -> float:
    before = grown.chunks
    seconds = grown.grow(whimbrel, chunks // PARAGRAPHS)
    return (grown.chunks - before) / seconds


def _search(whimbrel: Whimbrel) -> float:
    waits = []
    for number in range(20 + SEARCHES):
        text = question(tokenizer(), number)
        with clock() as seconds:
            found = whimbrel.search(text)
        assert len(found.hits) == 10, found.degraded
        waits.append(1000 * seconds())
    return median(waits[20:])
