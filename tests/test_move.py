"""Moves: a collection taken to another view, verified, switched and back; and everything that can stand in the way."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.memory_store import TABLES, MemoryStore

from qdrant_server import QdrantServer
from running import DEADLINE_S, Toy, until
from whimbrel.app import Whimbrel
from whimbrel.catalog import moves, processes
from whimbrel.catalog.moves import Move
from whimbrel.domain import Job, MoveState, ViewState
from whimbrel.errors import (
    BadInput,
    ConfigError,
    Conflict,
    MoveNotFound,
    RowRefused,
    SpaceMismatch,
    StoreUnavailable,
    ViewDamaged,
    WhimbrelError,
)
from whimbrel.models.embedders import resolve
from whimbrel.move import switching
from whimbrel.move.checks import Checker
from whimbrel.move.switching import Switcher
from whimbrel.owner import runner, tasks
from whimbrel.owner.follower import Follower
from whimbrel.stores.base import Records, StoreInfo

pytestmark = pytest.mark.timeout(180)

NOTES = 40


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: made)
    return made


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Toy:
    """Another model, of another space."""
    made = Toy(model="other", dimensions=48)
    monkeypatch.setitem(resolve._PROVIDERS, "other", lambda _model, _threads: made)
    return made


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scheme `other:`, of a store in memory that a test can make fail."""
    about = tmp_path / "packages" / "other-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[whimbrel.stores]\nother = tests.memory_store:MemoryStore\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    TABLES.clear()
    yield
    TABLES.clear()


@pytest.fixture
def home(tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Whimbrel]:
    monkeypatch.setattr(switching, "NOTICE_S", 0.3)
    with opened(tmp_path / "home") as whimbrel:
        add(whimbrel, "birds", NOTES)
        yield whimbrel


def opened(folder: Path) -> Whimbrel:
    return Whimbrel(home=folder, embedder="toy", **{"owner.erasure_grace_s": 0})


def add(home: Whimbrel, name: str, count: int) -> None:
    home.add([{"id": f"{name}{n}", "text": note(name, n)} for n in range(count)])


def note(name: str, number: int) -> str:
    return f"Note {number} of the {name}, written in town {7 * number}."


def finds(home: Whimbrel, name: str, number: int, **asked: Any) -> bool:
    """Whether a note is the first hit of its own text."""
    return home.search(note(name, number), **asked).hits[0].text == note(name, number)


def moved(home: Whimbrel, to: str | None = "lancedb:elsewhere", **asked: Any) -> Move:
    """A move, as far as it comes by itself."""
    _, job = home.start_move("default", to=to, **asked)
    home.finish(job, timeout_s=DEADLINE_S)
    return home.move("default")


def switched(home: Whimbrel, move: Move) -> Move:
    home.finish(home.switch_move(move), timeout_s=DEADLINE_S)
    return home.move("default")


def live(home: Whimbrel) -> dict[str, Any]:
    (found,) = home.status()["collections"]
    return next(view for view in found["views"] if view["live"] and view["kind"] == "store")


def states(home: Whimbrel) -> dict[int, ViewState]:
    return {row.id: row.view.state for row in home.views("default") if row.view.kind == "store"}


@pytest.fixture
def qdrant_api() -> Iterator[QdrantServer]:
    made = QdrantServer()
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("kind", ["milvus", "milvus_server", "qdrant", "qdrant_api"])
def test_a_collection_moves_away_and_back(home: Whimbrel, kind: str, request: pytest.FixtureRequest) -> None:
    folders = {"milvus": "milvus:there.db", "qdrant": "qdrant:there"}
    uri = folders.get(kind) or request.getfixturevalue(kind).uri
    for to in (uri, "lancedb:back"):
        assert moved(home, to).state is MoveState.READY
        assert switched(home, home.move("default")).state is MoveState.SWITCHED
        assert live(home)["uri"] == to
        add(home, f"later in {to[:6]}", 3)
        assert all(finds(home, "birds", number, mode="dense") for number in range(0, NOTES, 7))
        assert finds(home, f"later in {to[:6]}", 2, mode="dense")
        assert home.finalise_move(home.move("default")).state is MoveState.FINALISED


def test_a_collection_moves_goes_back_and_moves_again(home: Whimbrel, toy: Toy) -> None:
    before = home.search("note 7 of the birds").hits
    paid = len(toy.given)
    move = moved(home)
    assert move.state is MoveState.READY
    assert live(home)["uri"] == "lancedb:", "nothing is switched by itself"
    (report,) = move.checks["views"]
    assert report["equal"]
    assert report["rows"] == report["expected"] == NOTES
    assert move.checks["search"]["target"]["recall@10"] == 1.0

    move = switched(home, move)
    assert move.state is MoveState.SWITCHED
    assert live(home)["uri"] == "lancedb:elsewhere"
    assert [hit.chunk_id for hit in home.search("note 7 of the birds").hits] == [hit.chunk_id for hit in before]

    add(home, "fish", 5)  # both views are fed
    home.finish(home.rollback_move(move), timeout_s=DEADLINE_S)
    move = home.move("default")
    assert move.state is MoveState.ROLLED_BACK
    assert live(home)["uri"] == "lancedb:"
    assert finds(home, "fish", 3, mode="dense")

    move = switched(home, move)
    assert live(home)["uri"] == "lancedb:elsewhere"
    assert finds(home, "fish", 3, mode="dense")
    old, new = move.source_store, move.target_store
    move = home.finalise_move(move)
    assert states(home) == {old: ViewState.RETIRED, new: ViewState.LIVE}
    assert len(toy.given) == paid + 5, "no text was embedded again"


def test_the_old_views_data_is_kept_until_it_is_dropped(home: Whimbrel) -> None:
    move = home.finalise_move(switched(home, moved(home)))
    (folder,) = (home.home.path / "views").glob(f"c*-v{move.source_store}-*.lance")
    path = home.home.path
    home.close()
    with opened(path) as again:  # an owner that begins drops what replaced views have left; not this
        again.own()
        add(again, "fish", 1)
        assert folder.exists()
        assert move.source_store in states(again)
        again.finish(again.start_view_job("drop_view", move.source_store, now=True), wait="end", timeout_s=DEADLINE_S)
        assert not folder.exists()
        assert move.source_store not in states(again)


def test_no_search_fails_and_none_is_behind_while_it_switches(home: Whimbrel) -> None:
    move = moved(home)
    failed: list[BaseException] = []
    seen: set[str] = set()
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            try:
                found = home.search(note("birds", 7), top_k=1)
                assert found.hits[0].text == note("birds", 7)
                seen.update(found.degraded)
            except BaseException as error:
                failed.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        move = switched(home, move)
        home.finish(home.rollback_move(move), timeout_s=DEADLINE_S)
        move = home.move("default")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert not seen


def test_writes_go_on_while_it_copies(home: Whimbrel) -> None:
    _, job = home.start_move("default", to="lancedb:elsewhere", rate=20)
    until(lambda: home.move("default").samples, "the copy has begun")
    add(home, "fish", 5)
    home.delete(["birds3"])
    home.finish(job, timeout_s=DEADLINE_S)
    move = switched(home, home.move("default"))
    assert move.checks["views"][0]["expected"] == NOTES + 5 - 1
    assert not [hit for hit in home.search("note 3 of the birds", top_k=50).hits if "Note 3 of the birds" in hit.text]


def test_a_pause_writes_nothing_and_a_rate_is_held(home: Whimbrel) -> None:
    _, job = home.start_move("default", to="lancedb:elsewhere", rate=8)
    until(lambda: home.move("default").samples, "the copy has begun")
    paused = home.pause_move(home.move("default"))
    assert paused.paused
    target = paused.target_store
    until(lambda: target not in home.owner.views.followers, "the view is let go")  # type: ignore[union-attr]
    with home.catalog.read() as connection:
        at = moves.collections.view(connection, target).build_after  # type: ignore[arg-type]
    add(home, "fish", 3)
    with home.catalog.read() as connection:
        assert moves.collections.view(connection, target).build_after == at  # type: ignore[arg-type]
    _, same = home.resume_move(home.move("default"), rate=0)
    assert same.id == job.id, "the job that was at it goes on"
    home.finish(job, timeout_s=DEADLINE_S)
    assert home.move("default").checks["views"][0]["rows"] == NOTES + 3


def test_auto_switch(home: Whimbrel) -> None:
    move = moved(home, auto_switch=True)
    assert move.state is MoveState.SWITCHED
    assert live(home)["uri"] == "lancedb:elsewhere"


def test_another_embedder_embeds_only_what_it_lacks(home: Whimbrel, toy: Toy, other: Toy) -> None:
    move = moved(home, to=None, embedder="other")
    assert move.state is MoveState.READY
    assert len(other.given) == NOTES
    move = switched(home, move)
    assert live(home)["space"]["model"] == "other"
    assert finds(home, "birds", 7, mode="dense")
    add(home, "fish", 2)  # in both spaces: the old view is fed
    assert (len(toy.given), len(other.given)) == (NOTES + 2, NOTES + 2)
    home.finish(home.rollback_move(move), timeout_s=DEADLINE_S)
    assert finds(home, "fish", 1, mode="dense")
    home.abort_move(home.move("default"))
    moved(home, to="lancedb:elsewhere", embedder="other")
    assert len(other.given) == NOTES + 2, "vectors of record are never paid for twice"


@pytest.mark.parametrize("chunking", [None, "tokens=48,overlap=4"])
def test_a_text_that_the_new_model_refuses_is_named_and_has_to_be_accepted(
    home: Whimbrel, other: Toy, chunking: str | None
) -> None:
    other.refuses = "Note 7 of"
    move = moved(home, to=None, embedder="other", chunking=chunking, auto_switch=True)
    assert move.state is MoveState.FAILED
    assert "1 rows cannot go" in move.error
    (reject,) = home.move_rejects(move)
    assert (reject.document, reject.reason) == ("text:birds7", "It has a word that I do not read.")
    assert home.move_dict(move)["rejects"] == 1
    page = home.write_move_report(move)
    assert json.loads((page.parent / "rejects.jsonl").read_text())["id"] == reject.chunk_id
    move = switched(home, home.accept_move(move))
    assert move.state is MoveState.SWITCHED
    home.finish(home.rollback_move(move), timeout_s=DEADLINE_S)
    home.abort_move(home.move("default"))
    if chunking is None:
        back = moved(home, to="lancedb:elsewhere")
        assert back.state is MoveState.READY, "what the source lacks as well is not lost by a move"


def test_what_the_source_lacks_as_well_is_not_lost_by_a_move(home: Whimbrel, toy: Toy, other: Toy) -> None:
    toy.refuses = other.refuses = "Note 1 of the fish"
    add(home, "fish", 3)
    assert moved(home, to=None, embedder="other").state is MoveState.READY
    assert home.move_rejects(home.move("default")) == []


def test_a_model_that_does_not_read_so_long_chunks_needs_another_chunking(home: Whimbrel, other: Toy) -> None:
    other._space = replace(other._space, max_tokens=64)
    with pytest.raises(ConfigError, match="Nothing was begun") as refused:
        home.start_move("default", embedder="other")
    assert "--chunking" in refused.value.hint
    move = moved(home, to=None, embedder="other", chunking="tokens=48,overlap=4")
    assert move.state is MoveState.READY


def test_what_is_left_is_told_of_the_chunks_that_there_will_be(home: Whimbrel) -> None:
    text = " ".join(note("geese", number) for number in range(120))
    home.add([{"id": "long", "text": text}])
    before = home.move_dict(moved(home, to="lancedb:whole"))["rows"]["total"]
    home.abort_move(home.move("default"))
    move = moved(home, to=None, chunking="tokens=48,overlap=4")
    (report,) = [one for one in move.checks["views"] if one["kind"] == "store"]
    assert home.move_dict(move)["rows"]["total"] == report["rows"] > before + 10


@pytest.mark.parametrize("to", ["lancedb:", "lancedb:views"])
def test_the_target_is_the_source(home: Whimbrel, to: str) -> None:
    with pytest.raises(BadInput, match="is there already"):
        home.start_move("default", to=to)
    with pytest.raises(BadInput, match="Nothing is to change"):
        home.start_move("default")
    with pytest.raises(MoveNotFound):
        home.move("default")


def test_a_second_move_at_once_is_refused(home: Whimbrel) -> None:
    move = moved(home)
    with pytest.raises(Conflict, match=f"moved already: move {move.id} is ready"):
        home.start_move("default", to="lancedb:third")
    home.abort_move(move)
    assert moved(home, to="lancedb:third").state is MoveState.READY


def test_a_credential_that_the_other_processes_lack_is_refused(home: Whimbrel) -> None:
    with pytest.raises(ConfigError, match="holds a credential") as refused:
        home.start_move("default", to="postgresql://me:s3cret@localhost/db")
    assert "s3cret" not in refused.value.message
    with pytest.raises(StoreUnavailable):
        home.start_move("default", to="chroma+http://127.0.0.1:9")
    assert home.moves() == []


def test_what_is_out_of_turn_is_refused(home: Whimbrel) -> None:
    _, job = home.start_move("default", to="lancedb:elsewhere", rate=10)
    move = until(lambda: home.move("default"), "a move")
    with pytest.raises(Conflict, match="only one that is ready can be switched"):
        switched(home, move)
    with pytest.raises(Conflict, match="no switch to take back"):
        home.finish(home.rollback_move(move), timeout_s=DEADLINE_S)
    with pytest.raises(Conflict, match="only one that was switched can be finalised"):
        home.finalise_move(move)
    with pytest.raises(Conflict, match="nothing to accept"):
        home.accept_move(move)
    home.resume_move(move, rate=0)
    home.finish(job, timeout_s=DEADLINE_S)
    with pytest.raises(Conflict, match="only one that copies can be paused"):
        home.pause_move(home.move("default"))
    move = switched(home, home.move("default"))
    with pytest.raises(Conflict, match="searches read its target"):
        home.abort_move(move)
    move = home.finalise_move(move)
    for wrong in (home.rollback_move, home.switch_move):
        with pytest.raises(Conflict, match="is finalised"):
            home.finish(wrong(move), timeout_s=DEADLINE_S)
    with pytest.raises(Conflict, match="is finalised already"):
        home.abort_move(move)


@pytest.mark.parametrize("at", ["copying", "paused", "catching_up", "verifying", "failed", "ready", "rolled_back"])
def test_an_abort_drops_what_the_move_made_and_nothing_else(
    home: Whimbrel, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, go_on = live(home)["id"], threading.Event()
    if at in ("catching_up", "verifying", "failed"):
        held = (Follower, "_end_building") if at == "catching_up" else (Checker, "check")
        plain = getattr(*held)

        async def holding(self: Any, *args: Any, **more: Any) -> Any:
            if at == "failed":
                raise ViewDamaged("It cannot be read.", "")
            await asyncio.to_thread(go_on.wait, DEADLINE_S)
            return await plain(self, *args, **more)

        monkeypatch.setattr(*held, holding)
        home.start_move("default", to="lancedb:elsewhere")
        until(lambda: home.move("default").state.value == at, f"it is {at}")
    elif at in ("copying", "paused"):
        home.start_move("default", to="lancedb:elsewhere", rate=8)
        until(lambda: home.move("default").samples, "the copy has begun")
        if at == "paused":
            home.pause_move(home.move("default"))
    else:
        move = moved(home)
        if at == "rolled_back":
            home.finish(home.rollback_move(switched(home, move)), timeout_s=DEADLINE_S)
    move = home.abort_move(home.move("default"))
    go_on.set()
    assert move.state is MoveState.ABORTED
    (job,) = [job for job in home.jobs(active=True) if job.kind == "drop_view"]
    home.finish(home.start_view_job("drop_view", move.target_store, now=True), wait="end", timeout_s=DEADLINE_S)  # type: ignore[arg-type]
    assert not list((home.home.path / "elsewhere").glob("*.lance"))
    assert states(home) == {source: ViewState.LIVE}
    assert job.args["view"] == move.target_store
    assert finds(home, "birds", 7, mode="dense")


@pytest.mark.usefixtures("memory")
class TestATargetThatFails:
    def test_it_loses_a_row_behind_our_back(self, home: Whimbrel) -> None:
        move = moved(home, "other://here/db")
        table = rows_of(move)
        lost = next(iter(table))
        table.pop(lost)
        with pytest.raises(Conflict, match=r"holds 39 rows where the catalog has 40 .* Nothing was switched"):
            switched(home, move)
        assert home.move("default").state is MoveState.FAILED
        home.finish(home.verify_move(move), timeout_s=DEADLINE_S)
        move = home.move("default")
        assert move.state is MoveState.FAILED
        assert move.checks["views"][0]["missing"] == 1
        assert move.checks["views"][0]["examples"]["missing"] == [lost]
        assert "1 missing" in move.error
        with pytest.raises(Conflict, match="only one that is ready"):
            switched(home, move)
        _, job = home.resume_move(move)
        home.finish(job, timeout_s=DEADLINE_S)
        move = home.move("default")
        assert move.state is MoveState.READY
        assert move.checks["mended"] == 1
        assert lost in rows_of(move)

    def test_someone_else_writes_to_it(self, home: Whimbrel) -> None:
        move = moved(home, "other://here/db")
        table = rows_of(move)
        first, second = list(table)[:2]
        table["theirs"] = table[first]
        table[second] = replace(table[second], text="Something else.")
        home.finish(home.verify_move(move), timeout_s=DEADLINE_S)
        move = home.move("default")
        (report,) = move.checks["views"]
        assert (report["extra"], report["different"], report["missing"]) == (1, 1, 0)
        with pytest.raises(Conflict, match="cannot be accepted: such a view is built anew"):
            home.accept_move(move)
        del table["theirs"]
        home.finish(home.verify_move(move), timeout_s=DEADLINE_S)
        accepted = home.accept_move(home.move("default"))
        assert accepted.state is MoveState.READY
        assert accepted.accepted
        assert switched(home, accepted).state is MoveState.SWITCHED

    def test_a_comparison_that_breaks_off_leaves_nothing_to_accept(
        self, home: Whimbrel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        move = moved(home, "other://here/db")

        async def broken(self: Checker, move: Move, *, mend: bool = False) -> dict[str, Any]:
            raise ViewDamaged("View 9 cannot be read.")

        monkeypatch.setattr(Checker, "check", broken)
        monkeypatch.setattr(runner, "LONGEST_PAUSE_S", 0.2)  # as often as ever, and half a minute sooner
        with pytest.raises(ViewDamaged):
            home.finish(home.verify_move(move), timeout_s=DEADLINE_S)
        assert home.move("default").state is MoveState.FAILED
        with pytest.raises(Conflict, match="nothing to accept"):
            home.accept_move(home.move("default"))

    def test_comparing_after_the_switch_ends_with_status_1_where_a_row_differs(
        self, home: Whimbrel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from whimbrel.cli import moving

        move = switched(home, moved(home, "other://here/db"))
        monkeypatch.setattr(moving, "opened", lambda: nullcontext(home))
        moving.verify("default")
        table = rows_of(move)
        changed = next(iter(table))
        table[changed] = replace(table[changed], text="Something else.")
        with pytest.raises(typer.Exit) as ended:
            moving.verify("default")
        assert ended.value.exit_code == 1
        said = capsys.readouterr().out
        assert "DIFFERENT" in said
        assert f"different: {changed}" in said
        assert "rows 1 different" in said
        assert home.move("default").state is MoveState.SWITCHED

    def test_a_row_that_it_refuses_is_named_and_does_not_stop_it(
        self, home: Whimbrel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upsert = MemoryStore.upsert

        async def fussy(self: MemoryStore, records: Records, *, new: bool = False) -> None:
            for id_, text in zip(records.ids, records.texts, strict=True):
                if "Note 7 " in text:
                    raise RowRefused.of(id_, f"The database refuses the row {id_!r}: too bad.", "Make it better.")
            await upsert(self, records, new=new)

        monkeypatch.setattr(MemoryStore, "upsert", fussy)
        move = moved(home, "other://here/db")
        assert move.state is MoveState.FAILED
        assert "1 rows cannot go" in move.error
        (reject,) = home.move_rejects(move)
        assert "too bad" in reject.reason
        assert reject.document
        (report,) = move.checks["views"]
        assert (report["rows"], report["missing"]) == (NOTES - 1, 0)
        move = switched(home, home.accept_move(move))
        assert move.state is MoveState.SWITCHED
        monkeypatch.setattr(MemoryStore, "upsert", upsert)
        home.add([{"id": "birds7", "text": "Note 7 is another one now."}])
        assert home.move_rejects(move) == [], "what has been replaced since is no reject"

    def test_it_starts_refusing_and_comes_back(self, home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
        upsert = MemoryStore.upsert
        out = True

        async def moody(self: MemoryStore, records: Records, *, new: bool = False) -> None:
            if out:
                raise StoreUnavailable("The database does not answer.", "Wait.")
            await upsert(self, records, new=new)

        monkeypatch.setattr(MemoryStore, "upsert", moody)
        _, job = home.start_move("default", to="other://here/db")
        until(lambda: "does not answer" in home.move("default").error, "the move says why it stands still")
        assert home.search("note 7 of the birds").degraded == [], "searches go on with the old view"
        out = False
        home.finish(job, timeout_s=DEADLINE_S)
        assert home.move("default").state is MoveState.READY

    def test_it_is_away_while_it_is_verified(self, home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
        """An outage says nothing of the rows: the move waits for its end, and does not fail."""
        scan = MemoryStore.scan
        said = "The database does not answer."

        def moody(self: MemoryStore, *args: Any, **options: Any) -> AsyncIterator[Any]:
            if said:
                raise StoreUnavailable(said, "Wait.")
            return scan(self, *args, **options)

        monkeypatch.setattr(MemoryStore, "scan", moody)
        _, job = home.start_move("default", to="other://here/db")
        until(lambda: said in home.move("default").error, "the move says why it stands still")
        assert home.move("default").state is MoveState.VERIFYING
        said = ""
        home.finish(job, timeout_s=DEADLINE_S)
        move = home.move("default")
        assert (move.state, move.error) == (MoveState.READY, "")

    def test_it_is_away_after_the_move(self, home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is not the store that the settings name; it is not built anew there, or anywhere, for that."""
        move = home.finalise_move(switched(home, moved(home, "other://here/db")))
        until(lambda: not home.owner.views.held and not home.moves(under_way=True), "the move has ended")  # type: ignore[union-attr]
        time.sleep(2 * home.settings.owner.poll_s)  # the owner has looked since
        position = MemoryStore.position

        async def away(self: MemoryStore) -> Any:
            raise StoreUnavailable("The database does not answer.", "Wait.")

        monkeypatch.setattr(MemoryStore, "position", away)
        home.start_add([{"id": "late", "text": note("late", 1)}])
        until(lambda: "does not answer" in live(home)["error"], "the view says why it stands still")
        monkeypatch.setattr(MemoryStore, "position", position)
        until(lambda: not live(home)["lag"] and not live(home)["error"], "it catches up")
        assert live(home)["id"] == move.target_store
        assert set(states(home)) == {move.source_store, move.target_store}

    def test_it_cannot_hold_so_many_dimensions(self, home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
        describe = MemoryStore.describe

        def small(self: MemoryStore) -> StoreInfo:
            info = describe(self)
            return StoreInfo(info.name, info.metric, info.dimensions, max_dimensions=16)

        monkeypatch.setattr(MemoryStore, "describe", small)
        with pytest.raises(SpaceMismatch, match="up to 16 dimensions"):
            home.start_move("default", to="other://here/db")


def rows_of(move: Move) -> dict[str, Any]:
    """The target's rows in memory."""
    (table,) = [table for (_, name), table in TABLES.items() if f"-v{move.target_store}-" in name]
    return table.rows  # type: ignore[no-any-return]


def test_a_target_whose_data_is_gone_is_built_again(home: Whimbrel) -> None:
    move = moved(home)
    (folder,) = (home.home.path / "elsewhere").glob("*.lance")
    path = home.home.path
    home.close()
    shutil.rmtree(folder)
    with opened(path) as again:
        again.own()
        replaced = until(
            lambda: (now := again.move("default")).target_store != move.target_store and now, "another target is built"
        )
        until(
            lambda: states(again)[replaced.target_store] is ViewState.STANDBY,
            "it stands by",
        )
        move = switched(again, replaced)
        assert move.state is MoveState.SWITCHED
        assert [one["view"] for one in move.checks["views"]] == [replaced.target_store], "it was compared before"


def test_a_target_that_was_built_anew_and_differs_is_not_switched_to(
    home: Whimbrel, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = moved(home)
    with home.catalog.write() as connection:  # as after a rebuild
        compared = {**move.checks, "views": [{**move.checks["views"][0], "view": 999}]}
        moves.change(connection, move.id, checks=compared)

    async def worse(self: Checker, move: Move, *, mend: bool = False) -> dict[str, Any]:
        return {**move.checks, "holds": False, "said": "Rows differ."}

    check = Checker.check
    monkeypatch.setattr(Checker, "check", worse)
    with pytest.raises(Conflict, match=r"Rows differ. Nothing was switched"):
        switched(home, move)
    assert home.move("default").state is MoveState.FAILED
    monkeypatch.setattr(Checker, "check", check)
    _, job = home.resume_move(move)
    home.finish(job, timeout_s=DEADLINE_S)
    assert switched(home, home.move("default")).state is MoveState.SWITCHED


def test_the_last_look_waits_for_a_moment_without_writes(home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
    move = moved(home)
    looks = 0

    async def busy(self: Follower) -> bool:
        nonlocal looks
        looks += 1
        if looks < 3:
            return False
        raise ViewDamaged("View 9 holds 39 rows where the catalog has 40.")

    monkeypatch.setattr(Follower, "check_count", busy)
    with pytest.raises(Conflict, match=r"holds 39 rows .* Nothing was switched"):
        switched(home, move)
    assert looks == 3


def test_a_move_that_was_ended_while_it_copied_has_not_moved_all(home: Whimbrel) -> None:
    home.start_move("default", to="lancedb:elsewhere", rate=8)
    until(lambda: home.move("default").samples, "the copy has begun")
    home.abort_move(home.move("default"))
    assert home.move_dict(home.move("default"))["rows"]["done"] < NOTES


def test_an_owner_that_is_killed_and_another_goes_on(home: Whimbrel, toy: Toy) -> None:
    _, job = home.start_move("default", to="lancedb:elsewhere", rate=10)
    until(lambda: home.move("default").samples, "the copy has begun")
    path = home.home.path
    home.close()
    with opened(path) as again:
        again.resume_move(again.move("default"), rate=0)
        again.finish(again.job(job.id), timeout_s=DEADLINE_S)
        move = again.move("default")
        assert move.state is MoveState.READY
        assert move.checks["views"][0]["equal"]


def test_a_process_that_has_not_the_target_open_holds_the_switch(
    home: Whimbrel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switching, "PREPARE_S", 1.0)
    move = moved(home)
    info = {"host": "far", "pid": 7}
    with home.catalog.write() as connection:
        processes.seen(connection, "far:7", info, [], "no route to the store")
    with pytest.raises(Conflict, match=r"process 7 on far \(no route to the store\) could not open view"):
        switched(home, move)
    assert home.move("default").state is MoveState.READY
    assert live(home)["uri"] == "lancedb:"
    with home.catalog.write() as connection:
        processes.seen(connection, "far:7", info, [move.target_store or 0], "")
    assert switched(home, move).state is MoveState.SWITCHED


def test_a_process_that_searches_opens_the_target_before_the_switch(home: Whimbrel) -> None:
    home.search("note 7 of the birds")
    move = moved(home)

    def prepared() -> bool:
        with home.catalog.read() as connection:
            return any(move.target_store in one.prepared for one in processes.present(connection))

    until(prepared, "this process says that it has the target open")
    switched(home, move)
    home.finalise_move(home.move("default"))

    def left() -> bool:
        with home.catalog.read() as connection:
            return not processes.present(connection)

    until(left, "it says nothing any more when the move has ended")


def test_a_purge_reaches_the_view_that_stands_by(home: Whimbrel) -> None:
    move = switched(home, moved(home))
    job = home.purge(["birds7"])
    assert home.finish(job, wait="end", timeout_s=DEADLINE_S)["documents"] == 1
    for view in (move.source_store, move.target_store):
        follower = home.owner.views.followers[view]  # type: ignore[union-attr,index]
        future = asyncio.run_coroutine_threadsafe(follower.target.count(), home.owner._loop)  # type: ignore[union-attr,arg-type]
        assert future.result(30) == NOTES - 1


@pytest.mark.usefixtures("memory")
def test_a_source_that_does_not_answer_can_be_left(home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
    move = home.finalise_move(switched(home, moved(home, "other://here/db")))
    assert live(home)["uri"] == "other://here/db"

    async def out(self: MemoryStore, *_: Any, **__: Any) -> Any:
        raise StoreUnavailable("The database does not answer.", "Wait.")

    for name in ("search", "upsert", "count", "exists", "position"):
        monkeypatch.setattr(MemoryStore, name, out)
    monkeypatch.setattr(tasks, "OPENING_LOOKS", 20)  # it is given up sooner
    add_without_waiting(home)
    move = moved(home, "lancedb:back")
    assert move.state is MoveState.READY
    assert "does not answer" in move.checks["search"]["source"]["error"]
    assert switched(home, move).state is MoveState.SWITCHED
    assert finds(home, "fish", 0, mode="dense")


def add_without_waiting(home: Whimbrel) -> None:
    home.add([{"id": "fish0", "text": note("fish", 0)}], wait="job")


# --- without documents -----------------------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Whimbrel]:
    """A collection that nothing was ever written to: it has a store view, and no lexicon."""
    monkeypatch.setattr(switching, "NOTICE_S", 0.3)
    with opened(tmp_path / "empty") as whimbrel:
        whimbrel.create_collection("default")
        assert whimbrel.own()
        until(lambda: any(row.view.state is ViewState.LIVE for row in whimbrel.views("default")), "its view is live")
        assert [row.view.kind for row in whimbrel.views("default")] == ["store"]
        yield whimbrel


@pytest.mark.parametrize("to", ["lancedb:elsewhere", "chroma:elsewhere"])
def test_a_collection_without_documents_moves(empty: Whimbrel, to: str) -> None:
    plan = empty.plan_move("default", to=to)
    assert (plan.rows, plan.stopped) == (0, False)
    move = moved(empty, to)
    assert (move.state, move.error) == (MoveState.READY, "")
    assert switched(empty, move).state is MoveState.SWITCHED
    assert live(empty)["uri"] == to
    empty.finalise_move(move)
    add(empty, "birds", 3)
    assert finds(empty, "birds", 1, mode="dense")
    assert finds(empty, "birds", 1, mode="lexical")


def test_what_comes_into_an_empty_collection_on_its_way_is_followed(empty: Whimbrel, other: Toy) -> None:
    move = moved(empty, "lancedb:elsewhere", embedder="other")
    add(empty, "birds", 3)
    empty.finish(empty.verify_move(move), timeout_s=DEADLINE_S)
    assert [view["rows"] for view in empty.move("default").checks["views"]] == [3]
    move = switched(empty, empty.move("default"))
    assert finds(empty, "birds", 1)
    empty.finish(empty.rollback_move(move), timeout_s=DEADLINE_S)
    assert finds(empty, "birds", 1)


def test_the_chunking_of_an_empty_collection_is_not_changed_by_a_move(empty: Whimbrel) -> None:
    for ask in (empty.plan_move, empty.start_move):
        with pytest.raises(Conflict, match="has no documents yet") as refusal:
            ask("default", chunking="tokens=50,overlap=0")
        assert "whimbrel ingest PATH -c default --chunking tokens=50,overlap=0" in refusal.value.hint
    add(empty, "birds", 3)
    assert moved(empty, None, chunking="tokens=50,overlap=0").state is MoveState.READY


# --- several things at once ------------------------------------------------------------------------------------------


@contextmanager
def switching_waits(home: Whimbrel, move: Move) -> Iterator[Job]:
    """A switch that has been asked for, and waits for a process until the block ends."""
    far = {"host": "far", "pid": 7}
    with home.catalog.write() as connection:
        processes.seen(connection, "far:7", far, [], "")
    job = home.switch_move(move)
    until(lambda: home.job(job.id).progress.get("waiting_for"), "the switch waits for the process")
    yield job
    with home.catalog.write() as connection:
        processes.seen(connection, "far:7", far, [move.target_store or 0], "")


def test_an_abort_while_the_switch_waits_stands(home: Whimbrel) -> None:
    move = moved(home)
    with switching_waits(home, move) as job:
        home.abort_move(move)
    with pytest.raises(Conflict, match="is aborted: only one that is ready can be switched"):
        home.finish(job, timeout_s=DEADLINE_S)
    assert home.move("default").state is MoveState.ABORTED
    assert live(home)["uri"] == "lancedb:"


def test_what_is_being_compared_again_is_not_switched(home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the comparison, when it ends, would call a move ready whose target is live: an abort would drop that."""
    move = moved(home)
    check, go_on = Checker.check, threading.Event()

    async def slow(self: Checker, move: Move, *, mend: bool = False) -> dict[str, Any]:
        await asyncio.to_thread(go_on.wait)
        return await check(self, move, mend=mend)

    monkeypatch.setattr(Checker, "check", slow)
    try:
        with switching_waits(home, move) as switch:
            verify = home.verify_move(move)
            until(lambda: home.move("default").state is MoveState.VERIFYING, "it is being compared")
        with pytest.raises(Conflict, match="is verifying: only one that is ready can be switched"):
            home.finish(switch, timeout_s=DEADLINE_S)
    finally:
        go_on.set()
    home.finish(verify, timeout_s=DEADLINE_S)
    assert home.move("default").state is MoveState.READY
    assert live(home)["uri"] == "lancedb:"
    assert switched(home, move).state is MoveState.SWITCHED


def test_a_switch_whose_end_was_not_noted_is_not_refused_when_it_is_done_again(
    home: Whimbrel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the owner is killed just after it."""
    switch, cut_off = Switcher.switch, [False, True]

    async def interrupted(self: Switcher, move: Move, *, back: bool = False) -> Move:
        done = await switch(self, move, back=back)
        if back in cut_off:
            cut_off.remove(back)
            raise StoreUnavailable("Killed.", "")
        return done

    monkeypatch.setattr(Switcher, "switch", interrupted)
    move = switched(home, moved(home))
    assert move.state is MoveState.SWITCHED
    home.finish(home.rollback_move(move), timeout_s=DEADLINE_S)
    assert home.move("default").state is MoveState.ROLLED_BACK
    assert not cut_off


def test_what_is_asked_of_a_move_as_it_was_before_is_refused(home: Whimbrel) -> None:
    _, job = home.start_move("default", to="lancedb:elsewhere", rate=8)
    copying = until(lambda: home.move("default"), "a move")
    home.abort_move(copying)
    failed = replace(copying, state=MoveState.FAILED, checks={"views": [{}]})
    for ask, as_it_was in ((home.pause_move, copying), (home.resume_move, failed), (home.accept_move, failed)):
        with pytest.raises(Conflict, match="is aborted"):
            ask(as_it_was)  # type: ignore[operator]
    home.finish(job, timeout_s=DEADLINE_S)
    assert home.move("default").state is MoveState.ABORTED


def test_rows_that_come_while_both_sides_are_searched_disturb_nothing(
    home: Whimbrel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides are asked the same, and judged by what was right for that."""
    compared = Checker._rows

    async def disturbed(self: Checker, *args: Any) -> Any:
        found = await compared(self, *args)
        await asyncio.to_thread(add, home, "fish", NOTES)
        return found

    monkeypatch.setattr(Checker, "_rows", disturbed)
    move = moved(home)
    assert (move.state, move.error) == (MoveState.READY, "")
    searched = move.checks["search"]
    assert searched["source"]["queries"] == searched["target"]["queries"]
    assert searched["source"]["recall@10"] == searched["target"]["recall@10"]


def test_a_defect_in_a_comparison_ends_it_visibly(home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Checker.check

    async def broken(self: Checker, move: Move, *, mend: bool = False) -> dict[str, Any]:
        raise ZeroDivisionError("a text that must not be told")

    monkeypatch.setattr(Checker, "check", broken)
    with pytest.raises(WhimbrelError, match="ZeroDivisionError inside job move"):
        moved(home)
    move = home.move("default")
    assert move.state is MoveState.FAILED
    assert "ZeroDivisionError inside the comparison" in move.error
    assert "must not be told" not in move.error
    monkeypatch.setattr(Checker, "check", check)
    _, job = home.resume_move(move)
    home.finish(job, timeout_s=DEADLINE_S)
    assert home.move("default").state is MoveState.READY


def test_a_program_that_searches_on_its_own_loop_may_close_there(tmp_path: Path, toy: Toy) -> None:
    async def work() -> None:
        with opened(tmp_path / "mine") as whimbrel:
            whimbrel.start_add([{"id": "a", "text": note("birds", 1)}])
            whimbrel.wait_for_head("default", wait="job")
            await whimbrel.asearch("birds", mode="lexical")
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert {task.get_name() for task in left} == {"presence"}
        _, going_on = await asyncio.wait(left, timeout=DEADLINE_S)
        assert not going_on

    asyncio.run(work())


def test_a_process_that_breaks_on_the_target_holds_the_switch(home: Whimbrel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switching, "PREPARE_S", 1.0)

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError

    home.search("note 7 of the birds")
    monkeypatch.setattr(home.engine._presence, "_warm", broken)
    move = moved(home)

    def says_why() -> bool:
        with home.catalog.read() as connection:
            return any("ZeroDivisionError" in one.error for one in processes.present(connection))

    until(says_why, "this process says why it cannot open the target")
    with pytest.raises(Conflict, match=r"ZeroDivisionError.* could not open view"):
        switched(home, move)
