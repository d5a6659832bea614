"""The real Milvus server, of the package `milvus`, for tests: started, killed and started again on one folder.

The package lies in an environment of its own, `.venv-milvus`, which `make test` makes: it wants other versions of what
Whimbrel needs. It exists for few platforms; elsewhere the tests of a server are skipped.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

VERSION = "2.3.5"
PORTS = [
    *("etcd", "etcd_peer", "root_coord", "proxy", "proxy_internal", "query_coord", "query_node", "index_coord"),
    *("index_node", "data_coord", "data_node", "health"),
]
PACE = {
    "PROXY_TIMETICKINTERVAL": "50",
    "QUERYCOORD_CHECKINTERVAL": "100",
    "QUERYCOORD_DISTPULLINTERVAL": "50",
    "QUERYCOORD_CHECKHANDOFFINTERVAL": "500",
}
"""Milliseconds: a quarter of its own pace and less, for tests make many collections, and wait for each."""
_PREPARE = """
import sys, milvus

folder, *settings = sys.argv[1:]
config = milvus.MilvusServerConfig(data_dir=folder)
config.resolve()
for setting in settings:
    name, _, value = setting.partition("=")
    config.set(name, config.get_value(value, config.get_type(name)) if name in config.configurable_items else value)
config.write_config()
milvus._initialize_data_files(folder)
"""
"""Writes the configuration, and unpacks the server of that very version."""


def milvus_python() -> Path | None:
    """The Python that has the server's package; None where it is not installed."""
    named = os.environ.get("WHIMBREL_TEST_MILVUS")
    python = Path(named) if named else Path(__file__).parents[1] / ".venv-milvus" / "bin" / "python"
    return python if python.is_file() else None


class MilvusServer:
    def __init__(self, folder: Path, python: Path, *settings: str, paced: bool = True) -> None:
        """`settings`: more of the server's configuration, as `name=value`. `paced`: at the pace of tests."""
        self.folder = folder
        self._python = python
        self._settings = settings
        self._pace = PACE if paced else {}
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))

    @property
    def port(self) -> int:
        return self._ports["proxy"]

    @property
    def uri(self) -> str:
        return f"milvus+http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        if not (self.folder / "bin").is_dir():
            self._prepare()
        environment = {
            **self._pace,
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(self._ports["health"]),
            "LD_LIBRARY_PATH": str(self.folder / "bin"),
            "ETCD_CONFIG_PATH": str(self.folder / "etcd.yaml"),
        }
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.folder / "bin" / "milvus", "run", "standalone"],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_die_with_us if sys.platform == "linux" else None,
                env={**os.environ, **environment},
            )
        deadline = time.monotonic() + 120
        while not self._healthy():
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = [f"{name}_port={self._ports[name]}" for name in PORTS if name not in ("etcd_peer", "health")]
        subprocess.run([self._python, "-c", _PREPARE, self.folder, *ports, *self._settings], check=True)
        client, peer = (f"http://127.0.0.1:{self._ports[name]}" for name in ("etcd", "etcd_peer"))
        about = {  # its addresses, which are the same for all servers otherwise
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
        }
        (self.folder / "etcd.yaml").write_text("".join(f"{name}: {value}\n" for name, value in about.items()))

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['health']}/healthz", timeout=5) as answer:
                return b"OK" in answer.read()
        except OSError:
            return False

    def kill(self) -> None:
        """As when its machine loses power: all its processes at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The server takes connections, and answers nothing."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)


def _die_with_us() -> None:
    """Also where the tests are killed, and end nothing themselves."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextmanager
def own_milvus(*settings: str, paced: bool = True) -> Iterator[MilvusServer]:
    """A server in a folder that is deleted at the end. Skips the test where the package is not installed."""
    python = milvus_python()
    if python is None:
        pytest.skip("the server's package `milvus` is not installed here: `make test` does, where it exists")
    folder = Path(tempfile.mkdtemp(prefix="whimbrel-milvus-"))
    server = MilvusServer(folder, python, *settings, paced=paced)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
