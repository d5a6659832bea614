"""What the guards cost, and what they are for: a provider that fails and stalls, and one that is dead.

The providers are small servers on this machine (`bench.model_server`), asked through pydantic-ai like any other.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

from bench.figures import Figure, median, percentile
from bench.server import free_port
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.migrate import ensure_schema
from whimbrel.config.settings import Guards as Settings
from whimbrel.errors import ModelError
from whimbrel.guards.calls import Taken
from whimbrel.guards.chain import ChainGenerator
from whimbrel.guards.generator import GuardedGenerator
from whimbrel.guards.guard import Guards, Patience
from whimbrel.models.generators.base import Prompt, Usage
from whimbrel.models.generators.providers import Timeouts
from whimbrel.models.generators.resolve import resolve_generator

PROMPT = Prompt("Answer from the passages.", "How far is it from here to the sea?", 200)
FIRST_S = 1.0
"""Timeout until an answer begins."""
AT_ONCE = 4
PROCESSES = 3
THRESHOLD = 8


def run(folder: Path, *, quick: bool) -> list[Figure]:
    calls, questions, seconds = (2_000, 60, 15.0) if quick else (20_000, 600, 40.0)
    return [
        *asyncio.run(_overhead(folder, calls)),
        *_flaky(folder, questions),
        *_dead(folder, seconds),
    ]


# --- what they cost --------------------------------------------------------------------------------------------------


async def _overhead(folder: Path, calls: int) -> list[Figure]:
    """Every guard at work: two budgets, two rates, a price, the ledger and the breakers in a catalog on disk."""
    catalog = _catalog(folder / "overhead")
    name = "openai:bench"
    settings = Settings.model_validate(
        {
            "budgets": f"all=1000 USD/month; {name}=1000M tokens/day",
            "rates": f"{name}=60M requests, 6000M tokens",
            "prices": f"{name}=0.15/0.60",
        }
    )
    guards = Guards(settings, catalog)
    guard = guards.of("generate", name)
    patience = Patience(5.0, 60.0)

    async def at_once() -> int:
        return 1

    times: dict[str, list[float]] = {"bare": [], "guarded": []}
    for _ in range(calls):
        began = time.perf_counter()
        await at_once()
        between = time.perf_counter()
        await guard.call(at_once, Taken(100, 20), patience)
        ended = time.perf_counter()
        times["bare"].append((between - began) * 1000)
        times["guarded"].append((ended - between) * 1000)
    guards.close()
    catalog.close()
    added = [guarded - bare for guarded, bare in zip(times["guarded"], times["bare"], strict=True)]
    return [
        Figure("all guards on a call that answers at once, p50", median(added), "ms", target="<= 0.3").show(),
        Figure("all guards on a call that answers at once, mean", sum(added) / len(added), "ms").show(),
        Figure("all guards on a call that answers at once, p99", percentile(added, 99), "ms").show(),
    ]


# --- a provider that fails 30 % of its calls and stalls 5 %, with a healthy second -----------------------------------


def _flaky(folder: Path, questions: int) -> list[Figure]:
    catalog = _catalog(folder / "flaky")
    with _server("0.30", "0.05") as bad, _server() as good:
        _lead(bad, good)
        guards = Guards(Settings(), catalog)
        chain = ChainGenerator([_generator(guards, "openai:bench"), _generator(guards, "ollama:bench")])
        times, degraded, lost = asyncio.run(_ask(chain, questions))
        alone = ChainGenerator([_generator(guards, "ollama:bench")])
        healthy, _, _ = asyncio.run(_ask(alone, questions // 4))
        guards.close()
    catalog.close()
    said = "a provider that fails 30 % and stalls 5 %, with a healthy second"
    return [
        Figure(f"{said}: questions without an answer", lost, "questions", target="<= 0").show(),
        Figure(f"{said}: p50", median(times), "ms", median(healthy)).show(),
        Figure(f"{said}: p99", percentile(times, 99), "ms", percentile(healthy, 99)).show(),
        Figure(f"{said}: answers of the second", 100 * degraded / questions, "%").show(),
    ]


async def _ask(chain: ChainGenerator, questions: int) -> tuple[list[float], int, int]:
    """Milliseconds to the end of each answer, answers of a stand-in, questions without an answer."""
    times: list[float] = []
    degraded = lost = 0
    places = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        nonlocal degraded, lost
        async with places:
            began = time.perf_counter()
            usage = None
            try:
                async with aclosing(chain.stream(PROMPT)) as parts:
                    async for part in parts:
                        usage = part if isinstance(part, Usage) else usage
            except ModelError:
                lost += 1
                return
            times.append((time.perf_counter() - began) * 1000)
            degraded += bool(usage and usage.model)

    await chain.prepare()
    await asyncio.gather(*(one() for _ in range(questions)))
    await chain.close()
    return times, degraded, lost


# --- a provider that is dead -----------------------------------------------------------------------------------------


def _dead(folder: Path, seconds: float) -> list[Figure]:
    """Three processes of one home ask it, one call after another each, for less than a window."""
    home = folder / "dead"
    _catalog(home).close()
    with _server("0", "1") as port:
        environment = {**os.environ, "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "none"}
        command = [sys.executable, "-m", "bench.models", str(home), str(seconds)]
        asking = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)
        ]
        asked = sum(int(process.communicate()[0].split()[-1]) for process in asking)
        client = http.client.HTTPConnection("127.0.0.1", port)
        client.request("GET", "/")
        reached = int(client.getresponse().read())
    said = f"a dead provider, {PROCESSES} processes, {seconds:g} s"
    return [
        Figure(f"{said}: calls", asked, "calls").show(),
        Figure(f"{said}: timeouts (threshold {THRESHOLD})", reached, "timeouts", target=f"<= {THRESHOLD}").show(),
    ]


async def _knock(home: Path, seconds: float) -> int:
    catalog = _catalog(home)
    guards = Guards(Settings(breaker_failures=THRESHOLD, breaker_pause_s=60.0), catalog)
    generator = _generator(guards, "openai:bench")
    await generator.prepare()  # seconds, the first time
    until = time.monotonic() + seconds
    asked = 0
    while time.monotonic() < until:
        try:
            await generator.complete(PROMPT)
        except ModelError:
            asked += 1
        await asyncio.sleep(0.05)
    await generator.close()
    guards.close()
    catalog.close()
    return asked


# --- parts -----------------------------------------------------------------------------------------------------------


def _catalog(folder: Path) -> Catalog:
    folder.mkdir(parents=True, exist_ok=True)
    made = Catalog(f"sqlite:///{folder / 'catalog.db'}")
    ensure_schema(made, copies=folder)
    return made


def _generator(guards: Guards, spec: str) -> GuardedGenerator:
    made = resolve_generator(spec, Timeouts(first_token_s=FIRST_S))
    assert made is not None
    return guards.generator(made)


def _lead(bad: int, good: int) -> None:
    os.environ.update(
        OPENAI_BASE_URL=f"http://127.0.0.1:{bad}/v1", OPENAI_API_KEY="none", OLLAMA_HOST=f"127.0.0.1:{good}"
    )


@contextmanager
def _server(*shares: str) -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.model_server", str(port), *shares])
    try:
        _wait(port)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait(port: int) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            client = http.client.HTTPConnection("127.0.0.1", port)
            client.request("GET", "/")
            client.getresponse().read()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    print(asyncio.run(_knock(Path(sys.argv[1]), float(sys.argv[2]))))
