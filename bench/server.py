"""A `whimbrel serve` of its own process, and a client that keeps its connection."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

GIVE_UP_S = 120.0


class Serve:
    """`with Serve(home) as serve`: it runs inside the block."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.port = free_port()
        self._environment = {**os.environ, "WHIMBREL_LOG_LEVEL": "warning", **environment}
        self.began = 0.0

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "whimbrel", "--home", str(self.home), "serve", "--port", str(self.port)]
        self.began = time.perf_counter()
        self._process = subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def age(self) -> float:
        """Seconds since the start of the process."""
        return time.perf_counter() - self.began

    def client(self) -> Client:
        return Client(self.port)

    def wait_for(self, path: str) -> float:
        """Ask until the answer is 200; returns the age then."""
        while self.age < GIVE_UP_S and self._process.poll() is None:
            client = self.client()
            try:
                status, _ = client.request("GET", path)
            except OSError:
                status = 0
            finally:
                client.close()
            if status == 200:
                return self.age
            time.sleep(0.005)
        raise RuntimeError(f"serve did not answer {path}: exit status {self._process.poll()}")


class Client:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GIVE_UP_S)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        self._connection.request(method, path, data, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def search(self, query: str) -> dict[str, Any]:
        status, body = self.request("POST", "/v1/search", {"query": query, "top_k": 10})
        if status != 200:
            raise RuntimeError(f"{status}: {body[:500]!r}")
        found: dict[str, Any] = json.loads(body)
        return found

    def close(self) -> None:
        self._connection.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
