"""How well both sides of a move find, by judged queries, before the switch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from commands import Shell
from running import Toy, found
from whimbrel.app import Whimbrel
from whimbrel.catalog.matching import match_documents
from whimbrel.catalog.moves import Move
from whimbrel.domain import MoveState
from whimbrel.errors import BadInput, PathNotFound, SpaceMismatch
from whimbrel.judging.metrics import measures
from whimbrel.models.embedders import resolve

BIRDS = ("curlew", "godwit", "plover", "heron", "avocet", "dunlin", "knot", "ruff", "snipe", "stilt")


class Blind(Toy):
    """A model that sees no difference between texts."""

    def _vector(self, text: str) -> npt.NDArray[np.float32]:
        return np.ones(self._space.dimensions, np.float32) / np.sqrt(np.float32(self._space.dimensions))


class Deaf(Toy):
    """Reads chunks as `Toy` does, and no question."""

    def _vector(self, text: str) -> npt.NDArray[np.float32]:
        return super()._vector(text if "walks" in text else "nothing")


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """One query for each bird, which its own document answers."""
    folder = tmp_path / "birds"
    folder.mkdir()
    corpus = [{"_id": f"doc-{bird}", "title": "", "text": text(bird)} for bird in BIRDS]
    queries = [{"_id": f"q-{bird}", "text": f"{bird} {bird}"} for bird in BIRDS]
    qrels = ["query-id\tcorpus-id\tscore", *(f"q-{bird}\tdoc-{bird}\t1" for bird in BIRDS)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (folder / "qrels.tsv").write_text("\n".join(qrels))
    return folder


def text(bird: str) -> str:
    return f"The {bird} walks over the mud and looks for worms in the {len(bird)} creeks of the bay."


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Whimbrel]:
    made = {
        **{"toy": Toy(dimensions=512), "same": Toy(model="same", dimensions=512), "blind": Blind(model="blind")},
        "deaf": Deaf(model="deaf", dimensions=512),
    }
    for name, toy in made.items():
        monkeypatch.setitem(resolve._PROVIDERS, name, lambda _model, _threads, toy=toy: toy)
    with Whimbrel(home=tmp_path / "home", embedder="toy") as whimbrel:
        whimbrel.add([{"id": f"doc-{bird}", "text": text(bird)} for bird in BIRDS])
        whimbrel.wait_for_head("default")
        yield whimbrel


def moved(home: Whimbrel, **asked: Any) -> tuple[Move, dict[str, Any]]:
    move, job = home.start_move("default", **asked)
    home.finish(job)
    move = home.move_by_id(move.id)
    return move, dict(move.checks["quality"])


def test_both_sides_are_judged(home: Whimbrel, beir: Path) -> None:
    move, quality = moved(home, embedder="blind", judged=beir)
    assert move.state is MoveState.READY, "it tells, and does not decide"
    assert (quality["name"], quality["documents"], quality["matched"], quality["queries"]) == ("birds", 10, 10, 10)
    dense = quality["modes"]["dense"]["ndcg@10"]
    assert dense["before"] == 1.0
    assert dense["after"] < 0.6, "all documents are as near as each other"
    assert dense["p"] < 0.01
    hybrid = quality["modes"]["hybrid"]["ndcg@10"]
    assert hybrid["after"] == 1.0, "the words still find them"
    assert quality["modes"]["dense"]["recall@100"]["after"] == 1.0
    page = home.write_move_report(move).read_text()
    assert "10 judged queries; 10 of 10 documents are in the collection" in page


def test_it_finds_what_a_search_of_the_product_finds(home: Whimbrel, beir: Path) -> None:
    _, quality = moved(home, to="lancedb:other", judged=beir)
    for mode in ("hybrid", "dense"):
        values = [
            measures(
                [hit.uri.removeprefix("text:") for hit in home.search(f"{bird} {bird}", mode=mode, top_k=10).hits],
                {f"doc-{bird}": 1},
            )
            for bird in BIRDS
        ]
        for side in ("before", "after"):
            for metric in ("ndcg@10", "mrr@10", "recall@100"):
                mean = sum(one[metric] for one in values) / len(values)
                assert quality["modes"][mode][metric][side] == pytest.approx(mean, abs=1e-6)


def test_a_target_that_finds_well_enough_becomes_ready(home: Whimbrel, beir: Path) -> None:
    move, quality = moved(home, embedder="same", judged=beir, min_ndcg=0.99)
    assert quality["modes"]["hybrid"]["ndcg@10"]["after"] == 1.0
    assert move.state is MoveState.READY


def test_a_target_that_finds_nothing_well_fails_and_can_be_accepted(home: Whimbrel, beir: Path) -> None:
    """Judgements that nothing can reach: each bird's query is said to be answered by another bird."""
    lines = [f"q-{bird}\tdoc-{other}\t1" for bird, other in zip(BIRDS, (*BIRDS[5:], *BIRDS[:5]), strict=True)]
    (beir / "qrels.tsv").write_text("\n".join(lines))
    move, quality = moved(home, embedder="same", judged=beir, min_ndcg=0.9)
    assert move.state is MoveState.FAILED
    assert quality["modes"]["hybrid"]["ndcg@10"]["after"] < 0.9
    assert "at least 0.9 was asked for" in move.error
    assert home.accept_move(move).state is MoveState.READY


def test_a_folder_that_is_gone_when_it_is_needed(home: Whimbrel, beir: Path) -> None:
    move, _ = moved(home, embedder="same", judged=beir)
    shutil.rmtree(beir)
    home.finish(home.verify_move(move))
    again = home.move_by_id(move.id)
    assert again.state is MoveState.READY, "nobody asked for a least nDCG"
    assert "There is no folder" in again.checks["quality"]["error"]
    assert "There is no folder" in home.write_move_report(again).read_text()


def test_a_model_that_is_to_serve_the_vectors_that_there_are_is_judged(home: Whimbrel, beir: Path) -> None:
    declared = home.declare_compatible("default", "same", judged=beir, min_ndcg=0.9)
    quality = declared.checks["quality"]
    assert (quality["name"], quality["queries"], quality["matched"]) == ("birds", len(BIRDS), len(BIRDS))
    hybrid = quality["modes"]["hybrid"]["ndcg@10"]
    assert hybrid["before"] == hybrid["after"] > 0.9
    kept = home.compatible("default")
    assert kept is not None
    assert kept.checks == declared.checks
    home.withdraw_compatible("default")

    wrong = [f"q-{bird}\tdoc-{other}\t1" for bird, other in pairwise(BIRDS)]
    (beir / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *wrong]))
    with pytest.raises(
        SpaceMismatch, match=r"by 9 judged queries its nDCG@10 is 0\.\d+ \(\S+ now\); at least 0\.9 was"
    ):
        home.declare_compatible("default", "same", judged=beir, min_ndcg=0.9)
    kept = home.compatible("default")
    assert kept is not None
    assert kept.state == "rolled_back", "nothing was declared"


def test_a_model_that_hears_no_question_is_found_out(home: Whimbrel, beir: Path) -> None:
    """Its vectors of chunks are the same."""
    dense = home.declare_compatible("default", "deaf", judged=beir).checks["quality"]["modes"]["dense"]["ndcg@10"]
    assert dense["after"] < 0.8 * dense["before"]


def test_no_model_is_judged_by_what_is_not_there(home: Whimbrel, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs judged queries"):
        home.declare_compatible("default", "same", min_ndcg=0.5)
    with pytest.raises(PathNotFound):
        home.declare_compatible("default", "same", judged=tmp_path / "nowhere")
    assert home.compatible("default") is None


def test_bad_input(home: Whimbrel, beir: Path, tmp_path: Path) -> None:
    with pytest.raises(PathNotFound):
        home.start_move("default", to="lancedb:other", judged=tmp_path / "nowhere")
    with pytest.raises(BadInput, match="judged queries"):
        home.start_move("default", to="lancedb:other", min_ndcg=0.5)
    with pytest.raises(BadInput, match="between 0 and 1"):
        home.start_move("default", to="lancedb:other", judged=beir, min_ndcg=1.5)
    home.add([{"id": "else", "text": "Nothing that is judged."}], "strangers")
    home.wait_for_head("strangers")
    with pytest.raises(BadInput, match=r"none of the collection's documents: 0 of 10 are in it"):
        home.start_move("strangers", to="lancedb:other", judged=beir)
    (beir / "qrels.tsv").write_text("q-curlew\tnothing\t1")
    with pytest.raises(BadInput, match="no document 'nothing'"):
        home.start_move("default", to="lancedb:other", judged=beir)
    assert home.moves() == []


def test_documents_are_known_by_id_by_metadata_and_by_file_name(home: Whimbrel, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    for place in ("one", "two"):
        (folder / place).mkdir(parents=True)
        (folder / place / "twice.md").write_text(f"It is {place}.")
    (folder / "once.md").write_text("It is named by its file.")
    home.ingest([folder], "c")
    home.add([{"id": "a", "text": "By id."}, {"id": "b", "text": "By metadata.", "metadata": {"_id": "m"}}], "c")
    with home.catalog.read() as connection:
        key = found(home, "c").id
        names = match_documents(connection, key, ["a", "m", "once", "twice", "never"])
    assert sorted(names.values()) == ["a", "m", "once"], "two files are called `twice`"


def test_the_command(tmp_path: Path, beir: Path) -> None:
    shell = Shell(tmp_path / "home")
    notes = tmp_path / "notes"
    notes.mkdir()
    for bird in BIRDS[:4]:
        (notes / f"doc-{bird}.md").write_text(text(bird))
    shell.run("ingest", str(notes))
    start, again, wrong = shell.several(
        ["move", "start", "default", "--to", "lancedb:other", "--eval", str(beir)],
        ["move", "verify", "default", "--eval", str(beir), "--min-ndcg", "0.5", "--json"],
        ["move", "verify", "default", "--eval", str(tmp_path / "nowhere")],
    )
    assert start.status == 0, start.err
    assert "judged by 4 queries of birds, 4 of 10 documents:" in start.out
    assert again.json["checks"]["quality"]["matched"] == 4
    assert again.json["request"]["min_ndcg"] == 0.5
    assert wrong.status == 2
