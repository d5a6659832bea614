"""A model that answers at once: `python -m bench.model_server PORT [FAILS STALLS]`, an OpenAI-compatible server in its
own process.

It waits FIRST_S, then writes one word every WORD_S. What is measured above it is ours, not a model's. FAILS and STALLS
are the shares of requests that it answers with 500, and never; GET tells how many it was asked.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FIRST_S = 0.05
WORD_S = 0.005
STALL_S = 60.0
ANSWER = "The first of these passages says what was asked for, and the second one agrees with it [1][2]."


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    asked = 0
    fails = stalls = 0.0
    chance = random.Random(20260131)

    def do_GET(self) -> None:
        said = str(Model.asked).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Model.asked += 1
        drawn = self.chance.random()
        if drawn < self.stalls:
            time.sleep(STALL_S)
            self.close_connection = True
            return
        if drawn < self.stalls + self.fails:
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in _pieces():
            data = f"data: {piece}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: it is asked hundreds of times."""


def _pieces() -> Iterator[str]:
    time.sleep(FIRST_S)
    yield _chunk({"role": "assistant", "content": ""})
    for word in ANSWER.split(" "):
        yield _chunk({"content": f"{word} "})
        time.sleep(WORD_S)
    yield _chunk({}, "stop")
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    yield json.dumps({**_HEAD, "choices": [], "usage": usage})
    yield "[DONE]"


_HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "bench"}


def _chunk(delta: dict[str, str], finish: str | None = None) -> str:
    return json.dumps({**_HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


if __name__ == "__main__":
    Model.fails, Model.stalls = (float(share) for share in (sys.argv[2:4] or ("0", "0")))
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Model).serve_forever()
