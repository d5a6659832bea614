"""Jobs as rows: claimed once, resumed from their cursor, cancelled, given up; never lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, select

from whimbrel.catalog import jobs
from whimbrel.catalog import tables as t
from whimbrel.catalog.engine import Catalog, now
from whimbrel.domain import Job, JobState
from whimbrel.errors import Conflict, JobNotFound

KINDS = ("ingest", "purge")


def add(connection: Connection, kind: str = "ingest", **more: Any) -> Job:
    given: dict[str, Any] = {"collection_id": None, "collection": "docs", "args": {"n": 1}, **more}
    return jobs.enqueue(connection, kind, **given)[0]


def test_jobs_run_oldest_first_and_end(catalog: Catalog) -> None:
    with catalog.write() as connection:
        first, second = add(connection, args={"n": 1}), add(connection, "purge", args={"n": 2})
        assert jobs.claim(connection, [], "here") is None
    with catalog.write() as connection:
        claimed, cursor = jobs.claim(connection, KINDS, "here") or pytest.fail("nothing to claim")
        assert (claimed.id, claimed.state, claimed.attempts, claimed.args, cursor) == (
            first.id,
            JobState.RUNNING,
            1,
            {"n": 1},
            {},
        )
        assert not jobs.progress(connection, first.id, cursor={"at": 7}, done=7, of=9)
        jobs.finish(connection, first.id, {"added": 9})
        done = jobs.get(connection, first.id)
    assert (done.state, done.progress, done.result) == (JobState.DONE, {"done": 7, "of": 9}, {"added": 9})
    with catalog.write() as connection:
        assert [job.id for job in jobs.listing(connection, active=True)] == [second.id]
        assert {job.id for job in jobs.listing(connection)} == {first.id, second.id}
        assert jobs.claim(connection, ["ingest"], "here") is None
        assert (jobs.claim(connection, KINDS, "here") or [None])[0] == jobs.get(connection, second.id)
        with pytest.raises(JobNotFound):
            jobs.get(connection, "nowhere")


def test_a_job_is_claimed_once(catalog: Catalog, catalog_url: str) -> None:
    with catalog.write() as connection:
        made = [add(connection).id for _ in range(30)]
    claimed: Counter[str] = Counter()

    def work() -> None:
        own = Catalog(catalog_url)
        while True:
            with own.write() as connection:
                found = jobs.claim(connection, KINDS, "here")
            if found is None:
                break
            claimed[found[0].id] += 1
        own.close()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert claimed == Counter(made)


def test_a_job_of_one_host_waits_for_it(catalog: Catalog) -> None:
    with catalog.write() as connection:
        add(connection, host="there")
        assert jobs.claim(connection, KINDS, "here") is None
        assert jobs.claim(connection, KINDS, "there") is not None


def test_the_same_request_under_one_key_is_one_job(catalog: Catalog) -> None:
    with catalog.write() as connection:
        first, new = jobs.enqueue(
            connection, "ingest", collection_id=None, collection="docs", args={"n": [1]}, idempotency_key="k"
        )
        assert new
    with catalog.write() as connection:
        again, new = jobs.enqueue(
            connection, "ingest", collection_id=None, collection="docs", args={"n": [1]}, idempotency_key="k"
        )
        assert (again.id, new) == (first.id, False)
    for kind, args in (("purge", {"n": [1]}), ("ingest", {"n": [2]})):
        with pytest.raises(Conflict), catalog.write() as connection:
            add(connection, kind, args=args, idempotency_key="k")


def test_a_request_that_came_to_nothing_may_be_sent_again_under_its_key(catalog: Catalog) -> None:
    with catalog.write() as connection:
        failed = add(connection, idempotency_key="k")
        jobs.fail(connection, failed.id, "the disk is full", "free some space")
        again = add(connection, idempotency_key="k")
        assert (again.id != failed.id, again.state) == (True, JobState.QUEUED)
        assert add(connection, idempotency_key="k").id == again.id


def test_what_another_machine_has_let_lie_goes_back_to_the_queue(catalog: Catalog) -> None:
    with catalog.write() as connection:
        there, here, anywhere = (add(connection, host=host) for host in ("there", "here", ""))
        for job in (there, here, anywhere):
            jobs.claim(connection, KINDS, "there" if job is there else "here", job.id)
        assert jobs.release_stale(connection, "here", now() - 60) == 0
        assert jobs.release_stale(connection, "here", now() + 60) == 1
        states = [jobs.get(connection, job.id).state for job in (there, here, anywhere)]
    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.RUNNING]


def test_the_same_request_twice_at_once_is_one_job(catalog: Catalog, catalog_url: str) -> None:
    together = threading.Barrier(4)
    made: list[tuple[str, bool]] = []

    def send() -> None:
        own = Catalog(catalog_url)
        together.wait()
        with own.write() as connection:
            job, new = jobs.enqueue(
                connection, "ingest", collection_id=None, collection="docs", args={}, idempotency_key="k"
            )
        made.append((job.id, new))
        own.close()

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert len(made) == 4
    assert len({job for job, _ in made}) == 1
    assert sum(new for _, new in made) == 1


def test_cancel(catalog: Catalog) -> None:
    with catalog.write() as connection:
        queued = add(connection, uploads=[({"uri": "a"}, b"text")])
        assert jobs.cancel(connection, queued.id).state is JobState.CANCELLED
        assert jobs.uploads(connection, queued.id, -1, 10) == []
        assert jobs.claim(connection, KINDS, "here") is None
        running = add(connection)
        jobs.claim(connection, KINDS, "here")
        asked = jobs.cancel(connection, running.id)
        assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
        assert jobs.progress(connection, running.id, done=1), "a running job is told at its next step"
        jobs.cancelled(connection, running.id)
        with pytest.raises(Conflict):
            jobs.cancel(connection, running.id)


def test_a_dead_owners_jobs_go_on_from_their_cursors(catalog: Catalog) -> None:
    with catalog.write() as connection:
        job = add(connection)
        jobs.claim(connection, KINDS, "here")
        jobs.progress(connection, job.id, cursor={"at": 3}, done=3)
    for attempt in range(2, jobs.MAX_ATTEMPTS + 1):
        with catalog.write() as connection:
            assert [found.id for found in jobs.reclaim(connection)] == [job.id]
            found, cursor = jobs.claim(connection, KINDS, "here") or pytest.fail("nothing to claim")
            assert (found.attempts, cursor) == (attempt, {"at": 3})
    with catalog.write() as connection:
        jobs.reclaim(connection)
        given_up = jobs.get(connection, job.id)
        assert given_up.state is JobState.FAILED
        assert "killed" in given_up.error
        assert jobs.claim(connection, KINDS, "here") is None


def test_progress_counts_attempts_anew(catalog: Catalog) -> None:
    with catalog.write() as connection:
        job = add(connection)
        for _ in range(3 * jobs.MAX_ATTEMPTS):
            assert jobs.claim(connection, KINDS, "here") is not None
            jobs.progress(connection, job.id, done=1)
            jobs.reclaim(connection)
        assert jobs.get(connection, job.id).state is JobState.QUEUED


def test_waiting_and_retrying_until_a_time(catalog: Catalog) -> None:
    with catalog.write() as connection:
        job = add(connection)
        jobs.claim(connection, KINDS, "here")
        jobs.wait(connection, job.id, now() + 3600, {"step": 2}, phase="old versions")
        assert jobs.get(connection, job.id).state is JobState.WAITING
        assert jobs.claim(connection, KINDS, "here") is None
        jobs.wait(connection, job.id, now() - 1, {"step": 2})
        found, cursor = jobs.claim(connection, KINDS, "here") or pytest.fail("nothing to claim")
        assert (found.attempts, cursor) == (1, {"step": 2})
        jobs.retry(connection, job.id, now() + 3600, "the provider is out", "wait")
        seen = jobs.get(connection, job.id)
        assert (seen.state, seen.error) == (JobState.QUEUED, "the provider is out")
        assert seen.not_before is not None
        assert jobs.claim(connection, KINDS, "here") is None


def test_uploads_come_in_order_and_go_with_their_job(catalog: Catalog) -> None:
    contents = [({"uri": f"api:{n}", "deep": {"x": [n]}}, bytes([n]) * 1000) for n in range(5)]
    with catalog.write() as connection:
        job = add(connection, uploads=contents)
        other = add(connection, uploads=contents[:1])
        first = jobs.uploads(connection, job.id, -1, 3)
        assert first == [(n, *contents[n]) for n in range(3)]
        assert jobs.uploads(connection, job.id, first[-1][0], 3) == [(n, *contents[n]) for n in (3, 4)]
        jobs.finish(connection, job.id, {})
        assert jobs.uploads(connection, job.id, -1, 10) == []
        assert len(jobs.uploads(connection, other.id, -1, 10)) == 1


def test_ended_jobs_are_forgotten_after_a_time(catalog: Catalog) -> None:
    with catalog.write() as connection:
        ended, failed, active = (add(connection, uploads=[({}, b"x")]) for _ in range(3))
        jobs.finish(connection, ended.id, {})
        jobs.fail(connection, failed.id, "broken", "mend it")
        assert jobs.forget(connection, now() - 60) == 0
        assert jobs.forget(connection, now() + 60) == 2
        assert [job.id for job in jobs.listing(connection)] == [active.id]
        assert connection.execute(select(t.uploads.c.job_id)).scalars().all() == [active.id]


def test_large_uploads_are_held_a_few_at_a_time(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "UPLOAD_BYTES", 1_000)
    sizes = [10, 2_500, 400, 500, 300, 0, 5_000, 5_000]
    made: list[int] = []

    def contents() -> Iterator[tuple[dict[str, Any], bytes]]:
        for number, size in enumerate(sizes):
            made.append(number)
            yield {"n": number}, bytes([number]) * size

    with catalog.write() as connection:
        job = add(connection, uploads=contents())
    assert made == list(range(len(sizes)))
    read: list[list[int]] = []
    after = -1
    with catalog.read() as connection:
        while some := jobs.uploads(connection, job.id, after, 3):
            assert [(about["n"], len(data)) for _, about, data in some] == [(n, sizes[n]) for n, _, _ in some]
            read.append([number for number, _, _ in some])
            after = some[-1][0]
    assert read == [[0], [1], [2, 3], [4, 5], [6], [7]]


def test_a_collections_documents_are_read_in_order_beside_those_of_others(catalog: Catalog) -> None:
    reading = ("ingest", "add")
    with catalog.write() as connection:
        first = add(connection, collection_id=1)
        second = add(connection, collection_id=1)
        other = add(connection, collection_id=2)
        text = add(connection, "add", collection_id=1)
        more = add(connection, "add", collection_id=1)
        claimed = []
        while (found := jobs.claim(connection, reading, "here")) is not None:
            claimed.append(found[0].id)
        assert claimed == [first.id, other.id, text.id], "one of each kind and collection, the oldest first"
        assert not jobs.due(connection, reading, "here")
        jobs.retry(connection, first.id, now() + 3600, "the disk is full", "wait")
        assert (jobs.claim(connection, reading, "here") or [None])[0] == jobs.get(connection, second.id), (
            "one that comes back later holds up nobody"
        )
        jobs.finish(connection, text.id, {})
        assert (jobs.claim(connection, reading, "here") or [None])[0] == jobs.get(connection, more.id)


def test_a_file_under_an_id_of_the_users_and_texts_are_read_in_order(catalog: Catalog) -> None:
    with catalog.write() as connection:
        named = add(connection, collection_id=1, args={"paths": ["a"], "id": "x"})
        text = add(connection, "add", collection_id=1)
        assert jobs.claim(connection, ["add"], "here") is None
        assert jobs.claim(connection, ["ingest"], "here") is not None
        assert jobs.claim(connection, ["add"], "here") is None
        jobs.finish(connection, named.id, {})
        assert (jobs.claim(connection, ["add"], "here") or [None])[0] == jobs.get(connection, text.id)


@pytest.mark.parametrize("kind", jobs.PERSISTENT)
def test_what_removes_hidden_text_cannot_be_cancelled(kind: str, catalog: Catalog) -> None:
    with catalog.write() as connection:
        job = add(connection, kind)
        for _ in range(2):  # queued, and running
            with pytest.raises(Conflict, match="cannot be cancelled") as refused:
                jobs.cancel(connection, job.id)
            assert "jobs show" in refused.value.hint
            assert not jobs.get(connection, job.id).cancel_requested
            jobs.claim(connection, [kind], "here")


def test_purges_and_deletions_that_came_to_nothing_are_taken_up_again(catalog: Catalog) -> None:
    with catalog.write() as connection:
        lost = [add(connection, kind) for kind in ("purge", "delete_collection", "drop_view", "ingest")]
        for job in lost:
            jobs.fail(connection, job.id, "It could not.", "")
        assert {job.id for job in jobs.revive(connection)} == {job.id for job in lost[:2]}
        states = [jobs.get(connection, job.id).state for job in lost]
    assert states == [JobState.QUEUED, JobState.QUEUED, JobState.FAILED, JobState.FAILED]


def test_what_a_failed_claim_may_have_taken_goes_back_to_the_queue(catalog: Catalog) -> None:
    with catalog.write() as connection:
        ours, lost, elsewhere = add(connection), add(connection), add(connection, host="there")
        for host in ("here", "here", "there"):
            jobs.claim(connection, KINDS, host)
        assert [job.id for job in jobs.reclaim(connection, host="here", besides={ours.id})] == [lost.id]
        states = [jobs.get(connection, job.id).state for job in (ours, lost, elsewhere)]
    assert states == [JobState.RUNNING, JobState.QUEUED, JobState.RUNNING]


def test_a_job_that_comes_back_soon_is_still_to_be_waited_for(catalog: Catalog) -> None:
    with catalog.write() as connection:
        job = add(connection)
        jobs.claim(connection, KINDS, "here")
        jobs.requeue(connection, job.id, now() + 3600, {"made": 4}, copied=1)
        seen = jobs.get(connection, job.id)
        assert (seen.state, seen.progress, seen.attempts) == (JobState.QUEUED, {"copied": 1}, 0)
        assert jobs.claim(connection, KINDS, "here") is None
        jobs.requeue(connection, job.id, now() - 1, {"made": 4})
        assert (jobs.claim(connection, KINDS, "here") or [None, None])[1] == {"made": 4}
