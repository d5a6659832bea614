"""The report of a move: written when it comes to rest, whole and readable without network or script, escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import update

from commands import Shell
from running import Toy, files, until
from whimbrel.app import Whimbrel
from whimbrel.catalog import moves
from whimbrel.catalog import tables as t
from whimbrel.catalog.moves import KEPT_SAMPLES, Move
from whimbrel.domain import MoveState
from whimbrel.errors import DiskFull, HomeError, MoveNotFound, RowRefused
from whimbrel.models.embedders import resolve
from whimbrel.move import plots
from whimbrel.move.markup import Markup, escaped, tag
from whimbrel.move.plots import Bar
from whimbrel.move.report import throughput
from whimbrel.move.report_page import page
from whimbrel.owner import tasks
from whimbrel.stores.base import Records
from whimbrel.stores.lancedb import LanceStore

EVIL = "<script>alert(1)</script>&\"'"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Whimbrel]:
    toy = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: toy)
    with Whimbrel(home=tmp_path / "home", embedder="toy") as whimbrel:
        whimbrel.ingest(files(tmp_path / "notes", 12))
        whimbrel.add([{"id": EVIL, "text": "Secret words of one document.", "metadata": {"k": 1}}])
        whimbrel.wait_for_head("default")
        yield whimbrel


def moved(home: Whimbrel, **asked: Any) -> Move:
    move, job = home.start_move("default", **{"to": "lancedb:other", **asked})
    home.finish(job)
    return home.move_by_id(move.id)


def read(home: Whimbrel, move: Move) -> tuple[str, dict[str, Any], list[dict[str, str]]]:
    folder = home.home.moves / move.id
    rejected = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    return (folder / "report.html").read_text(), json.loads((folder / "report.json").read_text()), rejected


class Outline(HTMLParser):
    """Checks that elements are closed in their order; gathers what a browser would load or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[tuple[str, str | None]] = []
        self.seen: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)
        self.loads += [(name, value) for name, value in attrs if name in ("src", "href", "action") or name[:2] == "on"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def sound(html: str) -> Outline:
    assert html.startswith("<!doctype html>\n<html")
    found = Outline(html)
    assert found.loads == [], "nothing is loaded, nothing runs"
    assert not {"script", "link", "img", "iframe"} & set(found.seen)
    assert "url(" not in html
    assert "@import" not in html
    for picture in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(picture)
    return found


# --- when it is written ----------------------------------------------------------------------------------------------


def test_each_state_in_which_a_move_rests_is_reported(home: Whimbrel) -> None:
    move = moved(home)
    states = []

    def note() -> None:
        html, found, _ = read(home, move)
        sound(html)
        states.append(found["move"]["state"])

    note()
    home.finish(home.switch_move(move))
    note()
    home.finish(home.rollback_move(move))
    note()
    home.finish(home.switch_move(move))
    note()
    home.finalise_move(home.move_by_id(move.id))
    note()
    assert states == ["ready", "switched", "rolled_back", "switched", "finalised"]
    timeline = read(home, move)[1]["timeline"]
    assert [one["state"] for one in timeline][:2] == ["planned", "copying"]
    assert timeline[-1] == {"state": "finalised", "at": timeline[-1]["at"], "seconds": 0.0}


def test_an_aborted_move_keeps_its_report(home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "DROP_GRACE_S", 0.0)
    move = moved(home)
    home.abort_move(move)
    html, found, _ = read(home, move)
    assert found["move"]["state"] == "aborted"
    assert "nothing of it is left" in html
    until(lambda: not home.move_dict(home.move_by_id(move.id))["target"], "the target is dropped")
    assert "dropped" in home.write_move_report(move).read_text()


def test_what_was_found_is_in_it(home: Whimbrel) -> None:
    conversation = home.start_conversation("default")
    home.ask("Which notes are about birds?", conversation_id=conversation.id)
    move = moved(home)
    html, found, rejected = read(home, move)
    (view,) = found["move"]["checks"]["views"]
    assert (view["rows"], view["equal"]) == (13, True)
    assert found["move"]["checks"]["search"]["questions"] == 1
    assert "the same on both sides" in html
    assert html.count("<svg") >= 3
    assert rejected == []
    assert "Secret words" not in html + json.dumps(found)
    assert "Which notes" not in html + json.dumps(found)
    assert home.move_report(home.move_by_id(move.id))["move"] == found["move"]
    assert found["losses"] == []
    assert "Nothing, by what both say of themselves." in html


def test_what_the_target_does_otherwise_is_in_it(home: Whimbrel) -> None:
    """A plan said it; whoever began without one read it nowhere."""
    pytest.importorskip("chromadb")
    html, found, _ = read(home, moved(home, to="chroma:other"))
    planned = home.plan_move("default", to="chroma:third")
    assert {one["what"] for one in found["losses"]} >= {"vectors", "processes"}
    assert {one["said"] for one in found["losses"]} == {one.said for one in planned.losses}
    for one in found["losses"]:
        assert escaped(one["said"]) in html
    sound(html)


def test_refused_rows_are_named_and_escaped(home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
    upsert = LanceStore.upsert

    async def picky(self: LanceStore, records: Records, *, new: bool = False) -> None:
        for id_, metadata in zip(records.ids, records.metadata, strict=True):
            if self._folder.name == "other" and metadata.get("k") == 1:  # type: ignore[union-attr]
                raise RowRefused.of(id_, f"It is refused for {EVIL}.")
        await upsert(self, records, new=new)

    monkeypatch.setattr(LanceStore, "upsert", picky)
    move = moved(home)
    assert move.state is MoveState.FAILED
    html, found, rejected = read(home, move)
    assert [(one["document"], one["reason"]) for one in rejected] == [(f"text:{EVIL}", f"It is refused for {EVIL}.")]
    assert found["rejected"] == {"rows": 1, "named": rejected}
    assert "script" not in sound(html).seen
    assert escaped(f"text:{EVIL}") in html
    assert "1 rows cannot go" in html
    home.accept_move(home.move_by_id(move.id))
    assert read(home, move)[1]["move"]["accepted"]


def test_a_folder_that_cannot_be_written_to(home: Whimbrel, caplog: pytest.LogCaptureFixture) -> None:
    move = moved(home)
    before = read(home, move)
    folder = home.home.moves / move.id
    kept = folder.rename(folder.with_suffix(".kept"))
    folder.write_text("in the way")
    with pytest.raises((HomeError, DiskFull), match="The move is as it was"):
        home.write_move_report(move)
    home.finish(home.switch_move(move))
    assert home.move_by_id(move.id).state is MoveState.SWITCHED, "the move goes on without its report"
    assert any("cannot be written" in record.message for record in caplog.records)
    folder.unlink()
    kept.rename(folder)
    assert read(home, move) == before


def test_there_is_no_report_without_a_move(home: Whimbrel) -> None:
    with pytest.raises(MoveNotFound, match="never been moved"):
        home.move("default")


def test_a_long_move_has_a_curve(home: Whimbrel) -> None:
    """Samples as an hour's move leaves them, thinned out meanwhile."""
    move = moved(home)
    with home.catalog.write() as connection:
        connection.execute(update(t.moves).values(samples=[]))
        for second in range(KEPT_SAMPLES + 50):
            found = moves.get(connection, move.id)
            moves.sample(connection, found, rows=1_000.0 * second, lag=3)
            assert len(moves.get(connection, move.id).samples) <= KEPT_SAMPLES
        samples = [{"at": 100.0 + at, "rows": 1_000.0 * at} for at in range(0, 3_600, 9)]
        connection.execute(update(t.moves).values(samples=samples))
    html = home.write_move_report(move).read_text()
    sound(html)
    assert "Rows copied per second" in html
    assert "1,000 rows/s" in html
    assert html.count("<circle") <= plots.MOST_POINTS


# --- its parts -------------------------------------------------------------------------------------------------------


@given(st.text())
def test_whatever_is_no_markup_is_escaped(text: str) -> None:
    made = tag("p", text, title=text)
    found = ElementTree.fromstring(made)
    assert found.tag == "p"
    assert len(found) == 0
    assert isinstance(made, Markup)


@example([(0.0, 5e-324)])
@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e9)), min_size=1, max_size=400))
def test_any_line_can_be_drawn(points: list[tuple[float, float]]) -> None:
    drawn = ElementTree.fromstring(plots.line(sorted(points), label="l", unit="u"))
    assert "nan" not in ElementTree.tostring(drawn, "unicode")
    assert len([one for one in drawn if one.tag == "circle"]) <= plots.MOST_POINTS


@given(st.lists(st.tuples(st.sampled_from(list(MoveState)), st.floats(0, 1e7)), min_size=1, max_size=30))
def test_any_history_can_be_drawn(spans: list[tuple[MoveState, float]]) -> None:
    drawn = ElementTree.fromstring(f"<x>{plots.timeline(spans)}</x>")
    widths = [float(one.attrib["width"]) for one in drawn.iter("rect")]
    assert len(widths) == len(spans)
    assert all(width >= 1 for width in widths)
    assert sum(widths) <= plots.WIDTH + 1


@given(st.lists(st.floats(0, 1e6), max_size=6))
def test_any_bars_can_be_drawn(values: list[float]) -> None:
    drawn = ElementTree.fromstring(plots.bars([Bar("b", one, str(one), True) for one in values], label="l"))
    assert all(float(one.attrib["width"]) <= plots.WIDTH for one in drawn if one.tag == "rect")


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1e6)), max_size=50))
def test_rates_are_never_below_zero(samples: list[tuple[float, float]]) -> None:
    """Also where an owner was killed and another counts from its last sample."""
    for one in throughput([{"at": at, "rows": rows} for at, rows in samples]):
        assert one["rows_per_s"] >= 0


def test_a_move_that_has_only_begun_has_a_page(home: Whimbrel) -> None:
    move = moved(home)
    with home.catalog.write() as connection:
        connection.execute(update(t.moves).values(checks={}, samples=[], state=MoveState.COPYING))
    html = page(home.move_report(home.move_by_id(move.id)))
    sound(html)
    assert "Nothing has been compared yet" in html


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "home")
    notes = tmp_path / "notes"
    files(notes, 3)
    shell.run("ingest", str(notes))
    none, start, told, as_json = shell.several(
        ["move", "report", "default"],
        ["move", "start", "default", "--to", "lancedb:other"],
        ["move", "report", "default"],
        ["move", "report", "default", "--json"],
    )
    assert none.status == 2
    assert start.status == 0, start.err
    path = Path(told.out.strip())
    assert path.name == "report.html"
    sound(path.read_text())
    assert as_json.json["page"] == str(path)
    assert as_json.json["move"]["state"] == "ready"
