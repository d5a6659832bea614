"""A model that answers at once: `python -m bench.model_server PORT`, an OpenAI-compatible server in its own process.

It waits FIRST_S, then writes one word every WORD_S. What is measured above it is ours, not a model's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FIRST_S = 0.05
WORD_S = 0.005
ANSWER = "The first of these passages says what was asked for, and the second one agrees with it [1][2]."


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
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
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Model).serve_forever()
