"""A whole Whimbrel whose views lie in Chroma: what its users see when the server goes away, and when it comes back."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chroma_server import ChromaServer
from running import DEADLINE_S, Toy, files, found, until, verified
from small_disk import small_disk
from whimbrel.app import Whimbrel
from whimbrel.domain import SearchResult, ViewKind, ViewState
from whimbrel.models.embedders import resolve

pytest.importorskip("chromadb")
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: made)
    return made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChromaServer]:
    server = ChromaServer(tmp_path / "data")
    yield server
    server.kill()


def opened(folder: Path, store: str, **overrides: Any) -> Whimbrel:
    return Whimbrel(home=folder, **{"embedder": "toy", "store": store, **overrides})


def uris_of(result: SearchResult) -> set[str]:
    return {hit.uri for hit in result.hits}


def test_a_home_with_its_views_in_a_folder(tmp_path: Path) -> None:
    files(tmp_path / "notes", 12)
    with opened(tmp_path / "home", "chroma:") as whimbrel:
        whimbrel.ingest([tmp_path / "notes"])
        whole = whimbrel.search("notes on birds number 7")
        assert not whole.degraded
        verified(whimbrel, "default")
    assert (tmp_path / "home" / "chroma" / "chroma.sqlite3").is_file()
    with opened(tmp_path / "home", "chroma:") as whimbrel:
        assert uris_of(whimbrel.search("notes on birds number 7")) == uris_of(whole)


def test_other_processes_ask_the_owner_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHIMBREL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHIMBREL_STORE", "chroma:")
    files(tmp_path / "notes", 5)
    search = [sys.executable, "-m", "whimbrel", "search", "notes on birds", "--mode", "dense", "--json"]
    with Whimbrel() as whimbrel:
        whimbrel.ingest([tmp_path / "notes"])
        assert whimbrel.own()
        beside = subprocess.run(search, capture_output=True, text=True, timeout=120, check=False)
    alone = subprocess.run(search, capture_output=True, text=True, timeout=120, check=False)
    for asked in (beside, alone):
        assert asked.returncode == 0, asked.stderr
        assert asked.stdout.count('"chunk_id"') == 5


def test_while_its_disk_is_full_a_folder_is_searched_by_all(tmp_path: Path) -> None:
    """The owner let go of it when it could not write, and chromadb opens none where there is no room."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with small_disk(home / "chroma", 16) as disk, opened(home, "chroma:") as owner, opened(home, "chroma:") as other:
        owner.add([{"id": str(n), "text": f"Notes on birds, number {n}."} for n in range(10)])
        assert owner.own()
        assert len(other.search("birds", mode="dense").hits) == 10
        full = disk / "full"
        full.write_bytes(bytes(shutil.disk_usage(disk).free - 100_000))
        owner.start_add([{"id": "late", "text": "A late note."}])
        until(lambda: any("No space left" in row.view.error for row in owner.views()), "the view says so")
        for whimbrel in (owner, other):
            found = whimbrel.search("birds", mode="dense")
            assert len(found.hits) == 10
            assert all("1 changes behind" in said for said in found.degraded)
        full.unlink()
        until(lambda: found_by(other, "late note") == "text:late", "it goes on")
        assert all(not row.view.error for row in owner.views())
        verified(owner, "default")


def found_by(whimbrel: Whimbrel, words: str) -> str:
    return whimbrel.search(words, mode="dense").hits[0].uri


def test_real_vectors_are_verified_within_the_rounding_of_chroma(tmp_path: Path) -> None:
    files(tmp_path / "notes", 12)
    with Whimbrel(home=tmp_path / "home", store="chroma:") as whimbrel:
        whimbrel.ingest([tmp_path / "notes"])
        verified(whimbrel, "default")


def test_a_server_that_was_killed_at_rest_and_has_another_row_since(
    tmp_path: Path, server: ChromaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that gives back what was deleted. Nothing is written, and nobody asks it anything, while it is away."""
    import chromadb

    monkeypatch.setattr("whimbrel.owner.views.AT_REST_S", 0.3)
    server.start()
    with opened(tmp_path / "home", server.uri) as home:
        home.add([{"id": str(n), "text": f"Notes on birds, number {n}."} for n in range(10)])
        home.wait_for_head("default", timeout_s=DEADLINE_S)
        assert home.own()
        (before,) = (row for row in home.views() if row.view.kind is ViewKind.STORE)
        server.kill()
        server.start()
        client = chromadb.HttpClient(port=server.port)
        theirs = client.get_collection(before.view.name, embedding_function=None)
        theirs.add(ids=["back"], embeddings=theirs.peek(1)["embeddings"], documents=["Deleted."])
        monkeypatch.setattr("whimbrel.owner.follower.COUNT_S", 0.3)

        def live() -> list[int]:
            views = (row for row in home.views() if row.view.kind is ViewKind.STORE)
            return [row.id for row in views if row.view.state is ViewState.LIVE]

        until(lambda: live() not in ([], [before.id]), "the view is built anew")
        verified(home, "default")
        (after,) = live()
        time.sleep(1.0)
        assert live() == [after], "one whose rows are as many as they should be stays"


def test_a_server_away_and_back(tmp_path: Path, server: ChromaServer) -> None:
    files(tmp_path / "notes", 20)
    server.start()
    with opened(tmp_path / "home", server.uri) as whimbrel:
        whimbrel.ingest([tmp_path / "notes"])
        assert not whimbrel.search("notes on birds number 7").degraded
        answers: list[SearchResult] = []

        def ask() -> None:
            answers.extend(whimbrel.search("notes on birds number 7") for _ in range(30))

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        server.kill()
        for thread in asking:
            thread.join()
        assert len(answers) == 90
        assert all(answer.hits for answer in answers)
        assert any(any("store:" in why for why in answer.degraded) for answer in answers)

        files(tmp_path / "more", 5, "boats")
        whimbrel.ingest([tmp_path / "more"], wait="lexical")
        away = whimbrel.search("notes on boats number 3")
        assert any("boats" in hit.text for hit in away.hits)
        assert any("changes behind" in why for why in away.degraded)

        server.start()
        until(lambda: not whimbrel.search("notes on boats number 3").degraded, "the view has caught up")
        head = found(whimbrel, "default").head
        assert [row.view.position for row in whimbrel.views("default") if row.view.kind is ViewKind.STORE] == [head]
        verified(whimbrel, "default")


def test_a_server_away_at_the_start(tmp_path: Path, server: ChromaServer) -> None:
    files(tmp_path / "notes", 8)
    with opened(tmp_path / "home", server.uri) as whimbrel:
        whimbrel.ingest([tmp_path / "notes"], wait="lexical")
        without = whimbrel.search("notes on birds number 3")
        assert len(without.hits) == 8
        assert without.degraded
        server.start()
        until(lambda: not whimbrel.search("notes on birds number 3").degraded, "the view is there", DEADLINE_S)
        verified(whimbrel, "default")


def test_a_server_that_lost_its_data_gets_it_again(tmp_path: Path, server: ChromaServer) -> None:
    files(tmp_path / "notes", 8)
    server.start()
    with opened(tmp_path / "home", server.uri) as whimbrel:
        whimbrel.ingest([tmp_path / "notes"])
        server.kill()
        server.folder = tmp_path / "another"
        server.start()
        whimbrel.search("notes on birds number 3")
        until(lambda: not whimbrel.search("notes on birds number 3").degraded, "the view is built again", DEADLINE_S)
        verified(whimbrel, "default")
