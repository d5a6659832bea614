"""Adopting: another program's database searched as a collection, at once, and taken anywhere from there."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import lancedb
import numpy as np
import numpy.typing as npt
import psycopg
import pytest
from sqlalchemy import select

from adopting import (
    BIRDS,
    TOWNS,
    D,
    Table,
    fill_chroma,
    fill_lance,
    fill_milvus,
    fill_parquet,
    fill_postgres,
    fill_qdrant,
    sightings,
    text_of,
)
from commands import Shell
from copying import files, libpq
from running import DEADLINE_S, Toy, until
from whimbrel.adopt import sameness
from whimbrel.adopt.grouping import cut_at
from whimbrel.adopt.opening import place_of
from whimbrel.app import Whimbrel
from whimbrel.catalog import adoptions, collections
from whimbrel.catalog import tables as t
from whimbrel.cli.run import run
from whimbrel.domain import EmbedKind, MoveState, Space, ViewKind
from whimbrel.errors import AlreadyOwned, BadInput, ConfigError, Conflict, NotFound, SpaceMismatch, TextRefused
from whimbrel.models.embedders import resolve
from whimbrel.models.embedders.shortening import shortened
from whimbrel.move import switching

pytestmark = pytest.mark.timeout(180)

Fill = Callable[[Table], str]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: made)
    monkeypatch.setattr(switching, "NOTICE_S", 0.3)
    return made


@pytest.fixture
def home(tmp_path: Path, toy: Toy) -> Iterator[Whimbrel]:
    with Whimbrel(home=tmp_path / "home", embedder="toy", **{"owner.erasure_grace_s": 0}) as whimbrel:
        yield whimbrel


@pytest.fixture(params=["lancedb", "parquet", "chroma", "qdrant", "milvus", "postgres"])
def fill(request: pytest.FixtureRequest, tmp_path: Path) -> Fill:
    kind = request.param
    if kind == "postgres":
        url = str(request.getfixturevalue("fresh_postgres"))
        return lambda table: fill_postgres(url, table)
    fillers = {"lancedb": fill_lance, "parquet": fill_parquet, "chroma": fill_chroma, "qdrant": fill_qdrant}
    filler = (fillers | {"milvus": fill_milvus})[kind]
    return lambda table: filler(tmp_path / "theirs", table)


def best(home: Whimbrel, number: int, **asked: Any) -> str:
    return home.search(text_of(number), "birds", **asked).hits[0].text


# --- the main way ----------------------------------------------------------------------------------------------------


def test_every_row_is_found_by_meaning_and_by_words(home: Whimbrel, toy: Toy, fill: Fill) -> None:
    told = home.adopt(fill(sightings()), "birds")
    assert (told["rows"], told["adopted"], told["rejected"]) == (60, 60, 0)
    assert told["fields"]["uri"] == "source"
    assert told["fit"]["median_cosine"] >= 0.999
    toy.given.clear()
    for number in range(0, 60, 7):
        assert best(home, number, mode="dense") == text_of(number)
        assert best(home, number, mode="lexical") == text_of(number)
    found = home.search(text_of(33), "birds")
    assert found.hits[0].text == text_of(33)
    assert not found.degraded
    assert not toy.given, "a text was embedded that has its vector"
    hit = found.hits[0]
    assert (hit.uri, hit.title, hit.metadata["year"]) == ("https://birds.example/log/6", "Log 6", 2006)


def test_rows_of_one_source_are_one_document_in_their_order(home: Whimbrel, tmp_path: Path) -> None:
    table = sightings(20)
    mixed = np.random.default_rng(3).permutation(20).tolist()
    shuffled = Table(
        [table.ids[row] for row in mixed],
        [table.texts[row] for row in mixed],
        table.vectors[mixed],
        [table.metadata[row] for row in mixed],
    )
    home.adopt(fill_lance(tmp_path / "theirs", shuffled), "birds")
    listed = home.documents("birds")
    assert [one["uri"] for one in listed] == [f"https://birds.example/log/{number}" for number in range(4)]
    for number, one in enumerate(listed):
        whole = home.document(one["document_id"], "birds")["text"]
        assert whole == "\n\n".join(text_of(row) for row in range(5 * number, 5 * number + 5))
    hit = home.search(text_of(12), "birds").hits[0]
    whole = home.document(hit.document_id, "birds")["text"]
    assert whole[hit.start : hit.end] == text_of(12)


def test_filters_are_answered_through_the_catalog(home: Whimbrel, fill: Fill) -> None:
    home.adopt(fill(sightings()), "birds")
    for mode in ("dense", "hybrid", "lexical"):
        found = home.search("a curlew was seen", "birds", top_k=20, mode=mode, filter={"year": {"$gte": 2010}})
        assert {hit.metadata["year"] for hit in found.hits} == {2010, 2011}
        assert mode == "lexical" or len(found.hits) == 10


def test_it_is_answered_from(home: Whimbrel, tmp_path: Path) -> None:
    home.adopt(fill_lance(tmp_path / "theirs", sightings()), "birds")
    answer = home.ask("Where was the eider of sighting 4 seen?", "birds")
    assert answer.citations
    for citation in answer.citations:
        whole = home.document(citation.document_id, "birds")["text"]
        assert whole[citation.start : citation.end] == citation.quote


def test_the_source_is_not_written_to(home: Whimbrel, tmp_path: Path) -> None:
    for name, filler in (("lancedb", fill_lance), ("parquet", fill_parquet), ("chroma", fill_chroma)):
        uri = filler(tmp_path / name, sightings())
        before = files(tmp_path / name)
        home.adopt(uri, name)
        home.search(text_of(1), name)
        home.finish(home.start_move(name, to=f"lancedb:{name}")[1], timeout_s=DEADLINE_S)
        assert files(tmp_path / name) == before


@pytest.mark.parametrize("filler", [fill_lance, fill_parquet, fill_chroma])
def test_it_is_searched_while_its_rows_come_in(
    home: Whimbrel, tmp_path: Path, filler: Callable[[Path, Table], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from whimbrel.adopt import job

    monkeypatch.setattr(job, "READ_ROWS", 100)
    written = adoptions.write
    seen: list[Any] = []

    def looked(*args: Any) -> Any:
        if not seen and adoptions.count(args[0], args[1]) >= 100:
            seen.append(home.search(text_of(7), "birds", mode="dense"))
        return written(*args)

    monkeypatch.setattr(adoptions, "write", looked)
    home.adopt(filler(tmp_path / "theirs", sightings(500)), "birds")
    (found,) = seen
    assert found.hits[0].text == text_of(7)
    assert any("still being taken in" in said for said in found.degraded)
    assert not home.search(text_of(499), "birds", mode="dense").degraded
    assert best(home, 499, mode="dense") == text_of(499)


def test_while_few_rows_are_known_the_best_of_them_are_found_without_the_database(
    home: Whimbrel, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 rows that it finds nearest, none may be among the first that the catalog has."""
    from whimbrel.adopt import job
    from whimbrel.stores.foreign import frozen
    from whimbrel.stores.foreign.lancedb import LanceSource

    monkeypatch.setattr(job, "READ_ROWS", 100)
    monkeypatch.setattr(frozen, "BEGINNING", 400)
    monkeypatch.setattr(frozen, "READ_AGAIN_S", 0.0)
    asked: list[int] = []
    nearest = LanceSource.nearest

    async def counted(self: Any, vector: Any, k: int, among: Any = None) -> Any:
        asked.append(k)
        return await nearest(self, vector, k, among)

    monkeypatch.setattr(LanceSource, "nearest", counted)
    written = adoptions.write
    seen: dict[int, tuple[list[str], int]] = {}

    def looked(*args: Any) -> Any:
        known = adoptions.count(args[0], args[1])
        if known:
            del asked[:]
            hits = home.search(text_of(599), "birds", mode="dense").hits
            seen[known] = [hit.text for hit in hits], len(asked)
        return written(*args)

    monkeypatch.setattr(adoptions, "write", looked)
    table = sightings(600)
    home.adopt(fill_lance(tmp_path / "theirs", table), "birds")
    nearness = table.vectors @ toy._vector(text_of(599))
    early = [known for known in seen if known <= 400]
    assert len(early) > 1, list(seen)
    for known in early:
        found, calls = seen[known]
        best_ten = np.sort(nearness[:known])[::-1][:10]
        assert [nearness[table.texts.index(text)] for text in found] == pytest.approx(best_ten)
        assert not calls
    assert seen[max(seen)][1], "later it is the database that finds them"
    assert best(home, 599, mode="dense") == text_of(599)


# --- from there anywhere ---------------------------------------------------------------------------------------------


def test_a_move_takes_it_anywhere_and_back(home: Whimbrel, toy: Toy, fill: Fill) -> None:
    home.adopt(fill(sightings()), "birds")
    toy.given.clear()
    plan = home.plan_move("birds", to="lancedb:ours")
    assert plan.rows == 60
    move, job = home.start_move("birds", to="lancedb:ours")
    home.finish(job, timeout_s=DEADLINE_S)
    move = home.move("birds")
    assert move.state is MoveState.READY, move.error
    assert move.checks["search"]["source"]["recall@10"] >= 0.9
    home.finish(home.switch_move(move), timeout_s=DEADLINE_S)
    assert best(home, 17, mode="dense") == text_of(17)
    assert states(home) == {"frozen": False, "live": True}
    home.finish(home.rollback_move(home.move("birds")), timeout_s=DEADLINE_S)
    assert states(home) == {"frozen": True, "standby": False}
    assert best(home, 18, mode="dense") == text_of(18)
    home.finish(home.switch_move(home.move("birds")), timeout_s=DEADLINE_S)
    home.finalise_move(home.move("birds"))
    assert best(home, 19) == text_of(19)
    assert not toy.given, "a text was embedded that has its vector"


def states(home: Whimbrel) -> dict[str, bool]:
    (found,) = home.status()["collections"]
    return {view["state"]: view["live"] for view in found["views"] if view["kind"] == "store"}


def test_dropping_what_a_move_left_leaves_the_database_alone(home: Whimbrel, fill: Fill) -> None:
    uri = fill(sightings())
    home.adopt(uri, "birds")
    home.finish(home.start_move("birds", to="lancedb:ours", auto_switch=True)[1], timeout_s=DEADLINE_S)
    home.finalise_move(home.move("birds"))
    (old,) = [row for row in home.views("birds") if adoptions.is_frozen(row)]
    home.finish(home.start_view_job("drop_view", old.id, now=True), timeout_s=DEADLINE_S)
    assert not any(adoptions.is_frozen(row) for row in home.views("birds"))
    told = home.adopt(uri, "again")  # it is there, whole
    assert told["adopted"] == 60


def test_new_documents_are_found_by_words_and_wait_for_a_move(home: Whimbrel, tmp_path: Path) -> None:
    home.adopt(fill_lance(tmp_path / "theirs", sightings()), "birds")
    new = "Sighting 99: a kittiwake was heard near Goswick."
    home.add([{"id": "new", "text": new}], "birds")
    assert home.search("kittiwake Goswick", "birds", mode="lexical").hits[0].text == new
    found = home.search("kittiwake Goswick", "birds", top_k=20)
    assert new in {hit.text for hit in found.hits}
    assert any("until a move" in said for said in found.degraded)
    home.finish(home.start_move("birds", to="lancedb:ours", auto_switch=True)[1], timeout_s=DEADLINE_S)
    moved = home.search(new, "birds", mode="dense")
    assert moved.hits[0].text == new
    assert not moved.degraded


def test_deleted_documents_are_out_of_sight_at_once(home: Whimbrel, fill: Fill) -> None:
    home.adopt(fill(sightings()), "birds")
    home.delete(["https://birds.example/log/2"], "birds")
    found = home.search(text_of(11), "birds", mode="dense", top_k=20)
    assert "https://birds.example/log/2" not in {hit.uri for hit in found.hits}


def test_a_deleted_collection_leaves_the_database(home: Whimbrel, fill: Fill) -> None:
    uri = fill(sightings())
    home.adopt(uri, "birds")
    home.finish(home.delete_collection("birds"), wait="end", timeout_s=DEADLINE_S)
    assert home.adopt(uri, "birds")["adopted"] == 60


# --- again, and after a kill -----------------------------------------------------------------------------------------


def test_running_it_again_takes_only_what_is_new(home: Whimbrel, tmp_path: Path) -> None:
    uri = fill_lance(tmp_path / "theirs", sightings(60))
    home.adopt(uri, "birds")
    again = home.adopt(uri, "birds")
    assert (again["rows"], again["adopted"]) == (60, 60)
    more = sightings(73)
    grown = Table(more.ids[60:], more.texts[60:], more.vectors[60:], more.metadata[60:])
    fill_lance(tmp_path / "more", grown)
    rows = lancedb.connect(tmp_path / "more").open_table("log").to_arrow()
    lancedb.connect(tmp_path / "theirs").open_table("log").add(rows)
    told = home.adopt(uri, "birds")
    assert (told["rows"], told["adopted"]) == (73, 73)
    assert best(home, 70, mode="dense") == text_of(70)
    assert len(home.documents("birds", limit=100)) == 15


def test_rows_that_have_changed_are_taken_again(home: Whimbrel, toy: Toy, tmp_path: Path) -> None:
    uri = fill_lance(tmp_path / "theirs", sightings(60))
    home.adopt(uri, "birds")
    new = "Sighting 12: it was an albatross after all."
    table = lancedb.connect(tmp_path / "theirs").open_table("log")
    table.update(where="id = 'row 12'", values={"text": new, "vector": toy._vector(new).tolist()})
    table.delete("id = 'row 30'")
    told = home.adopt(uri, "birds")
    assert (told["rows"], told["adopted"], told["changed"], told["gone"]) == (59, 60, 1, 1)
    for mode in ("dense", "lexical"):
        assert home.search(new, "birds", mode=mode).hits[0].text == new
        assert text_of(12) not in {hit.text for hit in home.search(text_of(12), "birds", mode=mode, top_k=60).hits}
    whole = home.document("https://birds.example/log/2", "birds")["text"]
    assert whole == "\n\n".join([text_of(10), text_of(11), new, text_of(13), text_of(14)])


def test_of_rows_with_one_id_the_first_counts(home: Whimbrel, tmp_path: Path) -> None:
    table = sightings(3_000)
    ids = [*table.ids]
    ids[2_999] = ids[2_000] = ids[1] = "twice"
    uri = fill_parquet(tmp_path / "theirs", replace(table, ids=ids))
    for _ in range(2):
        told = home.adopt(uri, "birds")
        assert (told["rows"], told["adopted"], told["doubled"]) == (3_000, 2_998, 2)
        assert (told["changed"], told["gone"]) == (0, 0)
    assert home.search(text_of(1), "birds", mode="lexical").hits[0].text == text_of(1)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_that_is_cut_off_goes_on_without_doubles(
    home: Whimbrel, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whimbrel.adopt import job

    monkeypatch.setattr(job, "READ_ROWS", 100)
    table = sightings(500, per_source=7)
    mixed = np.random.default_rng(5).permutation(500).tolist()
    shuffled = Table(
        [table.ids[row] for row in mixed],
        [table.texts[row] for row in mixed],
        table.vectors[mixed],
        [table.metadata[row] for row in mixed],
    )
    written = adoptions.write
    calls = 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise OSError(5, "cut off")
        return written(*args)

    monkeypatch.setattr(adoptions, "write", failing)
    uri = fill_lance(tmp_path / "theirs", shuffled)
    with pytest.raises(Exception, match="cut off"):
        home.adopt(uri, "birds")
    told = home.adopt(uri, "birds")
    assert (told["rows"], told["adopted"], told["rejected"]) == (500, 500, 0)
    whole = {
        one["uri"]: home.document(one["document_id"], "birds")["text"] for one in home.documents("birds", limit=99)
    }
    assert len(whole) == 72
    for number in range(72):
        expected = "\n\n".join(text_of(row) for row in range(7 * number, min(7 * number + 7, 500)))
        assert whole[f"https://birds.example/log/{number}"] == expected


def test_a_document_of_many_rows_is_cut_into_several(home: Whimbrel, tmp_path: Path) -> None:
    table = sightings(2_500, per_source=2_500)
    told = home.adopt(fill_parquet(tmp_path / "theirs", table), "birds")
    assert told["adopted"] == 2_500
    assert [one["chunks"] for one in home.documents("birds")] in (
        [1000, 1000, 500],
        [1000, 500, 1000],
        [500, 1000, 1000],
    )
    assert home.adopt(f"parquet:{tmp_path / 'theirs'}/log", "birds")["adopted"] == 2_500


# --- what its fields are ---------------------------------------------------------------------------------------------


def test_llamaindex_nodes_are_unfolded(home: Whimbrel, tmp_path: Path) -> None:
    table = sightings(20)
    nodes = [
        {
            "_node_content": json.dumps(
                {
                    "text": table.texts[row],
                    "metadata": {"file_path": f"/logs/{row // 5}.txt"},
                    "relationships": {"1": {"node_id": f"doc {row // 5}"}},
                    "start_char_idx": 100 * (row % 5),
                }
            ),
            "_node_type": "TextNode",
        }
        for row in range(20)
    ]
    told = home.adopt(fill_chroma(tmp_path / "theirs", replace(table, texts=[None] * 20, metadata=nodes)), "birds")
    assert told["fields"] | {"guessed": []} == {
        "text": "text",
        "title": "",
        "uri": "file_path",
        "document": "ref_doc_id",
        "order": "start_char_idx",
        "page": "",
        "pages_from": 1,
        "guessed": [],
    }
    assert best(home, 13, mode="dense") == text_of(13)
    assert len(home.documents("birds")) == 4


def test_pages_of_a_pdf_that_langchain_loaded_are_one_document(home: Whimbrel, tmp_path: Path) -> None:
    """They are numbered twice: from 0, and as their labels say."""
    rows = sightings(20)
    pages = [
        {"source": f"{row // 10}.pdf", "total_pages": 5, "page": row % 10 // 2, "page_label": str(row % 10 // 2 + 1)}
        for row in range(20)
    ]
    told = home.adopt(fill_chroma(tmp_path / "theirs", replace(rows, metadata=pages)), "birds")
    assert (told["fields"]["page"], told["fields"]["pages_from"]) == ("page", 0)
    assert [one["uri"] for one in home.documents("birds")] == ["0.pdf", "1.pdf"]
    hit = home.search(text_of(13), "birds", mode="dense").hits[0]
    assert (hit.text, hit.page, hit.metadata) == (text_of(13), 2, {"source": "1.pdf", "total_pages": 5})


def test_fields_can_be_named(home: Whimbrel, tmp_path: Path) -> None:
    table = sightings(20)
    odd = [
        {"body_html": table.texts[row], "headline_x": f"H{row}", "where": {"at": f"place {row // 10}"}, "grp": row // 4}
        for row in range(20)
    ]
    uri = fill_lance(tmp_path / "theirs", replace(table, texts=["-"] * 20, metadata=odd))
    told = home.adopt(
        uri, "birds", text_field="body_html", title_field="headline_x", uri_field="where.at", document_field="grp"
    )
    assert told["fields"]["guessed"] == []
    hit = home.search(text_of(13), "birds", mode="dense").hits[0]
    assert (hit.text, hit.uri) == (text_of(13), "place 1")
    with pytest.raises(BadInput, match="no_such"):
        home.adopt(uri, "others", text_field="no_such")


def test_metadata_that_differs_within_a_source_is_kept(home: Whimbrel, tmp_path: Path) -> None:
    table = sightings(20)
    mood = [{**table.metadata[row], "mood": f"m{row % 3}"} for row in range(20)]
    told = home.adopt(fill_lance(tmp_path / "theirs", replace(table, metadata=mood)), "birds")
    assert told["adopted"] == 20
    for number in (3, 8, 19):
        assert home.search(text_of(number), "birds").hits[0].metadata["mood"] == f"m{number % 3}"


def test_overlapping_rows_overlap_in_the_document(home: Whimbrel, toy: Toy, tmp_path: Path) -> None:
    whole = " ".join(text_of(row) for row in range(30))
    starts = list(range(0, len(whole) - 200, 150))
    texts = [whole[start : start + 200] for start in starts]
    table = Table(
        [f"r{row}" for row in range(len(texts))],
        texts,
        np.array([toy._vector(text) for text in texts], np.float32),
        [{"source": "all.txt", "chunk": row} for row in range(len(texts))],
    )
    home.adopt(fill_lance(tmp_path / "theirs", table), "birds")
    (one,) = home.documents("birds")
    assert home.document(one["document_id"], "birds")["text"] == whole[: starts[-1] + 200]


# --- embedders -------------------------------------------------------------------------------------------------------


def test_an_embedder_that_did_not_make_them_is_refused(
    home: Whimbrel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = sightings()
    uri = fill_lance(tmp_path / "theirs", replace(table, vectors=np.roll(table.vectors, 1, axis=1)))
    with pytest.raises(SpaceMismatch, match=r"median cosine to the stored vector is 0\.\d+") as refused:
        home.adopt(uri, "birds")
    assert "--embedder none" in refused.value.hint
    assert not home.collections()
    wide = Toy(model="wide", dimensions=48)
    monkeypatch.setitem(resolve._PROVIDERS, "wide", lambda _model, _threads: wide)
    with pytest.raises(SpaceMismatch, match="32 dimensions; 'wide' makes 48"):
        home.adopt(uri, "birds", embedder="wide")
    assert not home.collections()


def test_vectors_of_another_form_are_named(home: Whimbrel, toy: Toy, tmp_path: Path) -> None:
    table = sightings()
    titled = [f"{one['title']}\n{text}" for one, text in zip(table.metadata, table.texts, strict=True)]
    vectors = np.array([toy._vector(text) for text in titled], np.float32)
    with pytest.raises(SpaceMismatch) as refused:
        home.adopt(fill_lance(tmp_path / "theirs", replace(table, vectors=vectors)), "birds")
    assert "the text after its title" in refused.value.hint


def test_a_near_embedder_serves_a_space_of_their_own(home: Whimbrel, toy: Toy, tmp_path: Path) -> None:
    table = sightings()
    noise = np.random.default_rng(1).normal(scale=0.016, size=table.vectors.shape).astype(np.float32)
    told = home.adopt(fill_lance(tmp_path / "theirs", replace(table, vectors=table.vectors + noise)), "birds")
    assert 0.99 <= told["fit"]["median_cosine"] < 0.999
    declared = home.compatible("birds")
    assert declared is not None
    assert declared.embedder == "toy"
    assert best(home, 21, mode="dense") == text_of(21)
    home.add([{"id": "same", "text": text_of(21)}], "other")  # the same text in the embedder's own space
    assert text_of(21) in toy.given
    home.finish(home.start_move("birds", to="lancedb:ours", auto_switch=True)[1], timeout_s=DEADLINE_S)
    assert best(home, 22, mode="dense") == text_of(22)


def test_the_command_shows_how_near_it_was(
    home: Whimbrel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = sightings()
    noise = np.random.default_rng(1).normal(scale=0.016, size=table.vectors.shape).astype(np.float32)
    home.adopt(fill_lance(tmp_path / "theirs", replace(table, vectors=table.vectors + noise)), "birds")
    home.close()
    monkeypatch.setenv("WHIMBREL_EMBEDDER", "toy")
    assert run(["--home", str(tmp_path / "home"), "move", "status", "birds"]) == 0
    said = capsys.readouterr().out
    assert "median 0.99" in said
    assert "by 32 texts, when it was adopted" in said


def test_without_an_embedder_it_is_searched_by_words(home: Whimbrel, toy: Toy, tmp_path: Path) -> None:
    wide = Toy(model="far away", dimensions=D + 16)
    table = sightings(toy=wide)
    told = home.adopt(fill_lance(tmp_path / "theirs", table), "birds", embedder="none")
    assert told["adopted"] == 60
    assert told["fit"] == {}
    found = home.search(text_of(21), "birds")
    assert found.hits[0].text == text_of(21)
    assert any("without the model" in said for said in found.degraded)
    with pytest.raises(SpaceMismatch, match="without the model"):
        home.search(text_of(21), "birds", mode="dense")
    # A process that has searched opens the target before the switch, though it has no model to search it with.
    (view,) = [row for row in home.views("birds") if row.view.kind is ViewKind.STORE]
    home._run(home.engine._warm_view(view, "en"))
    home.finish(home.start_move("birds", to="lancedb:ours", auto_switch=True)[1], timeout_s=DEADLINE_S)
    assert home.move("birds").state is MoveState.SWITCHED, home.move("birds").error
    assert not toy.given, "a text was embedded, by another model"


def test_a_model_that_comes_later_serves_what_was_adopted_without_it(home: Whimbrel, tmp_path: Path) -> None:
    home.adopt(fill_lance(tmp_path / "theirs", sightings()), "birds", embedder="none")
    home.declare_compatible("birds", "toy")
    assert best(home, 21, mode="dense") == text_of(21)


def test_adopting_again_says_what_serves_it_and_changes_no_model(home: Whimbrel, tmp_path: Path) -> None:
    uri = fill_lance(tmp_path / "theirs", sightings())
    home.adopt(uri, "birds", embedder="none")
    assert home.adopt(uri, "birds")["embedder"] == "none"
    with pytest.raises(Conflict, match="adopted with `--embedder none`") as refused:
        home.adopt(uri, "birds", embedder="toy")
    assert "whimbrel move start birds --embedder toy --compatible" in refused.value.hint
    home.declare_compatible("birds", "toy")
    for named in (None, "none", "toy"):
        assert home.adopt(uri, "birds", embedder=named)["embedder"] == "toy"
    with pytest.raises(Conflict, match="'toy' serves it now"):
        home.adopt(uri, "birds", embedder="other")


class _Short(Toy):
    """Reads eight words, and refuses longer texts, as a model in this process does."""

    @property
    def space(self) -> Space:
        return replace(super().space, max_tokens=10)

    async def embed(self, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        longer = [index for index, text in enumerate(texts) if self.count_tokens(text) > self.space.max_tokens]
        if longer:
            raise TextRefused("It is too long.", positions=longer)
        return await super().embed(texts, kind)


@pytest.mark.parametrize(("every", "longer"), [(1, 60), (3, 20)])
def test_a_later_model_is_measured_by_what_it_reads_of_texts(
    every: int, longer: int, home: Whimbrel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program that made the vectors had long texts cut in silence."""
    short = _Short()
    monkeypatch.setitem(resolve._PROVIDERS, "short", lambda _model, _threads: short)
    table = sightings()
    beginnings = [f"the {n} {BIRDS[n % 10]} at {TOWNS[n % 6]} of log" for n in range(60)]  # seven words
    texts = [one if n % every else f"{one} {n} and then much more was said" for n, one in enumerate(beginnings)]
    read = [shortened(short, text) for text in texts]
    vectors = np.array([short._vector(text) for text in read], np.float32)
    home.adopt(fill_lance(tmp_path / "theirs", replace(table, texts=texts, vectors=vectors)), "birds", embedder="none")
    declared = home.declare_compatible("birds", "short")
    assert declared.checks["longer_than_the_model_reads"] == longer
    assert declared.checks["mean_cosine"] >= 0.999
    assert home.search(beginnings[22], "birds", mode="dense").hits[0].text.startswith(beginnings[22])


# --- bad input -------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_adopted_are_rejected_with_the_reason(home: Whimbrel, fill: Fill) -> None:
    table = sightings()
    texts: list[str | None] = [*table.texts]
    texts[3], texts[4] = None, "  "
    vectors = table.vectors.copy()
    vectors[5] = 0.0
    uri = fill(replace(table, texts=texts, vectors=vectors))
    told = home.adopt(uri, "birds")
    assert (told["rows"], told["adopted"], told["rejected"]) == (60, 57, 3)
    reasons = [said.partition("': ")[2] for said in told["examples"]]
    assert sorted(reasons) == ["it has no text", "it has no text", "its vector is all zeros"]
    named = {said.split("'")[1] for said in told["examples"]}
    assert named == {str(uuid5(NAMESPACE_URL, f"row {n}")) if "qdrant:" in uri else f"row {n}" for n in (3, 4, 5)}
    found = home.search(text_of(5), "birds", mode="dense", top_k=60)
    assert text_of(5) not in {hit.text for hit in found.hits}
    assert home.adopt(uri, "birds")["rejected"] == 3


def test_texts_that_another_tool_cut_are_noticed(home: Whimbrel, toy: Toy, tmp_path: Path) -> None:
    table = sightings()
    long = (" ".join(f"word{n}" for n in range(2_000)))[:8_000]
    texts = [*table.texts[:-1], long]
    vectors = np.array([toy._vector(text) for text in texts], np.float32)
    told = home.adopt(fill_lance(tmp_path / "theirs", replace(table, texts=texts, vectors=vectors)), "birds")
    assert (told["cut_at"], told["cut_texts"]) == (8_000, 1)


def test_mixed_dimensions_are_counted(home: Whimbrel, fresh_postgres: str) -> None:
    uri = fill_postgres(fresh_postgres, sightings())
    with psycopg.connect(libpq(fresh_postgres), autocommit=True) as connection:
        connection.execute("DROP INDEX log_embedding_idx")
        connection.execute("ALTER TABLE log ALTER COLUMN embedding TYPE vector")
        connection.execute("UPDATE log SET embedding = '[1,2,3]' WHERE id = 'row 7'")
        connection.execute("UPDATE log SET embedding = NULL WHERE id = 'row 8'")
    told = home.adopt(uri, "birds")
    assert (told["adopted"], told["rejected"]) == (58, 2)
    assert sorted(told["examples"]) == ["row 'row 7': its vector has 3 dimensions", "row 'row 8': it has no vector"]
    assert best(home, 9, mode="dense") == text_of(9)


def test_a_collection_without_rows(home: Whimbrel, tmp_path: Path) -> None:
    empty = Table([], [], np.zeros((0, D), np.float32), [])
    with pytest.raises(BadInput, match="no row with a vector"):
        home.adopt(fill_chroma(tmp_path / "theirs", empty), "birds")
    fill_lance(tmp_path / "lance", sightings(1))
    lancedb.connect(tmp_path / "lance").open_table("log").delete("true")
    with pytest.raises(BadInput, match="no row with a vector"):
        home.adopt(f"lancedb:{tmp_path / 'lance'}/log", "birds")
    assert not home.collections()


@pytest.mark.parametrize("chosen", [{"id_field": "number"}, {"metric": "l2"}])
@pytest.mark.parametrize("filler", [fill_chroma, fill_qdrant])
def test_what_the_rows_say_themselves_is_not_chosen(
    home: Whimbrel, tmp_path: Path, filler: Callable[[Path, Table], str], chosen: dict[str, Any]
) -> None:
    """It was passed over, and rows kept the ids that they have."""
    with pytest.raises(
        BadInput, match=r"cannot be chosen: its rows say it themselves\. Nothing was adopted"
    ) as refused:
        home.adopt(filler(tmp_path / "theirs", sightings()), "birds", **chosen)
    assert refused.value.hint == f"Leave `--{next(iter(chosen)).replace('_', '-')}` out."
    assert not home.collections()


def test_several_vectors_and_none_named(home: Whimbrel, tmp_path: Path) -> None:
    import pyarrow as pa

    rows = sightings()
    flat = pa.array(rows.vectors.reshape(-1))
    made = pa.table(
        {
            "id": rows.ids,
            "text": rows.texts,
            "one": pa.FixedSizeListArray.from_arrays(flat, D),
            "two": pa.FixedSizeListArray.from_arrays(flat, D),
        }
    )
    lancedb.connect(tmp_path / "theirs").create_table("log", made)
    uri = f"lancedb:{tmp_path / 'theirs'}/log"
    with pytest.raises(BadInput, match="cannot be told") as refused:
        home.adopt(uri, "birds")
    assert "--vector-field" in refused.value.hint
    assert "one, two" in refused.value.hint
    assert home.adopt(uri, "birds", vector_field="two")["adopted"] == 60


def test_several_vectors_of_qdrant_and_none_named(home: Whimbrel, tmp_path: Path) -> None:
    from qdrant_client import QdrantClient, models

    rows = sightings(5)
    one = models.VectorParams(size=D, distance=models.Distance.COSINE)
    parts = models.VectorParams(
        size=D,
        distance=models.Distance.COSINE,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
    )
    client = QdrantClient(path=str(tmp_path / "q"))
    client.create_collection("two", {"title": one, "body": one})
    client.create_collection("hybrid", {"": one}, sparse_vectors_config={"words": models.SparseVectorParams()})
    client.create_collection("parts", {"pages": parts})
    sparse = models.SparseVector(indices=[1], values=[0.5])
    for row, vector in enumerate(rows.vectors.tolist()):
        payload = {"text": rows.texts[row]}
        named = models.PointStruct(id=row, vector={"title": vector, "body": vector}, payload=payload)
        client.upsert("two", [named])
        client.upsert("hybrid", [models.PointStruct(id=row, vector={"": vector, "words": sparse}, payload=payload)])
        client.upsert("parts", [models.PointStruct(id=row, vector={"pages": [vector, vector]}, payload=payload)])
    client.close()
    with pytest.raises(BadInput, match="several vectors: 'body', 'title'") as refused:
        home.adopt(f"qdrant:{tmp_path}/q/two", "birds")
    assert "--vector-field" in refused.value.hint
    with pytest.raises(BadInput, match=r"only 'pages' \(multi\)") as refused:
        home.adopt(f"qdrant:{tmp_path}/q/parts", "birds")
    assert "whimbrel copy" in refused.value.hint
    assert not home.collections()
    told = home.adopt(f"qdrant:{tmp_path}/q/hybrid", "birds")
    assert (told["adopted"], told["notes"]) == (5, ["the vectors 'words' are left out"])
    assert home.adopt(f"qdrant:{tmp_path}/q/two", "titles", vector_field="title")["adopted"] == 5
    found = {one["name"]: one["vectors"] for one in home.inspect(f"qdrant:{tmp_path}/q")["collections"]}
    assert [(vector["name"], vector["kind"], vector["dimensions"]) for vector in found["two"]] == [
        ("body", "dense", D),
        ("title", "dense", D),
    ]
    assert [(vector["name"], vector["kind"]) for vector in found["parts"]] == [("pages", "multi")]
    assert [vector["kind"] for vector in found["hybrid"]] == ["dense", "sparse"]


def test_a_named_text_that_is_no_text(home: Whimbrel, tmp_path: Path) -> None:
    uri = fill_qdrant(tmp_path / "theirs", sightings())
    with pytest.raises(BadInput, match="has a text under 'year'"):
        home.adopt(uri, "birds", text_field="year")
    uri = fill_lance(tmp_path / "lance", sightings())
    with pytest.raises(BadInput, match=r"can be the text\. Nothing was adopted"):
        home.adopt(uri, "birds", text_field="year")
    assert not home.collections()


def test_pages_from_0_and_words_that_are_no_places(home: Whimbrel, tmp_path: Path) -> None:
    rows = sightings(10)
    places = [{"source": f"{row // 5}", "page": row % 5, "position": "keeper", "chunk": row} for row in range(10)]
    told = home.adopt(fill_chroma(tmp_path / "theirs", Table(rows.ids, rows.texts, rows.vectors, places)), "birds")
    assert told["fields"]["pages_from"] == 0
    (hit, *_) = home.search(text_of(7), "birds", mode="dense").hits
    assert (hit.text, hit.page) == (text_of(7), 3)
    assert hit.metadata == {"source": "1", "position": "keeper"}
    assert len(home.documents("birds")) == 2


def test_a_name_that_is_taken_and_a_place_that_is_not_there(home: Whimbrel, tmp_path: Path) -> None:
    uri = fill_lance(tmp_path / "theirs", sightings())
    home.create_collection("taken")
    with pytest.raises(Conflict, match="already"):
        home.adopt(uri, "taken")
    with pytest.raises(NotFound):
        home.adopt(f"lancedb:{tmp_path / 'theirs'}/nothing", "birds")
    with pytest.raises(ConfigError, match="One collection"):
        home.adopt(f"lancedb:{tmp_path / 'theirs'}/*", "birds")
    with pytest.raises(ConfigError, match="credential"):
        home.adopt("postgresql://me:secret@localhost/db/notes", "birds")
    assert [one.name for one in home.collections()] == ["taken"]


@pytest.mark.parametrize("filler", [fill_lance, fill_chroma, fill_qdrant])
def test_a_folder_and_no_collection_of_it(
    home: Whimbrel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filler: Callable[..., str]
) -> None:
    """The folder above was said to be no database, or the last part to be no collection of it."""
    for name in ("waders", "log"):
        uri = filler(tmp_path / "theirs", sightings(5), name)
    before = files(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="theirs' names no collection") as refused:
        home.adopt(uri.rpartition("/")[0], "birds")
    assert refused.value.hint == "Put one behind it, after a `/`. Those that are there: 'log', 'waders'."
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="theirs' names no collection") as refused:
        home.adopt(f"{uri.partition(':')[0]}:theirs", "birds")
    assert "'log', 'waders'" in refused.value.hint
    with pytest.raises(NotFound, match="'nothing'"):
        home.adopt(f"{uri.rpartition('/')[0]}/nothing", "birds")
    assert files(tmp_path / "theirs") == before
    assert not home.collections()


def test_a_database_whose_names_a_copy_of_its_files_would_tell(home: Whimbrel, tmp_path: Path) -> None:
    uri = fill_milvus(tmp_path / "theirs", sightings(5)).rpartition("/")[0]
    with pytest.raises(ConfigError, match=r"names no collection") as refused:
        home.adopt(uri, "birds")
    assert "`whimbrel inspect` with this URI names those that there are" in refused.value.hint


def test_a_server_and_no_collection_of_it(home: Whimbrel, fresh_postgres: str) -> None:
    head, mark, query = fill_postgres(fresh_postgres, sightings(5)).partition("?")
    bare = f"{head.rpartition('/')[0]}{mark}{query}"
    with pytest.raises(ConfigError, match="names no collection") as refused:
        home.adopt(bare, "birds")
    assert refused.value.hint == "Put one behind it, after a `/`. Those that are there: 'log'."
    with pytest.raises(ConfigError, match="names no collection") as refused:
        home.adopt("chroma+http://localhost:9", "birds")  # nobody is there to be asked
    assert "For example" in refused.value.hint


def test_a_chroma_folder_that_is_open_is_told(home: Whimbrel, tmp_path: Path) -> None:
    from copying import chroma_client

    uri = fill_chroma(tmp_path / "theirs", sightings())
    client = chroma_client(tmp_path / "theirs")
    client.get_collection("log").count()
    try:
        with pytest.raises(AlreadyOwned, match="is open in process"):
            home.adopt(uri, "birds")
    finally:
        client.close()


# --- drift -----------------------------------------------------------------------------------------------------------


def test_two_collections_of_a_qdrant_folder_which_stays_free(home: Whimbrel, toy: Toy, tmp_path: Path) -> None:
    """Local mode compares every vector: so do we, without holding the folder."""
    from qdrant_client import QdrantClient

    for name in ("one", "two"):
        home.adopt(fill_qdrant(tmp_path / "q", sightings(20, toy=toy), name), name)
    for name in ("one", "two"):
        assert home.search(text_of(7), name, mode="dense").hits[0].text == text_of(7)
    client = QdrantClient(path=str(tmp_path / "q"))
    assert client.count("one").count == 20
    client.close()


def test_changes_of_the_source_are_noticed(home: Whimbrel, tmp_path: Path) -> None:
    home.adopt(fill_lance(tmp_path / "theirs", sightings()), "birds")
    assert [drift for _, drift in asyncio.run(home.watch.drifts())] == [{}]
    table = lancedb.connect(tmp_path / "theirs").open_table("log")
    table.delete("id IN ('row 1', 'row 2')")
    asyncio.run(home.watch.look())
    (found,) = home.status()["collections"]
    assert "2 rows fewer" in found["views"][0]["error"]
    assert any("2 rows fewer" in said for said in (home.search("avocet", "birds")).degraded)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("content = 'a later log' WHERE id = 'row 7'", "the texts of 1 of 60 rows"),
        ("content = NULL WHERE id = 'row 7'", "the texts of 1 of 60 rows"),
        ("embedding = (SELECT l.embedding FROM log l WHERE l.id = 'row 7')", "the vectors of 59 of 60 rows"),
    ],
)
def test_the_same_ids_with_another_content_are_noticed(
    changed: str, said: str, home: Whimbrel, fresh_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres does not tell that it was written to: rows are read again, others each time."""
    home.adopt(fill_postgres(fresh_postgres, sightings()), "birds")
    assert [drift for _, drift in asyncio.run(home.watch.drifts())] == [{}]
    with psycopg.connect(libpq(fresh_postgres), autocommit=True) as connection:
        connection.execute(f"UPDATE log SET {changed}".encode())
    monkeypatch.setattr(sameness, "_READ", 7)
    asyncio.run(home.watch.look())
    ((_, drift),) = asyncio.run(home.watch.drifts())
    assert said in drift["said"]
    monkeypatch.setattr(sameness, "LISTING_S", 0.0)
    monkeypatch.setattr(sameness, "SAMPLE", 0)
    home.watch._due.clear()
    asyncio.run(home.watch.look())  # others are read that are as they were
    (found,) = home.status()["collections"]
    assert said in found["views"][0]["error"]


def test_of_rows_with_one_text_one_vector_is_of_record(home: Whimbrel, fresh_postgres: str) -> None:
    """Its other vectors are no drift; those of another model are, and adopting again would not take them."""
    table = sightings()
    texts = [table.texts[0]] * 50 + list(table.texts[50:])
    home.adopt(fill_postgres(fresh_postgres, replace(table, texts=texts)), "birds", embedder="none")
    assert [drift for _, drift in asyncio.run(home.watch.drifts())] == [{}]
    with psycopg.connect(libpq(fresh_postgres), autocommit=True) as connection:
        connection.execute(b"UPDATE log SET embedding = (SELECT l.embedding FROM log l WHERE l.id = 'row 7')")
    ((_, drift),) = asyncio.run(home.watch.drifts())
    assert "vectors of 10 of 60 rows" in drift["said"]
    assert "as another collection" in drift["said"]


def test_a_source_that_was_embedded_anew_is_not_adopted_again(home: Whimbrel, tmp_path: Path) -> None:
    """The same texts with vectors of another model, and a new row: none of it comes among those that there are."""
    uri = fill_lance(tmp_path / "theirs", sightings())
    home.adopt(uri, "birds")
    table = lancedb.connect(tmp_path / "theirs").open_table("log")
    turned = [np.roll(vector, 5).tolist() for vector in sightings(61).vectors]
    again = table.to_arrow().to_pylist()
    new = {**again[0], "id": "row 60", "text": text_of(60)}
    table.add([{**row, "vector": vector} for row, vector in zip([*again, new], turned, strict=True)], mode="overwrite")
    with pytest.raises(Conflict, match="was embedded anew") as refused:
        home.adopt(uri, "birds")
    assert "another collection" in refused.value.hint
    with home.catalog.read() as connection:
        (one,) = adoptions.every(connection)
        assert adoptions.count(connection, collections.view(connection, one.view_id)) == 60
    for _ in range(2):  # other rows that are there do not hide it
        assert "as another collection" in home.status()["collections"][0]["views"][0]["error"]
        asyncio.run(home.watch.look())
    table.add(
        [{**row, "vector": vector} for row, vector in zip(again, sightings().vectors, strict=True)], mode="overwrite"
    )
    assert home.adopt(uri, "birds")["adopted"] == 60
    assert [drift for _, drift in asyncio.run(home.watch.drifts())] == [{}]


def test_of_a_row_whose_vector_alone_has_changed_the_first_counts(
    home: Whimbrel, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it is said how many there are. Of rows with one text, one vector is of record: they are not counted."""
    rows = sightings()
    texts = [rows.texts[0]] * 5 + list(rows.texts[5:])
    uri = fill_lance(tmp_path / "theirs", replace(rows, texts=texts))
    home.adopt(uri, "birds", embedder="none")
    assert home.adopt(uri, "birds")["kept_vectors"] == 0
    table = lancedb.connect(tmp_path / "theirs").open_table("log")
    table.update(where="id = 'row 12'", values={"vector": toy._vector("something else").tolist()})
    assert run(["--home", str(home.home.path), "adopt", uri, "-c", "birds"]) == 0
    assert "1 rows have another vector" in "".join(capsys.readouterr())
    told = home.adopt(uri, "birds")
    assert (told["rows"], told["changed"], told["kept_vectors"]) == (60, 0, 1)


def test_a_text_that_was_taken_away_is_said_until_it_is_adopted_again(home: Whimbrel, fresh_postgres: str) -> None:
    uri = fill_postgres(fresh_postgres, sightings())
    home.adopt(uri, "birds")
    with psycopg.connect(libpq(fresh_postgres), autocommit=True) as connection:
        connection.execute(b"UPDATE log SET content = '' WHERE id = 'row 7'")
    asyncio.run(home.watch.look())
    assert "texts of 1 of" in home.status()["collections"][0]["views"][0]["error"]
    home.adopt(uri, "birds")
    assert [drift for _, drift in asyncio.run(home.watch.drifts())] == [{}]


def test_a_sample_of_rows_is_a_part_of_a_circle(home: Whimbrel, tmp_path: Path) -> None:
    home.adopt(fill_lance(tmp_path / "theirs", sightings()), "birds")
    with home.catalog.read() as connection:
        (one,) = adoptions.every(connection)
        view = collections.view(connection, one.view_id)
        some, rest = (adoptions.sample(connection, view, size, b"\x80" * 16) for size in (20, 60))
        around = adoptions.sample(connection, view, 20, b"\xff" * 16)
    assert list(rest.source_ids)[:20] == list(some.source_ids)
    assert sorted(rest.source_ids)[:20] == list(around.source_ids)
    assert set(rest.source_ids.values()) == set(sightings().ids)
    assert rest.source_ids.keys() == rest.texts.keys() == rest.vectors.keys()


def test_rows_that_are_new_there_are_left_out_and_counted(home: Whimbrel, tmp_path: Path) -> None:
    home.adopt(fill_lance(tmp_path / "theirs", sightings()), "birds")
    new = sightings(61)
    fill_lance(tmp_path / "one", Table(new.ids[60:], new.texts[60:], new.vectors[60:], new.metadata[60:]))
    row = lancedb.connect(tmp_path / "one").open_table("log").to_arrow()
    lancedb.connect(tmp_path / "theirs").open_table("log").add(row)
    found = home.search(text_of(60), "birds", mode="dense")
    assert text_of(60) not in {hit.text for hit in found.hits}
    assert len(found.hits) == 10
    assert any("1 rows were found that are not in the catalog" in said for said in found.degraded)


def test_a_source_that_is_gone_leaves_search_by_words(home: Whimbrel, tmp_path: Path) -> None:
    home.adopt(fill_lance(tmp_path / "theirs", sightings()), "birds")
    home.close()
    (tmp_path / "theirs").rename(tmp_path / "elsewhere")
    with Whimbrel(home=tmp_path / "home", embedder="toy") as later:
        found = later.search(text_of(4), "birds")
        assert found.hits[0].text == text_of(4)
        assert any("gone" in said for said in found.degraded)
        (tmp_path / "elsewhere").rename(tmp_path / "theirs")
        assert best(later, 4, mode="dense") == text_of(4)


def test_a_chroma_folder_that_has_changed_is_copied_anew(home: Whimbrel, tmp_path: Path) -> None:
    from copying import chroma_client

    uri = fill_chroma(tmp_path / "theirs", sightings(60))
    home.adopt(uri, "birds")
    assert best(home, 5, mode="dense") == text_of(5)
    more = sightings(70)
    client = chroma_client(tmp_path / "theirs")
    client.get_collection("log").add(
        ids=list(more.ids[60:]),
        embeddings=more.vectors[60:],
        documents=list(more.texts[60:]),
        metadatas=[dict(one) for one in more.metadata[60:]],
    )
    client.close()
    ((_, drift),) = asyncio.run(home.watch.drifts())
    assert "its files have changed" in drift["said"]
    assert home.adopt(uri, "birds")["adopted"] == 70
    for number in (5, 66):
        assert best(home, number, mode="dense") == text_of(number)
    assert [drift for _, drift in asyncio.run(home.watch.drifts())] == [{}]
    assert len(list((tmp_path / "home" / "adopted").glob("files-*"))) == 1


# --- several processes -----------------------------------------------------------------------------------------------


def test_a_second_process_searches_through_the_owner(home: Whimbrel, tmp_path: Path) -> None:
    """A Chroma folder is opened by one process: its copy too."""
    home.adopt(fill_chroma(tmp_path / "theirs", sightings()), "birds")
    assert home.owner is not None
    with Whimbrel(home=tmp_path / "home", embedder="toy") as other:
        assert best(other, 4, mode="dense") == text_of(4)


def test_the_catalog_knows_each_row_of_the_source(home: Whimbrel, tmp_path: Path) -> None:
    table = sightings()
    home.adopt(fill_parquet(tmp_path / "theirs", table), "birds")
    with home.catalog.read() as connection:
        known = set(connection.execute(select(t.chunks.c.source_id)).scalars())
    assert known == set(table.ids)
    assert home.status()["collections"][0]["documents"]["indexed"] == 12


def test_a_killed_run_goes_on_without_doubles(tmp_path: Path) -> None:
    uri = fill_lance(tmp_path / "theirs", sightings(12_000))
    shell = Shell(tmp_path / "home")
    adopting = ("adopt", uri, "-c", "birds", "--embedder", "none", "--json")
    for least in (1, 4_000):
        with shell.started(*adopting) as process:
            begun = partial(_has, tmp_path / "home", least, process)
            until(begun, f"{least} chunks to be in the catalog")
            process.kill()
            process.wait()
    told = shell.run(*adopting).json
    assert (told["rows"], told["adopted"], told["rejected"]) == (12_000, 12_000, 0)
    status, found = shell.several(["status", "--json"], ["search", "-c", "birds", text_of(11_999), "--json"])
    assert status.json["collections"][0]["documents"]["indexed"] == 2_400
    assert status.json["collections"][0]["chunks"] == 12_000
    assert found.json["hits"][0]["text"] == text_of(11_999)


def _has(home: Path, least: int, process: subprocess.Popen[str]) -> bool:
    return _chunks(home) >= least or process.poll() is not None


def _chunks(home: Path) -> int:
    """That the catalog has; 0 before it is there."""
    if not (home / "catalog.db").exists():
        return 0
    with sqlite3.connect(f"file:{home / 'catalog.db'}?mode=ro", uri=True) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM chunks").fetchone()[0])
        except sqlite3.OperationalError:  # its tables are being made
            return 0


def test_on_the_command_line(tmp_path: Path) -> None:
    uri = fill_lance(tmp_path / "theirs", sightings(40))
    shell = Shell(tmp_path / "home")
    told, refused, status, again = shell.several(
        ["adopt", uri, "-c", "birds", "--embedder", "none"],
        ["adopt", uri, "-c", "others", "--json"],
        ["status"],
        ["adopt", uri, "-c", "birds"],
    )
    assert (told.status, again.status) == (0, 0), told
    assert "uri: source (guessed)" in told.out
    assert "40 of 40 rows adopted, 0 rejected" in told.out
    for one in (told, again):
        assert "searched by words alone" in one.out
        assert "whimbrel move start birds --embedder MODEL --compatible" in one.err
    assert (refused.status, refused.json["error"]) == (2, "SpaceMismatch")
    assert "makes 384" in refused.json["message"]
    assert "frozen" in status.out
    assert "others" not in status.out


def test_where_credentials_come_from(tmp_path: Path) -> None:
    whole = "postgresql://me:secret@db.example.org/app"
    place = place_of("postgresql://me@db.example.org/app/notes", tmp_path, [whole])
    assert place.address.place == whole
    assert "secret" not in place.uri
    assert "secret" not in place.bare
    assert place.uri == "postgresql://me@db.example.org/app/notes"
    same = place_of("postgresql://me:secret@db.example.org/app/notes?schema=x", tmp_path, [f"{whole}?schema=x"])
    assert "secret" not in same.uri


@pytest.mark.parametrize(
    ("lengths", "found"),
    [
        ({8_000: 1, 7_999: 4}, (8_000, 1)),
        ({8_192: 3}, (8_192, 3)),
        ({8_001: 1, 8_000: 4}, (0, 0)),
        ({500: 30, 499: 1}, (0, 0)),  # what a splitter was told: the rest is in the next row
        ({}, (0, 0)),
    ],
)
def test_where_texts_were_cut(lengths: dict[int, int], found: tuple[int, int]) -> None:
    assert cut_at(lengths) == found
