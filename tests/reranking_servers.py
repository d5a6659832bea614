"""Small servers that speak the protocols of reranking providers over sockets; a text's score is its share of the
question's words."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "rr_the-right-key"
PROTOCOLS = ("tei", "cohere", "jina", "voyage", "own", "huggingface", "huggingface-endpoint")


def score(query: str, text: str) -> float:
    """0..1."""
    asked = query.lower().split()
    read = set(text.lower().split())
    return sum(word in read for word in asked) / len(asked)


class RerankingServer:
    """`behaviour`: `answer`; `busy` (429 with Retry-After); `loading` (503); `broken` (500); `moved` (a redirect to
    `elsewhere`); `never`; `half` (closes in the middle of its answer); `malformed` (no JSON); `odd` (JSON of another
    shape); `fewer` (a score too few); `twice` (an index twice); `placeless` (no index); `numberless` (NaN); `outside`
    (scores over 1). A wrong key is refused, and texts of more than `longest` words too."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.behaviour = "answer"
        self.longest = 1_000
        self.delay_s = 0.0
        self.elsewhere = ""
        self.sha = secrets.token_hex(4)
        """Another model's each time: scores are kept, and a port comes again."""
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def spec(self) -> str:
        return {
            "tei": f"tei:{self.url}",
            "own": f"cohere:{self.url}?model=small",
            "huggingface-endpoint": f"huggingface:{self.url}",
        }.get(self.protocol, f"{self.protocol}:small")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "tei": {"TEI_API_KEY": KEY},
            "own": {"RERANK_API_KEY": KEY},
            "cohere": {"COHERE_API_KEY": KEY, "COHERE_BASE_URL": self.url},
            "jina": {"JINA_API_KEY": KEY, "JINA_BASE_URL": self.url},
            "voyage": {"VOYAGE_API_KEY": KEY, "VOYAGE_BASE_URL": self.url},
            "huggingface": {"HF_TOKEN": KEY, "HF_BASE_URL": self.url},
            "huggingface-endpoint": {"HF_TOKEN": KEY},
        }[self.protocol]

    @property
    def texts(self) -> list[str]:
        """All that were judged."""
        return [text for body in self.bodies for text in _asked(body)[1]]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def reranking_server(protocol: str) -> Iterator[RerankingServer]:
    server = RerankingServer(protocol)
    try:
        yield server
    finally:
        server.close()


STATUSES = {"busy": 429, "loading": 503, "broken": 500, "moved": 307}


def _asked(body: dict[str, Any]) -> tuple[str, list[str]]:
    if "inputs" in body:
        return body["inputs"][0]["text"], [pair["text_pair"] for pair in body["inputs"]]
    return body["query"], body.get("texts", body.get("documents", []))


def _handler(server: RerankingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path != "/info" or server.protocol not in ("tei", "huggingface-endpoint"):
                return self._said(404, {"error": "no such path"})
            about = {
                "model_id": "org/judge", "model_sha": server.sha, "model_dtype": "float32",
                "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
                "max_input_length": 512, "max_batch_tokens": 16384, "max_client_batch_size": 4, "version": "1.8.0",
            }  # fmt: skip
            return self._said(200, about)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bodies.append(body)
            server.paths.append(self.path)
            query, texts = _asked(body)
            time.sleep(server.delay_s)
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                return self._said(401, {"error": f"wrong key; you said {texts}"})
            if server.behaviour in STATUSES:
                return self._said(STATUSES[server.behaviour], {"error": f"busy with {texts}"})
            if any(len(text.split()) > server.longest for text in texts):
                return self._said(413, {"error": f"too long: {texts}"})
            if server.behaviour == "never":
                time.sleep(30)
            scores = [score(query, text) for text in texts]
            if server.behaviour in ("numberless", "outside"):
                scores = [float("nan") if server.behaviour == "numberless" else 7.5] * len(texts)
            ranked = sorted(enumerate(scores), key=lambda pair: -pair[1])  # as the providers do
            if server.behaviour == "fewer":
                ranked, scores = ranked[:-1], scores[:-1]
            if server.behaviour == "twice":
                ranked, scores = [ranked[0], *ranked], [*scores, 0.5]
            return self._said(200, {"something": "else"} if server.behaviour == "odd" else self._shaped(ranked, scores))

        def _shaped(self, ranked: list[tuple[int, float]], scores: list[float]) -> object:
            if server.behaviour == "placeless":
                return {"results": [{"score": one, "relevance_score": one} for one in scores]}
            if server.protocol in ("tei", "huggingface-endpoint"):
                return [{"index": index, "score": one} for index, one in ranked]
            if server.protocol == "huggingface":
                return [[{"label": "LABEL_0", "score": one}] for one in scores]
            found = [{"index": index, "relevance_score": one} for index, one in ranked]
            return {"object": "list", "data": found} if server.protocol == "voyage" else {"results": found}

        def _said(self, status: int, what: object) -> None:
            said = b"{not json" if server.behaviour == "malformed" else json.dumps(what).encode()
            self.send_response(status)
            if server.behaviour == "moved":
                self.send_header("Location", f"{server.elsewhere}{self.path}")
            if server.behaviour == "busy":
                self.send_header("Retry-After", "7")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            if server.behaviour == "half" and self.command == "POST":
                self.wfile.write(said[: len(said) // 2])
                self.close_connection = True
                return
            self.wfile.write(said)

        def log_message(self, *_: Any) -> None: ...

    return Handler
