"""How soon `serve` answers on a home with data, and what it weighs."""

from __future__ import annotations

from pathlib import Path

from bench.corpus import question
from bench.figures import Figure, median, note, rss_mb
from bench.homes import searched_home, tokenizer
from bench.server import Serve

STARTS = 5
SEARCHES = 300


def run(folder: Path, *, quick: bool) -> list[Figure]:
    chunks = 10_000 if quick else 100_000
    home = searched_home(folder, chunks)
    health, first, weight = [], [], []
    for number in range(STARTS + 1):
        with Serve(home) as serve:
            at_health = serve.wait_for("/health")
            found = serve.client().search(question(tokenizer(), number))
            at_search = serve.age
            assert found["hits"]
            assert not found["degraded"]
            if number == 0:
                continue  # the first start reads files that the later ones find in memory
            health.append(at_health)
            first.append(at_search)
            weight.append(rss_mb(serve.pid))
            if number == STARTS:
                client = serve.client()
                for more in range(SEARCHES):
                    client.search(question(tokenizer(), 100 + more))
                later = rss_mb(serve.pid)
    note(f"starts: /health {_list(health)} s, first search {_list(first)} s")
    note(f"RSS after one search, of which no file's: {_list([one['RssAnon'] for one in weight])} MB")
    return [
        Figure("serve: process start to /health", median(health), "s", target="<= 1.5").show(),
        Figure("serve: process start to the first search answered", median(first), "s", target="<= 3").show(),
        Figure(
            f"serve: RSS after a search on {chunks:,} chunks",
            median([one["VmRSS"] for one in weight]),
            "MB",
            target="<= 400",
        ).show(),
        Figure(f"serve: RSS after {SEARCHES} searches", later["VmRSS"], "MB").show(),
        Figure(f"serve: anonymous memory after {SEARCHES} searches", later["RssAnon"], "MB").show(),
    ]


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
