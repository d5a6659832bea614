"""The load generator: `python -m bench.load PORT CLIENTS SECONDS FIRST`, in a process of its own.

Each client keeps one connection and sends its next search when the last is answered; no question comes twice. Prints
one JSON object.
"""

from __future__ import annotations

import json
import sys
import threading
import time

from bench.corpus import question
from bench.figures import median, percentile
from bench.server import Client
from whimbrel.models.embedders.minilm import folder


def main(port: int, clients: int, seconds: float, first: int) -> None:
    tokenizer = folder() / "tokenizer.json"
    questions = [question(tokenizer, first + number) for number in range(int(clients * 40 * seconds))]
    waits: list[float] = []
    errors: list[str] = []
    together = threading.Barrier(clients + 1)

    def work(mine: list[str]) -> None:
        client = Client(port)
        client.search(mine[0])  # connect
        together.wait()
        for text in mine[1:]:
            began = time.perf_counter()
            if began > deadline[0]:
                break
            try:
                found = client.search(text)
                if found["degraded"] or not found["hits"]:
                    errors.append(f"degraded: {found['degraded']}, {len(found['hits'])} hits")
            except (OSError, RuntimeError) as error:
                errors.append(repr(error))
            waits.append(1000 * (time.perf_counter() - began))
        client.close()

    deadline = [float("inf")]
    threads = [threading.Thread(target=work, args=(questions[number::clients],)) for number in range(clients)]
    for thread in threads:
        thread.start()
    together.wait()
    began = time.perf_counter()
    deadline[0] = began + seconds
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    report = {
        "per_second": len(waits) / took,
        "p50_ms": median(waits),
        "p95_ms": percentile(waits, 95),
        "errors": len(errors),
        "first_error": errors[0] if errors else "",
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
