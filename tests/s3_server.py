"""An S3 server of one's own for tests: moto's, as a process."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """Its URL. Skips the test where moto is not installed."""
    pytest.importorskip(
        "moto.server", reason="moto, which is an S3 server, is not installed: pip install 'moto[server]'"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as said:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=said, stderr=said
        )
    try:
        _wait(url, server)
        yield url
    finally:
        server.kill()
        server.wait()


def environment(url: str) -> dict[str, str]:
    """What a client of that server finds in its environment."""
    return {
        "AWS_ACCESS_KEY_ID": "whimbrel",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-bucket",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": url,
        "AWS_ALLOW_HTTP": "true",
    }


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            httpx.get(f"{url}/moto-api/data.json", trust_env=False)
        except httpx.TransportError:
            assert server.poll() is None, "moto's server has ended"
            time.sleep(0.05)
        else:
            return
