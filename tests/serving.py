"""A `whimbrel serve` of its own process, and what its answers are checked by."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest


class Served:
    """A `whimbrel serve` of its own process."""

    def __init__(self, home: Path, *options: str, **environment: str) -> None:
        """`options`: of `whimbrel serve`."""
        self.home = home
        self.port = free_port()
        command = [sys.executable, "-m", "whimbrel", "--home", str(home), "serve", "--port", str(self.port), *options]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WHIMBREL_")}
        kept |= {"WHIMBREL_CACHE_ANSWERS_S": "0", "WHIMBREL_INGEST_WORKERS": "1"}
        self.log = home.with_name(f"{home.name}-{self.port}.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env={**kept, **environment}, stderr=log, stdout=log)
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def wait(self, wanted: Mapping[str, Any], path: str = "/health", seconds: float = 40) -> None:
        """Until the answer has these values."""
        until = time.monotonic() + seconds
        found: Any = None
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                found = self.http.get(path).json()
            except httpx.ConnectError:
                found = None
            if found and all(found[key] == value for key, value in wanted.items()):
                return
            time.sleep(0.05)
        pytest.fail(f"{path} says {found}, not {wanted}; {self.log.read_text()}")

    def stop(self) -> int:
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refused(answer: httpx.Response, status: int, error: str) -> dict[str, Any]:
    """Checks the one shape of all errors: problem details (RFC 9457)."""
    body = answer.json()
    assert (answer.status_code, body["status"], body["error"]) == (status, status, error), body
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(body) == {
        *("type", "title", "status", "detail", "instance", "error", "message", "hint", "request_id")
    }, body
    assert body["type"] == f"/docs#{error}"
    assert body["title"]
    assert body["message"] == body["detail"] != ""
    assert isinstance(body["hint"], str)
    assert body["instance"].endswith(body["request_id"])
    assert answer.headers.get("x-request-id", body["request_id"]) == body["request_id"]
    return dict(body)


@dataclass(frozen=True, slots=True)
class SentEvent:
    """A server-sent event."""

    name: str
    data: Any


def sent_events(text: str) -> list[SentEvent]:
    """What a stream has sent, comments left out."""
    found = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.split("\n") if line and not line.startswith(":")]
        fields = {name: value for name, _, value in lines}
        if fields:
            found.append(SentEvent(fields["event"], json.loads(fields["data"])))
    return found


def own_address() -> str | None:
    """An address of this machine that is not loopback; None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        found = str(probe.getsockname()[0])
    return None if found.startswith("127.") else found
