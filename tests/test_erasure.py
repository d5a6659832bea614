"""A purge: hidden at once, gone from every file when its job is done, and nothing else is touched."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from running import DEADLINE_S, Toy, chunks, count, files, found, head, logged, paragraphs, until, uris, verified
from whimbrel.app import Whimbrel
from whimbrel.catalog import jobs
from whimbrel.catalog import tables as t
from whimbrel.domain import Job, JobState, Mode, document_id
from whimbrel.errors import DocumentNotFound
from whimbrel.models.embedders import resolve
from whimbrel.owner import erase
from whimbrel.owner.erase import Eraser
from whimbrel.owner.follower import Follower
from whimbrel.owner.runner import JobContext

pytestmark = pytest.mark.timeout(180)

MARK = "zyxomarkq"
"""A word that is in what is to be erased, and nowhere else."""


def opened(folder: Path, *, grace_s: float = 0, **overrides: str) -> Whimbrel:
    return Whimbrel(home=folder, **{"owner.erasure_grace_s": grace_s, **overrides})


def holding(home: Whimbrel, data: bytes, server: tuple[str, Path] | None = None) -> list[str]:
    """The files that hold these bytes."""
    folders = [home.home.path]
    if server is not None:
        with home.catalog.bare() as connection:
            connection.execute(text("CHECKPOINT"))
        folders.append(server[1] / "base")
    there = [path for folder in folders for path in folder.rglob("*") if home.home.copies not in path.parents]
    return [str(path) for path in there if data in os.fsencode(path) or data in content(path)]


def content(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.is_file() else b""
    except FileNotFoundError:  # a view has tidied it away just now
        return b""


def marked_vectors(home: Whimbrel, document: str) -> list[bytes]:
    """The vectors of record of a document's chunks, as bytes."""
    query = (
        t.vectors.select()
        .join(t.chunks, t.chunks.c.text_id == t.vectors.c.text_id)
        .join(t.documents, t.documents.c.id == t.chunks.c.document_id)
        .where(t.documents.c.public_id == bytes.fromhex(document))
    )
    with home.catalog.read() as connection:
        return [row.data for row in connection.execute(query)]


def ended(home: Whimbrel, job: Job) -> dict[str, object]:
    return home.finish(job, wait="end", timeout_s=DEADLINE_S)


def fill(home: Whimbrel, docs: Path) -> Path:
    """Documents, one of which is to be erased: its mark is in its text, title, name, metadata and earlier version."""
    files(docs, 20)
    secret = docs / f"{MARK}.txt"
    (docs / "shared.txt").write_text(f"{paragraphs('shared', 'other')}")
    secret.write_text(f"The first version told of {MARK}early.\n\n{paragraphs(MARK + 'one')}")
    home.ingest([docs])
    home.ingest([secret], metadata={"owner": f"{MARK} of Exeter", "tags": [MARK, "x"]})
    secret.write_text(paragraphs("shared", MARK + "two", MARK + "three"))
    home.ingest([docs])
    return secret


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_nothing_of_it_is_left_and_nothing_else_is_touched(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("postgres_server") if kind == "postgres" else None
    overrides = {"catalog": request.getfixturevalue("fresh_postgres")} if kind == "postgres" else {}
    with opened(tmp_path / "home", **overrides) as home:
        secret = fill(home, tmp_path / "docs")
        home.add([{"id": f"{MARK}-id", "text": f"An upload that names {MARK}upload.", "title": MARK}])
        document = document_id(external_id=None, uri=secret.as_uri())
        hidden = marked_vectors(home, document)
        shared = marked_vectors(home, document_id(external_id=None, uri=(tmp_path / "docs/shared.txt").as_uri()))
        secrets = [vector for vector in hidden if vector not in shared]
        assert (len(secrets), len(hidden)) == (2, 3)
        assert any("views" in path for path in holding(home, secrets[0])), "the search for traces finds them"
        assert any("catalog.db" in path or "base" in path for path in holding(home, MARK.encode(), server))
        others = {uri: home.document(uri) for uri in uris(home, "default") if MARK not in uri}
        their_chunks = chunks(home, "default")

        job = home.purge([str(secret), f"{MARK}-id", secret.as_uri()])
        for mode in Mode:
            hits = home.search(f"{MARK}two {MARK}upload", mode=mode, top_k=50).hits
            assert all(MARK not in f"{hit.uri}{hit.text}{hit.metadata}" for hit in hits), "hidden at once"
        with pytest.raises(DocumentNotFound):
            home.document(document)
        result = ended(home, job)

        assert result["documents"] == 2
        assert datetime.fromisoformat(str(result["completed_at"])) <= datetime.now(UTC)
        secret.unlink()
        assert holding(home, MARK.encode(), server) == []
        assert [holding(home, vector, server) for vector in secrets] == [[], []]
        assert found(home, "default").floor >= job.args["position"]
        assert logged(home, "default") == head(home, "default") - found(home, "default").floor
        now = {uri: home.document(uri) for uri in uris(home, "default")}
        assert now == others
        assert chunks(home, "default").items() <= their_chunks.items()
        assert all(holding(home, vector, server) for vector in shared), (
            "a text that another document has keeps its vector"
        )
        for mode in Mode:
            found_now = home.search("notes on birds", mode=mode)
            assert found_now.hits
            assert found_now.degraded == []
        verified(home, "default")

        secret.write_text("# A new file of that name\n")
        assert home.ingest([tmp_path / "docs"])["added"] == 1


def test_only_what_was_in_an_earlier_version_goes_too(tmp_path: Path) -> None:
    with opened(tmp_path / "home") as home:
        file = tmp_path / "a.txt"
        file.write_text(paragraphs("kept", MARK))
        home.ingest([file])
        file.write_text(paragraphs("kept", "harmless"))
        home.ingest([file])
        home.add([{"id": "deleted", "text": f"It tells of {MARK}."}])
        home.delete(["deleted"])
        ended(home, home.purge([str(file)]))
        assert holding(home, MARK.encode()) == [], "what other documents had lost before goes with it"
        assert (count(home, t.vectors), count(home, t.texts), count(home, t.segments)) == (0, 0, 0)
        assert [one["state"] for one in home.documents(state="gone")] == ["gone"]
        ended(home, home.purge(["deleted"]))
        assert home.documents(state="gone") == []


def test_it_says_when_it_will_be_done_and_outlives_its_owner(tmp_path: Path) -> None:
    with opened(tmp_path / "home", grace_s=6) as home:
        secret = fill(home, tmp_path / "docs")
        job = home.purge([str(secret)])
        assert home.finish(job, timeout_s=DEADLINE_S) == {"job_id": job.id}, "it is not waited for"
        waiting = until(lambda: (now := home.job(job.id)).state is JobState.WAITING and now, "the grace")
        assert waiting.not_before is not None
        said = datetime.fromisoformat(waiting.progress["completes_at"])
        assert 0 < (said - datetime.now(UTC)).total_seconds() <= 6
        assert "old versions" in waiting.progress["waiting_for"]
        [listed] = [one for one in home.status()["jobs"] if one["id"] == job.id]
        assert (listed["state"], listed["progress"]["completes_at"]) == ("waiting", waiting.progress["completes_at"])
    with opened(tmp_path / "home", grace_s=6) as home:
        assert home.job(job.id).state is JobState.WAITING
        result = ended(home, job)
        assert datetime.fromisoformat(str(result["completed_at"])) >= said
        assert holding(home, MARK.encode()) == []
        verified(home, "default")


def test_it_waits_for_a_view_that_stands_still_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: toy)
    with opened(tmp_path / "home", embedder="toy") as home:
        home.add([{"id": "a", "text": f"It tells of {MARK}."}, {"id": "b", "text": "Harmless."}])
        toy.out = "overloaded"
        home.add([{"id": "c", "text": "It cannot be embedded now."}], wait="lexical")
        job = home.purge(["a"])
        until(lambda: home.job(job.id).progress.get("waiting_for") == "views to catch up", "what it waits for")
        assert all(hit.uri != "text:a" for hit in home.search(MARK).hits)
        toy.out = ""
        ended(home, job)
        assert holding(home, MARK.encode()) == []
        verified(home, "default")


def test_uploads_go_as_they_are_taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whimbrel.ingest.jobs.UPLOADS_AT_ONCE", 2)
    with opened(tmp_path / "home") as home:
        left: list[int] = []
        progress = jobs.progress

        def watched(*args: object, **kwargs: object) -> bool:
            left.append(args[0].execute(t.uploads.select()).all().__len__())  # type: ignore[attr-defined]
            return progress(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(jobs, "progress", watched)
        home.add([{"id": f"n{number}", "text": f"Note {number}."} for number in range(6)])
        assert left == [4, 2, 0]


def test_metadata_and_names_that_jobs_were_given_go_too(tmp_path: Path) -> None:
    with opened(tmp_path / "home") as home:
        files(tmp_path / "docs", 1)
        file, broken = tmp_path / "docs" / f"{MARK}.txt", tmp_path / "docs" / f"{MARK}.pdf"
        file.write_text("Nothing in it.")
        broken.write_bytes(b"%PDF-1.4 broken")
        first = home.start_ingest([tmp_path / "docs", file], metadata={"who": MARK}, idempotency_key="k")
        assert home.finish(first, wait="all", timeout_s=DEADLINE_S)["failed"] == 1
        ended(home, home.purge([str(file), broken.as_uri(), str(tmp_path / "docs" / "f000.md")]))
        assert holding(home, MARK.encode()) == []
        assert home.job(first.id).result["added"] == 2, "counts stay"
        again = home.start_ingest([tmp_path / "docs", file], metadata={"who": MARK}, idempotency_key="k")
        assert again.id == first.id, "and the request is known again"


def test_purges_beside_writes_and_each_other(tmp_path: Path) -> None:
    with opened(tmp_path / "home") as home:
        home.add([{"id": f"n{number}", "text": f"Note {number} of {MARK}{number}x."} for number in range(40)])
        started = [home.purge([f"n{number}"]) for number in range(3)]
        home.add([{"id": f"m{number}", "text": f"Another {number}."} for number in range(20)])
        for job in started:
            ended(home, job)
        for number in range(3):
            assert holding(home, f"{MARK}{number}x".encode()) == []
        assert len(home.documents()) == 57
        verified(home, "default")
        with pytest.raises(DocumentNotFound):
            home.purge(["n1"])


def test_it_goes_on_when_the_view_that_it_waits_for_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not when it would have looked again."""
    monkeypatch.setattr(erase, "DROP_WAIT_S", 10 * DEADLINE_S)
    with opened(tmp_path / "home") as home:
        home.add([{"id": "a", "text": f"It tells of {MARK}."}, {"id": "b", "text": "Harmless."}])
        old = next(row.id for row in home.views("default") if row.view.kind == "store")
        home.finish(home.start_view_job("rebuild_view", old), timeout_s=DEADLINE_S)
        job = home.purge(["a"])
        until(lambda: f"view {old}" in str(home.job(job.id).progress.get("waiting_for")), "what it waits for")
        until(lambda: home.job(job.id).state is JobState.WAITING, "that it has been put away")
        home.finish(home.start_view_job("drop_view", old, now=True), timeout_s=DEADLINE_S)
        ended(home, job)
        assert holding(home, MARK.encode()) == []


def test_those_that_wait_for_one_view_share_its_erasure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "home") as home:
        home.add([{"id": f"n{number}", "text": f"Note {number} of {MARK}{number}x."} for number in range(6)])
        assert home.owner is not None
        view, follower = next(iter(home.owner.views.followers.items()))
        erasures = 0
        erased = follower.target.erase
        asked = Counter[int]()
        take_turn = Eraser._take_turn

        async def counted(*, grace_s: float) -> None:
            nonlocal erasures
            erasures += 1
            await erased(grace_s=grace_s)

        async def together(self: Eraser, context: JobContext, of: Follower) -> None:
            asked[of.row.id] += 1
            while asked[of.row.id] < 4:
                await asyncio.sleep(0.01)
            await take_turn(self, context, of)

        monkeypatch.setattr(follower.target, "erase", counted)
        monkeypatch.setattr(Eraser, "_take_turn", together)
        for job in [home.purge([f"n{number}"]) for number in range(4)]:
            ended(home, job)
        assert asked[view] == 4
        assert erasures == 1
        for number in range(4):
            assert holding(home, f"{MARK}{number}x".encode()) == []
        verified(home, "default")


def test_a_search_beside_an_erasure_without_grace_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path / "home") as home, opened(tmp_path / "home") as reader:
        secret = fill(home, tmp_path / "docs")
        assert reader.search("birds").degraded == []
        job = home.purge([str(secret)])
        while home.job(job.id).state is not JobState.DONE:
            for mode in Mode:
                assert reader.search("notes on birds", mode=mode).hits
        found_now = reader.search("notes on birds", top_k=3)
        assert (len(found_now.hits), found_now.degraded) == (3, [])
        assert np.isfinite([hit.score for hit in found_now.hits]).all()
