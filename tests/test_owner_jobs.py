"""Jobs of one kind, or of one collection, do not wait for others; and what hides text is tried until it has gone."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from running import DEADLINE_S, Toy, files, until, uris, verified
from whimbrel.app import Whimbrel
from whimbrel.catalog import collections, erase, jobs, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import Catalog
from whimbrel.domain import Job, JobState, ViewKind, ViewState
from whimbrel.errors import ConfigError, Conflict
from whimbrel.ingest.workers import ExtractionPool, Processed, Request
from whimbrel.models.embedders import resolve
from whimbrel.owner import rest
from whimbrel.owner.scrubs import Scrubs
from whimbrel.stores.lancedb.store import LanceStore

pytestmark = pytest.mark.timeout(180)

MARK = "zyxomarkq"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: made)
    return made


@pytest.fixture
def home(tmp_path: Path, toy: Toy) -> Iterator[Whimbrel]:
    with opened(tmp_path / "home") as whimbrel:
        yield whimbrel


def opened(folder: Path, **overrides: Any) -> Whimbrel:
    return Whimbrel(home=folder, **{"embedder": "toy", "owner.erasure_grace_s": 0, **overrides})


def notes(name: str, count: int = 3) -> list[dict[str, str]]:
    return [{"id": f"{name}{number}", "text": f"Note {number} of {name}."} for number in range(count)]


def view_of(home: Whimbrel, collection: str, kind: ViewKind) -> int:
    return next(row.id for row in home.views(collection) if row.view.kind is kind)


def ended(home: Whimbrel, job: Job) -> dict[str, Any]:
    return home.finish(job, wait="end", timeout_s=DEADLINE_S)


# --- side by side ----------------------------------------------------------------------------------------------------


def test_a_rebuild_that_stands_still_holds_up_nothing_else(home: Whimbrel, toy: Toy) -> None:
    home.add(notes("a"), "one")
    home.add(notes("b"), "two")
    toy.out = "overloaded"
    home.add([{"id": "late", "text": "It cannot be embedded now."}], "one", wait="lexical")
    stuck = home.start_view_job("rebuild_view", view_of(home, "one", ViewKind.STORE))
    until(lambda: home.job(stuck.id).progress, "the rebuild has begun")
    compared = home.start_view_job("verify_view", view_of(home, "one", ViewKind.LEXICON))
    ended(home, home.purge(["b0"], "two"))
    assert ended(home, compared)["equal"]
    lexicon = view_of(home, "two", ViewKind.LEXICON)
    assert ended(home, home.start_view_job("rebuild_view", lexicon))["replaces"] == lexicon
    ended(home, home.delete_collection("two"))
    assert home.job(stuck.id).state in (JobState.QUEUED, JobState.RUNNING)
    toy.out = ""
    made = home.finish(stuck, timeout_s=DEADLINE_S)
    assert view_of(home, "one", ViewKind.STORE) in (made["view"], made["replaces"])
    verified(home, "one")


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch, prefix: str) -> Iterator[None]:
    """Files whose names begin so are read when this ends."""
    process, let_go = ExtractionPool.process, [False]

    async def held_back(self: ExtractionPool, request: Request) -> Processed:
        while request.name.startswith(prefix) and not let_go[0]:
            await asyncio.sleep(0.02)
        return await process(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(ExtractionPool, "process", held_back)
        try:
            yield
        finally:
            let_go[0] = True


def test_adds_and_other_collections_do_not_wait_for_a_long_ingest(
    home: Whimbrel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, other = tmp_path / "long", tmp_path / "other"
    files(long, 3)
    other.mkdir()
    (other / "one.md").write_text("One note.")
    (other / "two.md").write_text("Another note.")
    home.own()
    with held(monkeypatch, "f0"):
        first = home.start_ingest([long], "big")
        until(lambda: home.job(first.id).state is JobState.RUNNING, "the long ingest")
        second = home.start_ingest([other / "one.md"], "big")
        assert home.add(notes("a"), "small")["added"] == 3
        assert home.add(notes("b"), "big", wait="job")["added"] == 3
        assert home.ingest([other / "two.md"], "small")["added"] == 1
        assert home.job(first.id).state is JobState.RUNNING
        assert home.job(second.id).state is JobState.QUEUED, "a collection's own ingests stay in order"
    assert home.finish(second, timeout_s=DEADLINE_S)["added"] == 1
    assert home.job(first.id).state is JobState.DONE
    assert len(uris(home, "big")) == 7


async def test_purges_that_are_due_together_share_a_scrub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[float] = []
    scrub = erase.scrub

    def counted(catalog: Catalog) -> erase.ScrubReport:
        begun.append(time.monotonic())
        time.sleep(0.3)  # others come while it is on its way
        return scrub(catalog)

    monkeypatch.setattr(erase, "scrub", counted)
    catalog, scrubs = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}"), Scrubs()

    async def purge(removing_s: float) -> tuple[float, erase.ScrubReport]:
        with scrubs.removing():
            await asyncio.sleep(removing_s)
        removed = time.monotonic()
        report = await scrubs.next(catalog)
        assert report.done
        return removed, report

    together = await asyncio.gather(*(purge(0.02 * number) for number in range(10)))
    assert len(begun) == 1
    assert all(removed < begun[0] for removed, _ in together), "what was removed later would not be covered"
    first = asyncio.create_task(purge(0.0))
    while len(begun) < 2:
        await asyncio.sleep(0.01)
    late = await asyncio.gather(*(purge(0.0) for _ in range(5)))
    await first
    assert len(begun) == 3, "those that come during a scrub share the next one"
    assert all(removed < begun[2] for removed, _ in late)
    catalog.close()


# --- what must not be lost -------------------------------------------------------------------------------------------


def test_a_purge_outlives_the_deletion_of_its_collection(tmp_path: Path, toy: Toy) -> None:
    with opened(tmp_path / "home", **{"owner.erasure_grace_s": 1}) as home:
        home.add([{"id": "a", "text": f"It tells of {MARK}."}, {"id": "b", "text": "Harmless."}], "doomed")
        purge = home.purge(["a"], "doomed")
        until(lambda: home.job(purge.id).state is JobState.WAITING, "the grace")
        ended(home, home.delete_collection("doomed"))
        assert ended(home, purge)["documents"] == 1
        assert holding(home) == []


def holding(home: Whimbrel) -> list[Path]:
    """The files that hold the mark."""
    there = [path for path in home.home.path.rglob("*") if path.is_file()]
    return [path for path in there if MARK.encode() in path.read_bytes()]


@pytest.mark.parametrize("error", [Conflict("Not now."), RuntimeError(f"defect at {MARK}"), OSError(5, "I/O error")])
def test_an_erasure_goes_on_after_any_error_and_quotes_none(
    error: Exception, home: Whimbrel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    home.add([{"id": "a", "text": f"It tells of {MARK}."}, {"id": "b", "text": "Harmless."}])
    with monkeypatch.context() as patch:
        patch.setattr("whimbrel.catalog.vectors.sweep", raising(error))
        job = home.purge(["a"])
        failed = until(lambda: (now := home.job(job.id)).error and now, "the first try")
        assert failed.state in (JobState.QUEUED, JobState.RUNNING)
        assert MARK not in failed.error
    assert ended(home, job)["documents"] == 1
    assert home.job(job.id).error == ""
    assert holding(home) == []
    assert MARK not in caplog.text


def raising(error: Exception) -> Any:
    def work(*_: object) -> None:
        raise error

    return work


def test_the_next_owner_takes_up_what_was_lost(tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge and a deletion that were cancelled once, and a retired view that nobody drops."""
    monkeypatch.setattr("whimbrel.owner.tasks.DROP_GRACE_S", 0.1)
    with opened(tmp_path / "home", **{"owner.erasure_grace_s": 3600}) as home:
        home.add([{"id": "a", "text": f"It tells of {MARK}."}, {"id": "b", "text": "Harmless."}])
        home.add([{"id": "c", "text": f"It tells of {MARK}."}], "unwanted")
        purge = home.purge(["a"])
        until(lambda: home.job(purge.id).state is JobState.WAITING, "the grace")
    with opened(tmp_path / "home") as home:
        deletion = home.delete_collection("unwanted")
        with home.catalog.write() as connection:
            store = collections.views(connection, 1)[0]
            retired = collections.add_view(
                connection,
                collections.find(connection, "default"),
                store.view.kind,
                uri=store.view.uri,
                space_id=store.view.space_id,
                chunking_id=store.view.chunking_id,
            )
            collections.set_view(connection, retired.id, state=ViewState.RETIRED)
            connection.execute(update(t.jobs).where(t.jobs.c.kind != "add").values(state=JobState.CANCELLED))
        assert home.own()
        ended(home, home.job(deletion.id))
        ended(home, home.job(purge.id))
        until(lambda: all(row.id != retired.id for row in home.views()), "the retired view goes")
        assert holding(home) == []
        verified(home, "default")


def test_a_store_that_is_no_store_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no store 'foo'"):
        Whimbrel(home=tmp_path / "home", store="foo:")
    assert not (tmp_path / "home").exists()


def test_a_first_view_in_a_store_that_is_none_is_made_anew_and_blocks_no_purge(
    tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version wrote it, under settings that have been mended since."""
    monkeypatch.setattr("whimbrel.owner.tasks.DROP_GRACE_S", 0.1)
    with opened(tmp_path / "home") as home:
        made = home.create_collection("default")
        with home.catalog.write() as connection:
            chunking = collections.chunking_id(connection, home.cuttings.configured.spec)
            space = vectors.space_id(connection, toy.space, "toy")
            wrong = collections.add_view(
                connection, made, ViewKind.STORE, uri="foo:", space_id=space, chunking_id=chunking
            )
        home.add([{"id": "a", "text": f"It tells of {MARK}."}, {"id": "b", "text": "Harmless."}])
        ended(home, home.purge(["a"]))
        assert holding(home) == []
        assert {row.view.uri for row in home.views() if row.view.kind is ViewKind.STORE} == {home.settings.store}
        [dropped] = [job for job in home.jobs() if job.kind == "drop_view"]
        until(lambda: home.job(dropped.id).state is JobState.DONE, "the wrong view is forgotten")
        assert dropped.args["view"] == wrong.id
        assert "foo" in home.job(dropped.id).result["left"]
        verified(home, "default")


def test_a_job_to_drop_what_has_become_the_live_view_fails_for_good(home: Whimbrel) -> None:
    home.add(notes("a"))
    live = view_of(home, "default", ViewKind.STORE)
    with home.catalog.write() as connection:
        job, _ = jobs.enqueue(
            connection, "drop_view", collection_id=1, collection="default", args={"view": live, "now": True}
        )
    until(lambda: home.job(job.id).state is JobState.FAILED, "it is refused")
    assert home.search("note").hits


# --- a catalog that is out -------------------------------------------------------------------------------------------


def test_the_owner_outlasts_a_catalog_that_stays_locked(
    tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a write waits for it, and than the lease: as when a large catalog is written anew."""
    monkeypatch.setattr("whimbrel.catalog.engine.BUSY_TIMEOUT_S", 0.2)
    with opened(tmp_path / "home", **{"owner.lease_s": 1}) as home:
        home.add(notes("a"))
        owner = home.owner
        assert owner is not None
        job = home.start_add(notes("b", 300))
        until(lambda: home.job(job.id).state is not JobState.QUEUED, "the job has begun")
        other = sqlite3.connect(home.catalog.path or "", isolation_level=None, timeout=30)
        other.execute("BEGIN IMMEDIATE")
        time.sleep(3.0)
        assert owner.running
        assert home.owner_lease() is not None, "the lease has run out, and the lock of the home is held"
        other.execute("ROLLBACK")
        other.close()
        until(lambda: home.job(job.id).state is JobState.DONE, "the job goes on")
        assert home.owner is owner
        assert owner.running
        assert len(uris(home, "default")) == 303
        home.wait_for_head("default", timeout_s=DEADLINE_S)
        verified(home, "default")


def test_writing_the_catalog_anew_does_not_hold_the_one_connection_that_writes(home: Whimbrel) -> None:
    with home.catalog.bare(), home.catalog.write() as connection:
        collections.create(connection, "meanwhile")
    assert [one.name for one in home.collections()] == ["meanwhile"]


# --- at rest ---------------------------------------------------------------------------------------------------------


def test_memory_is_given_back_once_per_rest(tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(rest, "trimmer", lambda: lambda: given.append(time.monotonic()))
    monkeypatch.setattr("whimbrel.owner.views.AT_REST_S", 0.3)
    with opened(tmp_path / "home") as home:
        home.add(notes("a"))
        until(lambda: given and time.monotonic() - given[-1] > 1.5, "a rest of many times 0.3 s")
        rests = len(given)
        assert rests <= 3, "two views, which may have come to rest one after the other"
        home.add(notes("b"))
        until(lambda: len(given) > rests, "the next one")


def test_a_row_that_a_database_keeps_though_it_was_told_to_delete_it(
    tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some do; the rows are counted when nothing has come for a while."""
    deleting = LanceStore.delete

    async def kept_one(self: LanceStore, ids: Sequence[str]) -> None:
        await deleting(self, ids[1:])

    monkeypatch.setattr("whimbrel.owner.views.AT_REST_S", 0.3)
    with opened(tmp_path / "home") as home:
        home.add(notes("a"))
        home.wait_for_head("default", timeout_s=DEADLINE_S)
        before = view_of(home, "default", ViewKind.STORE)
        monkeypatch.setattr(LanceStore, "delete", kept_one)
        home.delete(["a0"])

        def live() -> list[int]:
            return [row.id for row in home.views("default") if row.view.state is ViewState.LIVE]

        until(lambda: len(live()) == 2 and before not in live(), "the view is built anew")
        verified(home, "default")


def test_the_c_library_gives_memory_back_where_it_can() -> None:
    trim = rest.trimmer()
    if trim is None:
        pytest.skip("the C library is not glibc")
    assert trim() in (0, 1)
