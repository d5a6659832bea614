"""A `whimbrel models` of its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from serving import free_port


class ModelsServer:
    def __init__(self, log: Path, *options: str, **environment: str) -> None:
        """`options`: of `whimbrel models`."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.spec = f"tei:{self.url}"
        self.log = log
        command = [sys.executable, "-m", "whimbrel", "models", "--port", str(self.port), *options]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WHIMBREL_")}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, env={**kept, **environment}, stderr=file, stdout=file, cwd=log.parent
            )

    def wait(self, seconds: float = 40) -> None:
        """Until the model is loaded."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        pytest.fail(f"no answer in {seconds} s; {self.log.read_text()}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def models_server(log: Path, *options: str, **environment: str) -> Iterator[ModelsServer]:
    server = ModelsServer(log, *options, **environment)
    try:
        server.wait()
        yield server
    finally:
        server.stop()
