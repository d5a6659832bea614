"""What keeping models' work saves: questions that come again against new ones, on one home, in turns; and how many of a
workload's lookups find what they look for, across a restart.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from bench.corpus import question
from bench.figures import Figure, median
from bench.homes import OVERRIDES, searched_home, tokenizer
from whimbrel import Whimbrel
from whimbrel.catalog.cache import Kind

QUESTIONS = 25
WARM = 5


def run(folder: Path, *, quick: bool) -> list[Figure]:
    chunks, rounds = (2_000, 30) if quick else (20_000, 200)
    home = searched_home(folder, chunks)
    with _opened(home) as whimbrel:
        again, new = _in_turns(lambda text: whimbrel.search(text), rounds)
        figures = [Figure("search for what was searched for before, p50", median(again), "ms", median(new)).show()]
        again, new = _in_turns(lambda text: whimbrel.ask(text), rounds)
        figures.append(Figure("answer that was given before, p50", median(again), "ms", median(new)).show())
    return figures + _workload(home, 10 * rounds)


def _opened(home: Path) -> Whimbrel:
    return Whimbrel(home, **OVERRIDES, model="extractive")


def _in_turns(ask: Callable[[str], object], rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds, of one question again and again and of others that are new."""
    again, new = [], []
    one = question(tokenizer(), 7)
    for number in range(WARM + rounds):
        for text, times in ((one, again), (question(tokenizer(), 500_000 + number), new)):
            began = time.perf_counter()
            ask(text)
            times.append(1000 * (time.perf_counter() - began))
    return again[WARM:], new[WARM:]


def _workload(home: Path, searches: int) -> list[Figure]:
    """Questions drawn as people ask, the first ones most often; the process begins anew in the middle."""
    dice = random.Random(7)
    drawn = dice.choices(range(QUESTIONS), [1 / (1 + rank) for rank in range(QUESTIONS)], k=searches)
    seen: dict[tuple[str, bool], int] = {}
    for half in (drawn[: searches // 2], drawn[searches // 2 :]):
        with _opened(home) as whimbrel:
            for number in half:
                whimbrel.ask(question(tokenizer(), 900_000 + number))
                whimbrel.search(question(tokenizer(), 900_000 + number))
            for place, count in whimbrel.cache.lookups().items():
                seen[place] = seen.get(place, 0) + count
    return [
        Figure(f"found in the cache: {kind}", seen[kind, True] / (seen[kind, True] + seen[kind, False]), "", None,
               ">= 0.9").show()
        for kind in (Kind.QUERY_VECTORS, Kind.ANSWERS)
    ]  # fmt: skip
