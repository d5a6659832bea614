"""Embedding is a stage of its own: what stops it stops nothing else, and nothing is paid for twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from running import DEADLINE_S, Toy, count, files, head, paragraphs, until, verified
from whimbrel.app import Whimbrel
from whimbrel.catalog import tables as t
from whimbrel.domain import EmbedKind, JobState, Mode, ViewKind
from whimbrel.errors import ConfigError, ModelError, SpaceMismatch, ViewError
from whimbrel.models.embedders import resolve
from whimbrel.service import jobs

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    """The embedder that `toy` names."""
    made = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: made)
    return made


@pytest.fixture
def home(toy: Toy, tmp_path: Path) -> Iterator[Whimbrel]:
    with Whimbrel(home=tmp_path / "home", embedder="toy") as whimbrel:
        yield whimbrel


def store(home: Whimbrel, name: str = "default") -> dict[str, Any]:
    """The state of the collection's live store view, or of the one being built."""
    [state] = [one for one in home.status()["collections"] if one["name"] == name]
    found = [view for view in state["views"] if view["kind"] == ViewKind.STORE]
    return next((view for view in found if view["live"]), found[0])


def caught_up(home: Whimbrel, name: str = "default") -> None:
    until(lambda: store(home, name)["lag"] == 0 and store(home, name)["live"], "the vector view")


def test_words_are_found_while_the_model_is_out(home: Whimbrel, toy: Toy, tmp_path: Path) -> None:
    files(tmp_path / "docs", 3, "cranes")
    home.ingest([tmp_path / "docs"])
    toy.out = "the model answers 529 overloaded"
    files(tmp_path / "docs", 6, "storks")
    report = home.ingest([tmp_path / "docs"], wait="lexical")
    assert (report["added"], report["changed"]) == (3, 3)

    assert len(home.search("storks", mode="lexical").hits) == 6
    hybrid = home.search("storks")
    assert hybrid.hits
    assert any("overloaded" in said for said in hybrid.degraded)
    with pytest.raises(ModelError) as raised:
        home.search("storks", mode="dense")
    assert (raised.value.status, bool(raised.value.hint)) == (503, True)

    until(lambda: "overloaded" in store(home)["error"], "the reason in the status")
    assert (store(home)["lag"], store(home)["state"]) == (9, "live")
    assert len(home.documents(state="extracted")) == 6
    assert home.documents(state="indexed") == []
    assert toy.given == [text for text in toy.given if "cranes" in text]

    toy.out = ""
    caught_up(home)
    assert (store(home)["error"], home.search("storks").degraded) == ("", [])
    assert len(home.search("storks", mode="dense").hits) == 6
    assert len(home.documents(state="indexed")) == 6
    verified(home, "default")


def test_a_collection_begun_while_the_model_is_out(home: Whimbrel, toy: Toy) -> None:
    toy.out = "no route to host"
    home.add([{"id": "1", "text": "The spoonbill sweeps its bill."}], wait="lexical")
    found = home.search("spoonbill")
    assert [hit.uri for hit in found.hits] == ["text:1"]
    assert any(said.startswith("store: ") for said in found.degraded)
    toy.out = ""
    caught_up(home)
    assert home.search("spoonbill").degraded == []


def test_waiting_for_a_view_that_stands_still_ends_and_says_why(
    home: Whimbrel, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "STALLED_S", 1.0)
    home.add([{"id": "1", "text": "A first text."}])
    toy.out = "the key has been revoked"
    with pytest.raises(ViewError, match="the key has been revoked") as raised:
        home.add([{"id": "2", "text": "A second text."}])
    assert (raised.value.status, "nothing is lost" in raised.value.message, bool(raised.value.hint)) == (
        503,
        True,
        True,
    )
    assert home.document("2")["text"] == "A second text."


def test_waiting_for_words_does_not_wait_for_the_model(
    home: Whimbrel, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.add([{"id": "0", "text": "A first text."}])
    toy.out = "overloaded"
    home.add([{"id": "1", "text": "A second text."}], wait="lexical")
    until(lambda: "overloaded" in store(home)["error"], "the reason in the status")
    monkeypatch.setattr(jobs, "STALLED_S", 0.0)
    for number in range(5):
        home.add([{"id": f"n{number}", "text": f"Another text, number {number}."}], wait="lexical")


@pytest.mark.parametrize("says_which", [True, False], ids=["named", "not named"])
def test_a_refused_text_blocks_nothing(home: Whimbrel, toy: Toy, tmp_path: Path, says_which: bool) -> None:
    toy.refuses, toy.says_which = "unspeakable", says_which
    docs = tmp_path / "docs"
    files(docs, 20)
    (docs / "bad.txt").write_text(f"{paragraphs(1)}\nAn unspeakable thing. {paragraphs(2)}\n{paragraphs(3)}")
    (docs / "twin.txt").write_text(f"An unspeakable thing. {paragraphs(2)}")
    report = home.ingest([docs])
    assert report["failed"] == 0
    assert (store(home)["lag"], store(home)["refused"], store(home)["error"]) == (0, 2, "")
    assert len([text for text in toy.given if "unspeakable" in text]) == 0
    assert len(toy.given) == len(set(toy.given)) == 22
    assert {hit.uri.rsplit("/", 1)[1] for hit in home.search("unspeakable", mode="lexical").hits} == {
        "bad.txt",
        "twin.txt",
    }
    assert len(home.search("bird3", mode="dense", top_k=50).hits) == 22
    with home.catalog.read() as connection:
        reasons = connection.execute(t.vectors.select().where(t.vectors.c.data.is_(None))).all()
    assert [row.reason for row in reasons] == ["It has a word that I do not read."]
    verified(home, "default")

    at = toy.given.copy()
    home.close()
    with Whimbrel(home=home.home.path, embedder="toy") as again:
        again.ingest([docs])
        again.finish(again.start_view_job("rebuild_view", store(again)["id"]), timeout_s=DEADLINE_S)
        assert toy.given == at, "neither a restart nor another view asks again"
        verified(again, "default")
        assert store(again)["refused"] == 2
        (docs / "bad.txt").write_text(paragraphs(1, 3))
        (docs / "twin.txt").unlink()
        again.ingest([docs])
        assert store(again)["refused"] == 0
        verified(again, "default")


def test_two_views_of_one_space_cost_one_embedding(home: Whimbrel, toy: Toy, tmp_path: Path) -> None:
    files(tmp_path / "docs", 30)
    home.ingest([tmp_path / "docs"])
    assert len(toy.given) == 30
    was = store(home)["id"]
    made = home.finish(home.start_view_job("rebuild_view", was), timeout_s=DEADLINE_S)
    assert (made["replaces"], store(home)["id"]) == (was, made["view"])
    home.ingest([tmp_path / "docs"], "second")
    home.add([{"id": "copy", "text": (tmp_path / "docs" / "f003.md").read_text()}], "third")
    assert len(toy.given) == 30
    assert count(home, t.vectors) == 30
    assert len(home.search("birds 7", "second", mode="dense", top_k=30).hits) == 30


def test_one_text_many_times_is_given_once(home: Whimbrel, toy: Toy) -> None:
    home.add([{"id": f"n{number}", "text": "The same words in each."} for number in range(300)])
    assert toy.given == ["The same words in each."]
    assert len(home.search("same words", mode="dense", top_k=500).hits) == 300


def test_a_defect_in_an_embedder_is_said_and_passes(home: Whimbrel, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    home.add([{"id": "1", "text": "A first text."}])
    embed = Toy.embed

    async def broken(self: Toy, texts: list[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        if kind is EmbedKind.DOCUMENT:
            raise KeyError("data")
        return await embed(self, texts, kind)

    with monkeypatch.context() as patch:
        patch.setattr(Toy, "embed", broken)
        home.add([{"id": "2", "text": "A second text."}], wait="lexical")
        until(lambda: "KeyError" in store(home)["error"], "the reason in the status")
        assert home.owner is not None
        assert home.owner.running
    caught_up(home)
    assert {hit.uri for hit in home.search("text", mode="dense").hits} == {"text:1", "text:2"}


def test_another_model_under_the_same_name_is_refused(
    home: Whimbrel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home.add([{"id": "1", "text": "The bittern booms in the reeds."}])
    had = count(home, t.vectors)
    home.close()
    other = Toy(revision="2")
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: other)
    with Whimbrel(home=home.home.path, embedder="toy") as changed:
        assert [hit.uri for hit in changed.search("bittern", mode="lexical").hits] == ["text:1"]
        hybrid = changed.search("bittern")
        assert [hit.uri for hit in hybrid.hits] == ["text:1"]
        assert any("not compared" in said for said in hybrid.degraded)
        with pytest.raises(SpaceMismatch) as raised:
            changed.search("bittern", mode="dense")
        assert (raised.value.status, "lexical" in raised.value.hint) == (409, True)
        at = head(changed, "default")
        with pytest.raises(SpaceMismatch, match="nothing was written"):
            changed.add([{"id": "2", "text": "Another text."}])
        assert (head(changed, "default"), count(changed, t.vectors), other.given) == (at, had, [])
        until(lambda: "not compared" in store(changed)["error"], "the reason in the status")
        deleted = changed.delete(["1"])["position"]
        until(lambda: changed.search("bittern", mode="lexical").position >= deleted, "the lexicon, which goes on")
        assert changed.add([{"id": "3", "text": "A collection of its own."}], "new")["added"] == 1
        assert changed.search("own", "new", mode="dense").hits
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: Toy())
    with Whimbrel(home=home.home.path, embedder="toy") as back:
        back.own()
        caught_up(back)
        assert back.add([{"id": "2", "text": "Another text."}])["added"] == 1
        for mode in Mode:
            assert back.search("another text", mode=mode).degraded == []
        verified(back, "default")


def test_a_model_that_there_is_not_is_named_and_the_owner_lives(tmp_path: Path) -> None:
    with Whimbrel(home=tmp_path / "home", embedder="minlim") as whimbrel:
        with pytest.raises(ConfigError, match="minlim") as raised:
            whimbrel.add([{"id": "1", "text": "A text."}])
        assert raised.value.hint
        assert whimbrel.owner is not None
        assert whimbrel.owner.running
        assert whimbrel.jobs()[0].state is JobState.FAILED
    with Whimbrel(home=tmp_path / "home") as mended:
        assert mended.add([{"id": "1", "text": "A text."}])["added"] == 1
        assert mended.search("text").degraded == []


@pytest.fixture
def slow(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A model that is asked again before it has answered."""
    embed = toy.embed

    async def slowly(texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        await asyncio.sleep(0.3 if kind is EmbedKind.DOCUMENT else 0.0)
        return await embed(texts, kind)

    monkeypatch.setattr(toy, "embed", slowly)
    return toy


def test_a_text_of_two_collections_is_paid_for_once(home: Whimbrel, slow: Toy) -> None:
    """Also where it came to both of them at once."""
    texts = [{"id": str(number), "text": f"A curlew, number {number}."} for number in range(20)]
    for name in ("one", "two"):
        home.create_collection(name)
    jobs = [home.start_add(texts, name) for name in ("one", "two", "one")]
    for job in jobs:
        home.finish(job, wait="all")
    assert sorted(slow.given) == sorted(one["text"] for one in texts)
    for name in ("one", "two"):
        verified(home, name)


def test_a_text_that_is_one_chunk_in_either_chunking_is_paid_for_once(home: Whimbrel, slow: Toy) -> None:
    """While a move to another chunking is under way each new text comes to two stages of its space."""
    home.add([{"id": "old", "text": "An old curlew."}])
    move, job = home.start_move("default", chunking="tokens=64,overlap=0")
    home.finish(job)
    for number in range(5):
        home.add([{"id": str(number), "text": f"A new curlew, number {number}."}])
    home.finish(home.switch_move(move))
    assert len(slow.given) == len(set(slow.given)) == 6
    verified(home, "default")


def test_who_waited_for_a_text_that_another_gave_up_embeds_it(home: Whimbrel, slow: Toy) -> None:
    """Its collection was deleted, or its model was out for a moment."""
    for name in ("one", "two"):
        home.create_collection(name)
    slow.out = "the model answers 529 overloaded"
    jobs = [home.start_add([{"id": "1", "text": "The same curlew."}], name) for name in ("one", "two")]
    for job in jobs:
        home.finish(job, wait="job")
    until(lambda: all("overloaded" in store(home, name)["error"] for name in ("one", "two")), "both say so")
    slow.out = ""
    for name in ("one", "two"):
        caught_up(home, name)
        verified(home, name)
    assert slow.given == ["The same curlew."]


def test_who_waits_for_a_text_of_another_and_goes_takes_nothing_from_it(
    home: Whimbrel, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection is deleted while it waits for what another has given to the model."""
    asked, answers, embed = threading.Event(), threading.Event(), toy.embed

    async def held(texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        asked.set()
        assert await asyncio.to_thread(answers.wait, DEADLINE_S)
        return await embed(texts, kind)

    monkeypatch.setattr(toy, "embed", held)
    for name in ("one", "two"):
        home.create_collection(name)
    assert home.own()
    first = home.start_add([{"id": "1", "text": "The same curlew."}], "one")
    assert asked.wait(DEADLINE_S)
    home.finish(home.start_add([{"id": "1", "text": "The same curlew."}], "two"), wait="lexical")
    home.delete_collection("two")
    answers.set()
    home.finish(first, wait="all")
    verified(home, "one")
    assert toy.given == ["The same curlew."]
