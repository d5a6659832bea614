"""Collections that were adopted, exported and imported: what was declared of their model comes with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adopting import fill_lance, sightings, text_of
from commands import Shell
from running import DEADLINE_S, Toy
from whimbrel.app import Whimbrel
from whimbrel.catalog.compatible import CompatibleState
from whimbrel.catalog.exported import MANIFEST
from whimbrel.domain import MoveState
from whimbrel.errors import BackupError, ViewError
from whimbrel.models.embedders import resolve
from whimbrel.service import jobs

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: made)
    monkeypatch.setattr(
        jobs, "STALLED_S", 2 * DEADLINE_S
    )  # whoever waits for what stands still waits past the deadline
    return made


@pytest.fixture
def first(tmp_path: Path, toy: Toy) -> Iterator[Whimbrel]:
    with Whimbrel(home=tmp_path / "first", embedder="toy") as whimbrel:
        yield whimbrel


@pytest.fixture
def second(tmp_path: Path, toy: Toy) -> Iterator[Whimbrel]:
    with Whimbrel(home=tmp_path / "second", embedder="toy") as whimbrel:
        yield whimbrel


def near(folder: Path) -> str:
    """Vectors of a model so near to the toy that it may serve them."""
    table = sightings()
    noise = np.random.default_rng(1).normal(scale=0.016, size=table.vectors.shape).astype(np.float32)
    return fill_lance(folder, replace(table, vectors=table.vectors + noise))


@pytest.mark.parametrize("later", [False, True])
def test_without_its_model_it_comes_in_at_once_for_search_by_words(
    later: bool, first: Whimbrel, second: Whimbrel, toy: Toy, tmp_path: Path
) -> None:
    first.adopt(fill_lance(tmp_path / "theirs", sightings()), "birds", embedder="none")
    if later:  # a document that no model has embedded
        first.add([{"id": "new", "text": "A whimbrel flew over."}], "birds", wait="job")
    first.export("birds", tmp_path / "out")
    job = second.start_import(tmp_path / "out")
    result = second.finish(job, wait="all", timeout_s=DEADLINE_S)
    assert result["embedder"] == "none"
    assert "declared" not in result
    assert second.search(text_of(21), "birds", mode="lexical").hits[0].text == text_of(21)
    if later:
        assert second.search("whimbrel", "birds", mode="lexical").hits[0].text == "A whimbrel flew over."
    assert second.search(text_of(21), "birds").degraded
    second.add([{"id": "newer", "text": "A bluethroat sang."}], "birds")  # waits for a model, and nobody waits for it
    assert second.search("bluethroat", "birds", mode="lexical").hits[0].text == "A bluethroat sang."
    assert not toy.given


def test_a_model_that_is_declared_later_serves_what_came_without_one(
    first: Whimbrel, second: Whimbrel, tmp_path: Path
) -> None:
    first.adopt(fill_lance(tmp_path / "theirs", sightings()), "birds", embedder="none")
    first.add([{"id": "new", "text": "A whimbrel flew over."}], "birds", wait="job")
    first.export("birds", tmp_path / "out")
    second.finish(second.start_import(tmp_path / "out"), wait="all", timeout_s=DEADLINE_S)
    second.declare_compatible("birds", "toy")
    second.wait_for_head("birds", timeout_s=DEADLINE_S)
    found = second.search("A whimbrel flew over.", "birds", mode="dense")
    assert found.hits[0].text == "A whimbrel flew over."
    assert second.search(text_of(21), "birds", mode="dense").hits[0].text == text_of(21)


def test_what_was_declared_of_its_model_holds_there_too(
    first: Whimbrel, second: Whimbrel, toy: Toy, tmp_path: Path
) -> None:
    first.adopt(near(tmp_path / "theirs"), "birds")
    declared = first.compatible("birds")
    assert declared is not None
    first.export("birds", tmp_path / "out")
    toy.given.clear()
    result = second.finish(second.start_import(tmp_path / "out", "seen"), wait="all", timeout_s=DEADLINE_S)
    assert result["embedder"] == "toy"
    assert result["declared"] == dict(declared.checks)
    there = second.compatible("seen")
    assert there is not None
    assert (there.state, there.embedder, there.collection) == (CompatibleState.FINALISED, "toy", "seen")
    found = second.search(text_of(21), "seen")
    assert found.hits[0].text == text_of(21)
    assert not found.degraded
    assert not toy.given, "a text was embedded that has its vector"
    second.finish(second.start_move("seen", to="lancedb:other", auto_switch=True)[1], timeout_s=DEADLINE_S)
    assert second.move("seen").state is MoveState.SWITCHED


def test_a_way_back_is_one_there_too(
    first: Whimbrel, second: Whimbrel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.adopt(fill_lance(tmp_path / "theirs", sightings()), "birds", embedder="none")
    first.declare_compatible("birds", "toy")
    first.export("birds", tmp_path / "out")
    second.finish(second.start_import(tmp_path / "out"), wait="all", timeout_s=DEADLINE_S)
    there = second.compatible("birds")
    assert there is not None
    assert there.state is CompatibleState.SERVING
    assert second.search(text_of(3), "birds", mode="dense").hits[0].text == text_of(3)
    second.withdraw_compatible("birds")
    assert second.search(text_of(3), "birds").degraded


def test_a_space_that_is_known_here_is_served_as_before(
    first: Whimbrel, second: Whimbrel, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(resolve._PROVIDERS, "like", lambda _model, _threads: Toy(revision="like"))
    first.add([{"id": str(n), "text": text_of(n)} for n in range(60)], "birds")
    first.declare_compatible("birds", "like")
    first.export("birds", tmp_path / "out")
    second.add([{"id": "1", "text": "A whimbrel flew over."}], "own")
    result = second.finish(second.start_import(tmp_path / "out"), wait="all", timeout_s=DEADLINE_S)
    assert result["embedder"] == "toy"
    assert second.compatible("own") is None
    assert second.compatible("birds") is None


def test_what_is_declared_elsewhere_serves_what_came_without_a_model_before(
    first: Whimbrel, second: Whimbrel, toy: Toy, tmp_path: Path
) -> None:
    first.adopt(fill_lance(tmp_path / "theirs", sightings()), "birds", embedder="none")
    first.export("birds", tmp_path / "before")
    first.declare_compatible("birds", "toy")
    first.export("birds", tmp_path / "after")
    assert second.import_(tmp_path / "before", "before")["embedder"] == "none"
    assert second.import_(tmp_path / "after", "after")["embedder"] == "toy"
    for name in ("before", "after"):
        second.wait_for_head(name, timeout_s=DEADLINE_S)
        assert second.search(text_of(21), name, mode="dense").hits[0].text == text_of(21)


def test_where_nothing_is_declared_the_way_on_is_named(
    first: Whimbrel, second: Whimbrel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.adopt(near(tmp_path / "theirs"), "birds")
    first.export("birds", tmp_path / "out")
    said = json.loads((tmp_path / "out" / MANIFEST).read_text())
    said["spaces"][0]["declared"] = None
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(said))
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "STALLED_S", 0.5)
        with pytest.raises(ViewError, match="whimbrel move start --embedder MODEL --compatible"):
            second.import_(tmp_path / "out")
    second.wait_for_head("birds", wait="lexical", timeout_s=DEADLINE_S)
    assert second.search(text_of(21), "birds", mode="lexical").hits[0].text == text_of(21)
    second.declare_compatible("birds", "toy")
    second.wait_for_head("birds", timeout_s=DEADLINE_S)
    assert second.search(text_of(21), "birds", mode="dense").hits[0].text == text_of(21)


def _serves_other_dimensions(declared: dict[str, object]) -> None:
    definition = declared["definition"]
    assert isinstance(definition, dict)
    definition["dimensions"] = 48


def _says_no_number(declared: dict[str, object]) -> None:
    declared["checks"] = {"median_cosine": float("nan")}


def _says_text(declared: dict[str, object]) -> None:
    declared["checks"] = {"a\0b": 1}


@pytest.mark.parametrize("lie", [_serves_other_dimensions, _says_no_number, _says_text])
def test_a_declaration_that_cannot_be_is_refused(
    lie: object, first: Whimbrel, second: Whimbrel, tmp_path: Path
) -> None:
    assert callable(lie)
    first.adopt(near(tmp_path / "theirs"), "birds")
    first.export("birds", tmp_path / "out")
    said = json.loads((tmp_path / "out" / MANIFEST).read_text())
    lie(said["spaces"][0]["declared"])
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(said))
    with pytest.raises(BackupError, match="Nothing was written"):
        second.start_import(tmp_path / "out")
    assert not second.status()["collections"]


def test_the_command_says_what_it_is(tmp_path: Path) -> None:
    uri = fill_lance(tmp_path / "theirs", sightings())
    told = Shell(tmp_path / "first").several(
        ["adopt", uri, "-c", "birds", "--embedder", "none"], ["export", "birds", str(tmp_path / "out")]
    )
    assert [one.status for one in told] == [0, 0], told
    ran = Shell(tmp_path / "second").run("import", str(tmp_path / "out"))
    assert "without the model that made them" in ran.err
    assert "whimbrel move start birds --embedder MODEL --compatible" in ran.err
