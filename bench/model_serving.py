"""`whimbrel models` against the same embedder in the process that asks, and what it saves in memory.

The server, the clients and the model share the cores, as they would on one machine. In each round either side is asked
for some seconds, one right after the other.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.bare_embedder import QUESTION, texts
from bench.corpus import question
from bench.figures import Figure, median, note
from bench.homes import searched_home, tokenizer
from bench.server import Client, Serve, free_port
from whimbrel.domain import EmbedKind
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.resolve import resolve_embedder

CLIENTS = 16
WORKERS = 3
SEARCHES = 100


def run(folder: Path, *, quick: bool) -> list[Figure]:
    rounds, seconds = (3, 2.0) if quick else (7, 5.0)
    with serving() as (port, pid):
        figures = asyncio.run(_speed(f"tei:http://127.0.0.1:{port}", pid, rounds, seconds))
    return figures + _memory(folder, 2_000 if quick else 20_000)


@contextmanager
def serving() -> Iterator[tuple[int, int]]:
    """A `whimbrel models` of its own process: its port, its process id."""
    port = free_port()
    environment = {**os.environ, "WHIMBREL_LOG_LEVEL": "warning"}
    command = [sys.executable, "-m", "whimbrel", "models", "--port", str(port), "--embedder", "minilm"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not _healthy(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"`whimbrel models` did not answer: exit status {process.poll()}")
            time.sleep(0.02)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _healthy(port: int) -> bool:
    client = Client(port)
    try:
        return client.request("GET", "/health")[0] == 200
    except OSError:
        return False
    finally:
        client.close()


# --- speed -----------------------------------------------------------------------------------------------------------


async def _speed(served_spec: str, pid: int, rounds: int, seconds: float) -> list[Figure]:
    """`pid`: the server's process."""
    here, served = resolve_embedder("minilm"), resolve_embedder(served_spec)
    passages = texts(200)
    figures = []
    for name, kind, each in (
        ("one passage of 200 characters a request", EmbedKind.DOCUMENT, 1),
        ("32 passages a request", EmbedKind.DOCUMENT, 32),
        ("one question a request", EmbedKind.QUERY, 1),
    ):
        given = passages if kind is EmbedKind.DOCUMENT else [f"{QUESTION} {number}" for number in range(200)]
        batches = [[given[(start + more) % len(given)] for more in range(each)] for start in range(0, 200, each)]
        rates: dict[Embedder, list[tuple[float, float]]] = {here: [], served: []}
        for _ in range(rounds + 1):
            for embedder in (here, served):
                rates[embedder].append(await _rate(embedder, batches, kind, seconds, pid))
        ours, own = (rates[one][1:] for one in (served, here))  # the first round warms up
        what = f"models: {CLIENTS} clients, {name}, against the embedder in process"
        speeds = [median([speed for speed, _ in side]) for side in (ours, own)]
        costs = [median([cost for _, cost in side]) for side in (own, ours)]
        figures.append(Figure(what, speeds[0], "texts/s", speeds[1], ">= 0.9").show())
        # What the cores have to do for a text is what bounds a machine that does nothing else.
        what = f"models: {name}, CPU time of a text in process against served, client and server together"
        figures.append(Figure(what, costs[0], "ms", costs[1], ">= 0.9").show())
    figures.append(await _single(here, served, 40 * rounds))
    for one in (here, served):
        await one.close()
    return figures


async def _rate(
    embedder: Embedder, batches: list[list[str]], kind: EmbedKind, seconds: float, pid: int
) -> tuple[float, float]:
    """Texts per second, asked for by all clients at once; and CPU time of a text in ms, of this process and `pid`."""
    done = 0
    began, cpu = time.perf_counter(), _cpu_s(pid)

    async def client(number: int) -> None:
        nonlocal done
        turn = number
        while time.perf_counter() - began < seconds:
            batch = batches[turn % len(batches)]
            await embedder.embed(batch, kind)
            done += len(batch)
            turn += CLIENTS

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return done / (time.perf_counter() - began), 1000 * (_cpu_s(pid) - cpu) / done


def _cpu_s(pid: int) -> float:
    """CPU time of this process and of another one so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _single(here: Embedder, served: Embedder, count: int) -> Figure:
    waits: dict[Embedder, list[float]] = {here: [], served: []}
    for number in range(count):
        for embedder in (here, served):
            began = time.perf_counter()
            await embedder.embed([f"{QUESTION} {number}"], EmbedKind.QUERY)
            waits[embedder].append(1000 * (time.perf_counter() - began))
    ours, own = median(waits[served]), median(waits[here])
    note(f"one question at a time, medians of {count}: {ours:.2f} ms served, {own:.2f} ms in process")
    return Figure("models: a single question, longer than in process", ours - own, "ms", target="<= 3").show()


# --- memory ----------------------------------------------------------------------------------------------------------


def _memory(folder: Path, chunks: int) -> list[Figure]:
    home = searched_home(folder, chunks)
    alone = _workers(home, "minilm")
    with serving() as (port, pid):
        shared = _workers(home, f"tei:http://127.0.0.1:{port}")
        models = pss_mb(pid)
    note(f"{WORKERS} API workers alone {sum(alone):.0f} MB; {sum(shared):.0f} MB beside models of {models:.0f} MB")
    return [
        Figure(
            f"models: memory of {WORKERS} API workers with one models process, against a model in each",
            sum(shared) + models,
            "MB",
            sum(alone),
        ).show(),
        Figure("models: memory of an API worker without a model, against with one", *_medians(shared, alone)).show(),
    ]


def _medians(shared: list[float], alone: list[float]) -> tuple[float, str, float]:
    return median(shared), "MB", median(alone)


def _workers(home: Path, embedder: str) -> list[float]:
    """Proportional memory of each of some `serve` processes on one home, after searches."""
    with ExitStack() as stack:
        serves = [stack.enter_context(Serve(home, WHIMBREL_EMBEDDER=embedder)) for _ in range(WORKERS)]
        for serve in serves:
            serve.wait_for("/ready")
        for serve in serves:
            client = serve.client()
            for number in range(SEARCHES):
                found = client.search(question(tokenizer(), number))
                assert not found["degraded"], found["degraded"]
            client.close()
        return [pss_mb(serve.pid) for serve in serves]


def pss_mb(pid: int) -> float:
    """Proportional set size in MB: pages that processes share count once between them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no memory of process {pid} is told")
