"""Small servers that speak the protocols of models' providers over sockets, for the providers' own clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "hf_the-right-key"
MODEL = "small"
PROTOCOLS = ("openai", "anthropic", "huggingface", "ollama")

Reply = Callable[[str, str], str]
"""From the instructions and the input to the answer."""


class ModelServer:
    """One provider. What it does is set by `behaviour`:

    `answer`; `busy` (429 with Retry-After); `overloaded` (503); `overloaded for 17 s` (with it); `moved` (a redirect to
    `elsewhere`); `quota`; `long` (400: the prompt is too long); `slow`
    (never begins); `silent` (stops after the first words); `cut` (closes the connection after them); `unfinished` (ends
    after them as if all were well); `error` (an error inside the stream); `malformed` (no JSON); `odd` (JSON of
    another shape); `page` (an HTML page); `empty`; `length` (reaches its limit); `filtered`; `hangup` (closes without
    a word). A key or model that it does not know it refuses always.
    """

    def __init__(self, protocol: str, reply: Reply | str = "It is blue. [1]") -> None:
        self.protocol = protocol
        self.reply: Reply = reply if callable(reply) else lambda _instructions, _input: str(reply)
        self.behaviour = "answer"
        self.next: list[str] = []
        """What it does at the next requests, before `behaviour` counts again."""
        self.retry_after = "17"
        self.elsewhere = ""
        self.asked: list[tuple[str, str]] = []
        """Instructions and input of each request."""
        self.bodies: list[dict[str, Any]] = []
        self.gone = threading.Event()
        """Set when a client has closed its connection in the middle of a stream."""
        self.ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What leads the provider's client here."""
        return {
            "openai": {"OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_KEY": KEY},
            "anthropic": {"ANTHROPIC_BASE_URL": self.url, "ANTHROPIC_API_KEY": KEY},
            "huggingface": {"HF_BASE_URL": f"{self.url}/v1", "HF_TOKEN": KEY},
            "ollama": {"OLLAMA_HOST": self.url.removeprefix("http://"), "OLLAMA_API_KEY": KEY},
        }[self.protocol]

    @property
    def spec(self) -> str:
        return f"{self.protocol}:{MODEL}"

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def served(protocol: str = "openai", reply: Reply | str = "It is blue. [1]") -> Iterator[ModelServer]:
    server = ModelServer(protocol, reply)
    try:
        yield server
    finally:
        server.close()


VARIABLES = (
    *("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "HF_TOKEN", "HF_BASE_URL"),
    *("HF_INFERENCE_ENDPOINT", "OLLAMA_HOST", "OLLAMA_BASE_URL", "OLLAMA_API_KEY", "WHIMBREL_MODEL"),
)
"""What must not come from outside into a test."""


def _handler(server: ModelServer) -> type[BaseHTTPRequestHandler]:
    speak = _Anthropic if server.protocol == "anthropic" else _ChatCompletions

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bodies.append(body)
            usual = server.behaviour if server.next else ""
            if usual:
                server.behaviour = server.next.pop(0)
            try:
                speak(server, self, body).answer()
            except (BrokenPipeError, ConnectionResetError):
                server.gone.set()
                self.close_connection = True
            if usual:
                server.behaviour = usual

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionResetError:
                server.gone.set()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


class _Speaker:
    """What the protocols have in common."""

    path = ""

    def __init__(self, server: ModelServer, http: BaseHTTPRequestHandler, body: Mapping[str, Any]) -> None:
        self.server, self.http, self.body = server, http, body

    def answer(self) -> None:
        behaviour = self.server.behaviour
        if self.http.path != self.path:
            return self.refuse(404, "not_found_error", "no such route")
        if not self.knows_key():
            return self.refuse(401, "authentication_error", f"the key {self.key()} is wrong", code="invalid_api_key")
        if self.body["model"] != MODEL:
            return self.refuse(404, "not_found_error", "no such model", code="model_not_found")
        refusals: dict[str, tuple[int, str, str]] = {
            "busy": (429, "rate_limit_error", "rate_limit_exceeded"),
            "overloaded": (503, "overloaded_error", "overloaded"),
            "overloaded for 17 s": (503, "overloaded_error", "overloaded"),
            "quota": (402, "billing_error", "insufficient_quota"),
            "long": (400, "invalid_request_error", "context_length_exceeded"),
        }
        if behaviour in refusals:
            status, kind, code = refusals[behaviour]
            return self.refuse(status, kind, "prompt is too long: SECRET DOCUMENT", code=code)
        if behaviour == "moved":
            return self.send(307, "text/plain", b"", {"Location": f"{self.server.elsewhere}{self.path}"})
        if behaviour == "hangup":
            self.http.close_connection = True
            return None
        if behaviour == "slow":
            return self.wait()
        if behaviour == "page":
            return self.send(200, "text/html", b"<html><body>Sign in</body></html>")
        instructions, input = self.read()
        self.server.asked.append((instructions, input))
        return self.stream(self.server.reply(instructions, input))

    def stream(self, text: str) -> None:
        behaviour = self.server.behaviour
        http = self.http
        http.send_response(200)
        http.send_header("Content-Type", "text/event-stream")
        http.send_header("Transfer-Encoding", "chunked")
        http.end_headers()
        if behaviour == "malformed":
            self.chunk(b"data: {this is no JSON\n\n")
            return self.end()
        if behaviour == "odd":
            self.chunk(b'event: message_start\ndata: {"type": "message_start", "message": 5, "choices": "none"}\n\n')
            return self.end()
        self.begin()
        words = [] if behaviour in ("empty", "filtered") else text.split(" ")
        for place, word in enumerate(words):
            self.words(word if place == 0 else f" {word}")
            if place == 1 and behaviour in ("silent", "cut", "unfinished", "error"):
                return self.break_off(behaviour)
        reason = {"length": "length", "filtered": "content_filter"}.get(behaviour, "stop")
        self.finish(reason)
        return self.end()

    def break_off(self, behaviour: str) -> None:
        if behaviour == "silent":
            return self.wait()
        if behaviour == "error":
            self.error()
        if behaviour == "cut":
            self.http.close_connection = True
            return None
        return self.end()

    def wait(self) -> None:
        """Until the client has had enough."""
        self.http.connection.settimeout(0.05)
        while not self.server.ended.is_set():
            try:
                if self.http.connection.recv(1) == b"":
                    break
            except TimeoutError:
                continue
        self.server.gone.set()
        self.http.close_connection = True

    def refuse(self, status: int, kind: str, message: str, code: str = "") -> None:
        error = {"type": kind, "message": message, "code": code}
        says = status == 429 or "for" in self.server.behaviour
        headers = {"Retry-After": self.server.retry_after} if says else {}
        self.send(status, "application/json", json.dumps({"type": "error", "error": error}).encode(), headers)

    def send(self, status: int, kind: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.http.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.http.send_header(name, value)
        self.http.end_headers()
        self.http.wfile.write(data)

    def chunk(self, data: bytes) -> None:
        self.http.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.http.wfile.flush()

    def end(self) -> None:
        self.http.wfile.write(b"0\r\n\r\n")

    def knows_key(self) -> bool:
        return self.key() == KEY

    def key(self) -> str:
        return str(self.http.headers.get("Authorization", "")).removeprefix("Bearer ")

    def read(self) -> tuple[str, str]:
        raise NotImplementedError

    def begin(self) -> None:
        raise NotImplementedError

    def words(self, text: str) -> None:
        raise NotImplementedError

    def finish(self, reason: str) -> None:
        raise NotImplementedError

    def error(self) -> None:
        raise NotImplementedError


class _ChatCompletions(_Speaker):
    """OpenAI's chat completions, which Ollama and Hugging Face speak too."""

    path = "/v1/chat/completions"

    def read(self) -> tuple[str, str]:
        assert self.body["stream"] is True
        said = {message["role"]: _plain(message["content"]) for message in self.body["messages"]}
        return said.get("system") or said.get("developer", ""), said["user"]

    def begin(self) -> None:
        self.data([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def words(self, text: str) -> None:
        self.data([{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}])

    def finish(self, reason: str) -> None:
        self.data([{"index": 0, "delta": {"role": "assistant"}, "finish_reason": reason}])
        self.data([], usage={"prompt_tokens": 120, "completion_tokens": 30, "total_tokens": 150})
        self.chunk(b"data: [DONE]\n\n")

    def error(self) -> None:
        self.chunk(b'data: {"error": {"message": "SECRET DOCUMENT", "type": "server_error", "code": null}}\n\n')

    def data(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int] | None = None) -> None:
        about = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "system_fingerprint": "x"}
        self.chunk(f"data: {json.dumps({**about, 'choices': choices, 'usage': usage})}\n\n".encode())


class _Anthropic(_Speaker):
    """Anthropic's messages."""

    path = "/v1/messages"

    def key(self) -> str:
        return str(self.http.headers.get("X-Api-Key") or super().key())

    def answer(self) -> None:
        self.path = self.http.path if self.http.path.startswith("/v1/messages") else self.path
        super().answer()

    def read(self) -> tuple[str, str]:
        assert self.body["stream"] is True
        return _plain(self.body["system"]), _plain(self.body["messages"][-1]["content"])

    def begin(self) -> None:
        usage = {"input_tokens": 120, "output_tokens": 1}
        about = {"id": "m1", "type": "message", "role": "assistant", "model": MODEL, "content": [], "usage": usage}
        self.event("message_start", message={**about, "stop_reason": None, "stop_sequence": None})
        self.event("content_block_start", index=0, content_block={"type": "text", "text": ""})

    def words(self, text: str) -> None:
        self.event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def finish(self, reason: str) -> None:
        reasons = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
        self.event("content_block_stop", index=0)
        delta = {"stop_reason": reasons[reason], "stop_sequence": None}
        self.event("message_delta", delta=delta, usage={"output_tokens": 30})
        self.event("message_stop")

    def error(self) -> None:
        self.event("error", error={"type": "overloaded_error", "message": "SECRET DOCUMENT"})

    def event(self, kind: str, **data: Any) -> None:
        self.chunk(f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode())


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part["text"]) for part in content)
