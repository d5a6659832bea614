"""One owner at a time: it stops when told to, and the next one takes over, also from one that was killed or paused."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crash.harness import SETTINGS, Pool, Process, opened, processes, settle, verified
from crash.model import contents
from whimbrel.app import Whimbrel
from whimbrel.errors import CatalogUnavailable, Fenced

LEASE_S = 2.0


def test_an_owner_that_is_told_to_stop_while_there_is_news_stops(tmp_path: Path) -> None:
    """On Python 3.11 a cancellation that came together with an event was lost, and the owner went on for ever."""
    dice = random.Random(1)
    with opened(tmp_path / "home") as whimbrel:
        whimbrel.create_collection("default")
        for _ in range(30):
            assert whimbrel.own()
            owner = whimbrel.owner
            assert owner is not None
            time.sleep(dice.uniform(0, 0.06))
            waking = threading.Thread(target=lambda o=owner: [o.wake() for _ in range(200)])
            waking.start()
            owner.stop(10.0)
            waking.join()
            assert not owner.running
    with Whimbrel(tmp_path / "home", **SETTINGS) as another:
        assert another.own()


def test_a_write_after_the_owner_has_stopped_by_itself_is_no_error(tmp_path: Path) -> None:
    with opened(tmp_path / "home") as whimbrel:
        whimbrel.add([{"id": "one", "text": "A curlew."}])
        assert whimbrel.owner is not None
        whimbrel.owner.stop()
        whimbrel.delete(["one"])  # it told an owner whose loop was closed
        whimbrel.add([{"id": "two", "text": "Another curlew."}])  # and becomes one again
        verified(whimbrel)


def test_the_next_process_takes_over_at_once_from_a_killed_owner(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with opened(home) as whimbrel:
        whimbrel.add([{"id": "one", "text": "A curlew."}])
    with processes() as pool:
        waiting = [owner_of(pool, home, write=f"w{number}") for number in range(2)]
        holders = [process for process in waiting if owns(process)]
        assert len(holders) == 1
        waiting.remove(holders[0])
        time.sleep(0.3)
        died = time.time()
        assert holders[0].kill()
        taken = [process for process in waiting if soon(lambda process=process: owns(process), 5.0)]
        assert len(taken) == 1
        assert times_of(taken[0], "owner")[-1] - died < 5.0
    with opened(home) as whimbrel:
        settle(whimbrel)
        verified(whimbrel)


# --- two machines, one Postgres --------------------------------------------------------------------------------------


@contextmanager
def two_machines(url: str, folder: Path, **first: Any) -> Iterator[tuple[Process, Process, dict[str, Any]]]:
    """The owner on one, and a process on the other that would be it."""
    settings = {"catalog": url, "owner.lease_s": LEASE_S}
    with processes() as pool:
        one = owner_of(pool, folder / "one", host="one", settings=settings, write="one", **first)
        one.wait_for('"owner": true')
        two = owner_of(pool, folder / "two", host="two", settings=settings)
        yield one, two, settings


def owner_of(pool: Pool, home: Path, settings: dict[str, Any] | None = None, **order: Any) -> Process:
    process = pool.take(ahead=False)
    process.tell(do="own", home=str(home), settings={**SETTINGS, **(settings or {})}, **order)
    process.wait_for("go")
    return process


def owns(process: Process) -> bool:
    said = [json.loads(line) for line in process.said if '"owner"' in line]
    return process.alive and bool(said) and said[-1]["owner"]


def times_of(process: Process, what: str) -> list[float]:
    return [json.loads(line)["at"] for line in process.said if f'"{what}"' in line]


def soon(true: Any, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


def whole(home: Path, settings: dict[str, Any], host: str) -> None:
    """Everything that was asked for has been done, once, and the views hold it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("whimbrel.owner.lock", "whimbrel.owner.owner", "whimbrel.service.intake", "whimbrel.app"):
            patch.setattr(f"{module}.host_name", lambda: host)
        with opened(home, **settings) as whimbrel:
            assert soon(whimbrel.own, 10.0)
            settle(whimbrel)
            verified(whimbrel)
            asked = [job for job in whimbrel.jobs(limit=10_000) if job.kind == "add"]
            assert all(job.state == "done" for job in asked)
            assert len(contents(whimbrel)) == len(asked)


@pytest.mark.soak
def test_another_machine_takes_over_when_the_lease_of_a_killed_owner_has_run_out(
    fresh_postgres: str, tmp_path: Path
) -> None:
    with two_machines(fresh_postgres, tmp_path) as (one, two, settings):
        time.sleep(1.0)
        assert not owns(two)
        died = time.time()
        one.kill()
        two.wait_for('"owner": true', 120)
        assert times_of(two, "owner")[-1] - died < LEASE_S + 4.0
        time.sleep(1.0)
        two.kill()
        whole(tmp_path / "two", settings, "two")


def test_a_paused_owner_that_wakes_up_after_another_took_over_is_fenced_off_and_stops(
    fresh_postgres: str, tmp_path: Path
) -> None:
    with two_machines(fresh_postgres, tmp_path, pause_s=1.5) as (one, two, settings):
        time.sleep(0.5)
        one.signal(signal.SIGSTOP)
        two.wait_for('"owner": true', 120)
        time.sleep(1.0)
        one.signal(signal.SIGCONT)
        one.wait_for('"failed"', 120)  # by the fence, or because its connection was ended meanwhile
        assert soon(lambda: not owns(one), 10)
        time.sleep(1.0)
        assert owns(two)
        one.kill()
        two.kill()
        whole(tmp_path / "two", settings, "two")


@pytest.mark.soak
def test_an_owner_paused_inside_a_transaction_does_not_keep_its_lease_for_ever(
    fresh_postgres: str, tmp_path: Path
) -> None:
    with two_machines(fresh_postgres, tmp_path, hold=60, pause_s=1.5) as (one, two, _):
        one.wait_for("holding")
        one.signal(signal.SIGSTOP)
        two.wait_for('"owner": true', 120)


def test_an_owner_paused_within_a_statement_does_not_keep_its_lease(
    fresh_postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whimbrel.catalog import engine

    monkeypatch.setattr(engine, "PAUSE_S", 1.0)
    settings = {"catalog": fresh_postgres, "owner.lease_s": LEASE_S}
    with opened(tmp_path / "one", **settings) as whimbrel:
        whimbrel.add([{"id": "one", "text": "A curlew."}])
    plain = fresh_postgres.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(plain) as paused, paused.cursor() as cursor:
        cursor.execute("SELECT token FROM leases FOR SHARE")  # as its fence
        with (
            pytest.raises(psycopg.errors.AdminShutdown),
            cursor.copy("COPY texts (id, hash) FROM STDIN"),
            opened(tmp_path / "two", **settings) as other,
        ):
            assert soon(lambda: other.own() or other.owner is not None, 60)


def test_a_fenced_owner_cannot_write(fresh_postgres: str, tmp_path: Path) -> None:
    settings = {"catalog": fresh_postgres, "owner.lease_s": LEASE_S}
    with opened(tmp_path / "one", **settings) as whimbrel:
        whimbrel.add([{"id": "one", "text": "A curlew."}])
        owner = whimbrel.owner
        assert owner is not None
        with whimbrel.catalog.write() as connection:  # another one takes the lease
            from whimbrel.catalog import leases

            assert leases.take(connection, "owner", "another:1", 30.0, {"host": "another"}, force=True)
        with pytest.raises((Fenced, CatalogUnavailable)), whimbrel.catalog.write(fence=owner.fence):
            pass
        whimbrel.start_add([{"id": "two", "text": "Another curlew."}])
        assert soon(lambda: not owner.running, 10.0)
        assert isinstance(owner.failed, Fenced)
        assert set(contents(whimbrel)) == {"text:one"}


def test_searches_on_another_machine_do_not_make_the_owner_build_its_views_again(
    fresh_postgres: str, tmp_path: Path
) -> None:
    settings = {"catalog": fresh_postgres}
    with opened(tmp_path / "one", **settings) as whimbrel:
        whimbrel.add([{"id": "one", "text": "A curlew."}])
        settle(whimbrel)
        before = [row.id for row in whimbrel.views()]
        with Whimbrel(tmp_path / "two", **SETTINGS, **settings) as other:
            for _ in range(10):
                with pytest.raises(Exception, match=r"not there|cannot be read|no table"):
                    other.search("curlew")
                time.sleep(0.05)
        time.sleep(0.5)
        settle(whimbrel)
        assert [row.id for row in whimbrel.views()] == before
