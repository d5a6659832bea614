"""Small servers that speak the protocols of embedding providers over sockets; their vectors are those of words."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "hf_the-right-key"
DIMENSIONS = 16


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """Not of unit length."""
    found = [0.01] * dimensions
    for word in text.lower().split():
        found[hashlib.md5(word.encode()).digest()[0] % dimensions] += 2.0
    return found


class EmbeddingServer:
    """`behaviour`: `answer`; `busy` (429 with Retry-After); `overloaded` (503 with it); `loading` (503); `broken`
    (500); `spent` (402); `refusing` (400); `moved` (a redirect to `elsewhere`); `never`; `half` (closes in the middle
    of its answer); `endless` (numbers without end); `malformed` (no JSON); `odd` (JSON of another shape); `fewer` (a
    vector too few); `shuffled` (OpenAI: the last vector first, each with its index); `twice` (OpenAI: one index for
    all); `numberless` (NaN); `zeros`. A wrong key is refused, and a text that holds `too long` too."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.behaviour = "answer"
        self.next: list[str] = []
        """What it does at the next requests for vectors, before `behaviour` counts again."""
        self.retry_after = "7"
        self.now = "answer"
        self.elsewhere = ""
        self.info: dict[str, Any] = {}
        """Beside what `/info` says."""
        self.looks = 0
        self.dimensions = DIMENSIONS
        self.sha = "abc"
        self.delay_s = 0.0
        self.batches: list[list[str]] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def spec(self) -> str:
        return f"tei:{self.url}" if self.protocol == "tei" else f"{self.protocol}:small"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "tei": {"TEI_API_KEY": KEY},
            "openai": {"OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_KEY": KEY},
            "ollama": {"OLLAMA_HOST": self.url.removeprefix("http://"), "OLLAMA_API_KEY": KEY},
            "huggingface": {"HF_BASE_URL": self.url, "HF_TOKEN": KEY},
        }[self.protocol]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def entered(self, by: int) -> None:
        with self._lock:
            self.at_once += by
            self.most_at_once = max(self.most_at_once, self.at_once)


@contextmanager
def embedding_server(protocol: str) -> Iterator[EmbeddingServer]:
    server = EmbeddingServer(protocol)
    try:
        yield server
    finally:
        server.close()


STATUSES = {"busy": 429, "overloaded": 503, "loading": 503, "broken": 500, "spent": 402, "moved": 307, "refusing": 400}


def _handler(server: EmbeddingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.now = server.behaviour
            server.looks += 1
            if self.path != "/info":
                return self._said(404, {"error": "no such path"})
            about = {
                "model_id": "org/words", "model_sha": server.sha, "model_dtype": "float32",
                "model_type": {"embedding": {"pooling": "mean"}}, "max_concurrent_requests": 512,
                "max_input_length": 512, "max_batch_tokens": 16384, "max_client_batch_size": 4, "version": "1.8.0",
            }  # fmt: skip
            return self._said(200, about | server.info)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.entered(1)
            try:
                self._answer(body)
            finally:
                server.entered(-1)

        def _answer(self, body: dict[str, Any]) -> None:
            given = body["input"] if server.protocol in ("openai", "ollama") else body["inputs"]
            texts = [given] if isinstance(given, str) else given
            server.batches.append(texts)
            server.now = server.next.pop(0) if server.next else server.behaviour
            time.sleep(server.delay_s)
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                return self._said(
                    401, {"error": {"message": f"wrong key; you said {texts}", "code": "invalid_api_key"}}
                )
            if server.now in STATUSES:
                return self._said(STATUSES[server.now], {"error": f"busy with {texts}"})
            if any("too long" in text for text in texts):
                return self._said(413 if server.protocol == "tei" else 400, {"error": f"too long: {texts}"})
            if server.now == "endless":
                return self._go_on()
            if server.now == "never":
                time.sleep(30)
            vectors: list[Any] = [vector(text, server.dimensions) for text in texts]
            if server.now == "fewer":
                vectors = vectors[:-1]
            if server.now in ("numberless", "zeros"):
                vectors = [[float("nan") if server.now == "numberless" else 0.0] * server.dimensions] * len(texts)
            if server.now == "odd":
                return self._said(200, {"something": "else"})
            if server.protocol in ("openai", "ollama"):
                if "dimensions" in body:
                    vectors = [one[: body["dimensions"]] for one in vectors]
                data = [{"object": "embedding", "index": n, "embedding": one} for n, one in enumerate(vectors)]
                if server.now == "shuffled":
                    data.reverse()
                if server.now == "twice":
                    data = [{**one, "index": 0} for one in data]
                usage = {"prompt_tokens": 5, "total_tokens": 5}
                return self._said(200, {"object": "list", "model": body["model"], "data": data, "usage": usage})
            return self._said(200, vectors)

        def _said(self, status: int, what: object) -> None:
            said = b"{not json" if server.now == "malformed" else json.dumps(what).encode()
            self.send_response(status)
            if server.now == "moved":
                self.send_header("Location", f"{server.elsewhere}{self.path}")
            if server.now in ("busy", "overloaded"):
                self.send_header("Retry-After", server.retry_after)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            if server.now == "half" and self.command == "POST":
                self.wfile.write(said[: len(said) // 2])
                self.close_connection = True
                return
            self.wfile.write(said)

        def _go_on(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            part = b"[" + b"0.25, " * 100_000
            try:
                while True:
                    self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            except OSError:
                self.close_connection = True

        def log_message(self, *_: Any) -> None: ...

    return Handler
