"""What whoever searches notices of a move: p99 of one client of `serve` while it moves, against that of before.

The client asks without a pause; another asks how far the move is, four times a second. The server owns the home, and
moves it: to Postgres, and within LanceDB.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.corpus import question
from bench.figures import Figure, clock, median, note, percentile
from bench.homes import searched_home, tokenizer
from bench.move import own_postgres
from bench.server import Serve
from whimbrel.owner.tasks import DROP_GRACE_S

SIZES = (20_000, 100_000)
RUNS = 3
SEARCHES = 400
"""Before each move."""
ASKED_S = 0.25


def run(folder: Path, *, quick: bool) -> list[Figure]:
    place = folder / "move_latency"
    figures: list[Figure] = []
    with own_postgres(place / "postgres") as postgres:
        for size in SIZES[:1] if quick else SIZES:
            home = searched_home(place / str(size), size)
            for target, uri in (("postgres", postgres), ("lancedb", "lancedb:elsewhere")):
                ratios = [_measured(home, uri) for _ in range(1 if quick else RUNS)]
                note(f"{size:,} chunks to {target}: p99 of searches times {', '.join(f'{one:.2f}' for one in ratios)}")
                name = f"move: {size:,} chunks to {target}, p99 of searches against before"
                figures.append(Figure(name, median(ratios), "x", 1.0, "<= 2").show())
    return figures


def _measured(home: Path, uri: str) -> float:
    with Serve(home, WHIMBREL_STORES_OTHERS=uri, WHIMBREL_CACHE_MAX_BYTES="0") as serve:
        serve.wait_for("/ready")
        client = serve.client()
        _waits(serve, lambda done: done < 50, 0)
        quiet = _waits(serve, lambda done: done < SEARCHES, 1_000)
        status, body = client.request("POST", "/v1/moves", {"collection": "default", "to": uri})
        assert status < 300, body
        move = json.loads(body)["id"]
        with _asked(serve, move) as ready:
            during = _waits(serve, lambda _: not ready.is_set(), 10_000)
        note(f"{len(during)} searches while it moved: p50 {median(during):.1f} ms; before it {median(quiet):.1f} ms")
        client.close()
        client = serve.client()  # the server closes a connection that has been idle for so long
        client.request("POST", f"/v1/moves/{move}/abort")
        client.close()
        time.sleep(DROP_GRACE_S + 5)  # what it has made is dropped: not while the next one is measured
    return percentile(during, 99) / percentile(quiet, 99)


def _waits(serve: Serve, more: Callable[[int], bool], first: int) -> list[float]:
    """Milliseconds of each search; nothing of it is cached."""
    client = serve.client()
    waits: list[float] = []
    while more(len(waits)):
        text = question(tokenizer(), first + len(waits))
        with clock() as seconds:
            found = client.search(text)
        assert found["hits"], found["degraded"]
        waits.append(1000 * seconds())
    client.close()
    return waits


@contextmanager
def _asked(serve: Serve, move: str) -> Iterator[threading.Event]:
    """Asks how far the move is; set when it has come to an end."""
    ended, stop = threading.Event(), threading.Event()
    states: list[str] = []

    def ask() -> None:
        client = serve.client()
        try:
            while not stop.wait(ASKED_S):
                _, body = client.request("GET", f"/v1/moves/{move}")
                states.append(json.loads(body)["state"])
                if states[-1] in ("ready", "failed"):
                    ended.set()
        finally:
            ended.set()
            client.close()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield ended
    finally:
        stop.set()
        thread.join()
    assert states[-1:] == ["ready"], states[-1:]
