"""A question as a stream over HTTP: when its passages are there, its first word, and the checked answer.

The model is a small server on this machine (`bench.model_server`). Beside the first word stands the same server asked
without us; beside the passages, a search. They take turns, question by question.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.corpus import question
from bench.figures import Figure, median, percentile
from bench.homes import searched_home, tokenizer
from bench.server import Serve, free_port

WARM = 10


def run(folder: Path, *, quick: bool) -> list[Figure]:
    chunks, rounds = (10_000, 50) if quick else (100_000, 200)
    home = searched_home(folder, chunks)
    with _model() as port:
        environment = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_API_KEY": "none"}
        # Questions about made-up documents are turned away by right: not here, where each must be answered.
        with Serve(home, WHIMBREL_MODEL="openai:bench", WHIMBREL_ANSWER_ABSTAIN="0", **environment) as serve:
            serve.wait_for("/ready")
            times = _take_turns(serve, port, rounds)
    search, bare = median(times["search"]), median(times["bare"])
    return [
        Figure("streamed question: first passage, p50", median(times["passages"]), "ms", search).show(),
        Figure("streamed question: first passage, p95", percentile(times["passages"], 95), "ms").show(),
        Figure("streamed question: first word, p50", median(times["text"]), "ms", bare).show(),
        Figure("streamed question: first word, p95", percentile(times["text"], 95), "ms").show(),
        Figure("streamed question: checked answer, p50", median(times["answer"]), "ms").show(),
    ]


def _take_turns(serve: Serve, model_port: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds from sending the request to each event; `bare` is the model's own first word."""
    times: dict[str, list[float]] = {name: [] for name in ("search", "passages", "text", "answer", "bare")}
    client = serve.client()
    asked = http.client.HTTPConnection("127.0.0.1", serve.port)
    model = http.client.HTTPConnection("127.0.0.1", model_port)
    for number in range(WARM + rounds):
        began = time.perf_counter()
        client.search(question(tokenizer(), 500_000 + number))
        times["search"].append(1000 * (time.perf_counter() - began))
        for name, at in _events(asked, question(tokenizer(), 600_000 + number)).items():
            times[name].append(at)
        times["bare"].append(_first_word(model))
    return {name: found[WARM:] for name, found in times.items()}


def _events(connection: http.client.HTTPConnection, text: str) -> dict[str, float]:
    """Milliseconds to the first event of each name."""
    seen: dict[str, float] = {}
    began = time.perf_counter()
    for line in _lines(connection, "/v1/query", {"query": text, "stream": True}):
        if line.startswith(b"event: "):
            name = line[7:].strip().decode()
            assert name != "error", "the question failed"
            seen.setdefault(name, 1000 * (time.perf_counter() - began))
    assert list(seen) == ["passages", "text", "answer"], seen
    return seen


def _first_word(connection: http.client.HTTPConnection) -> float:
    began = time.perf_counter()
    body = {"model": "bench", "messages": [{"role": "user", "content": "?"}], "stream": True}
    found = 0.0
    for line in _lines(connection, "/v1/chat/completions", body):
        if not found and b'"content": "The' in line:
            found = 1000 * (time.perf_counter() - began)
    return found


def _lines(connection: http.client.HTTPConnection, path: str, body: dict[str, object]) -> Iterator[bytes]:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    while line := answer.readline():
        yield line


@contextmanager
def _model() -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.model_server", str(port)])
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                http.client.HTTPConnection("127.0.0.1", port).connect()
                break
            except OSError:
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(20)
