"""What an owner does while the disk of a view is full: it tries again when it is due, and drops what is to go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from running import DEADLINE_S, Toy, until, verified
from small_disk import BALLAST, fill, small_disk
from whimbrel.app import Whimbrel
from whimbrel.domain import Job, JobState, MoveState
from whimbrel.errors import DiskFull, StoreUnavailable
from whimbrel.models.embedders import resolve
from whimbrel.owner import runner, standing, tasks
from whimbrel.owner.standing import Patience
from whimbrel.stores.chroma import folder

pytest.importorskip("chromadb")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setitem(resolve._PROVIDERS, "toy", lambda _model, _threads: made)
    return made


def opened(home: Path, store: str = "chroma:") -> Whimbrel:
    return Whimbrel(home=home, embedder="toy", store=store)


class Pauses:
    """In place of `asyncio`: a pause ends when the test says so."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self._ended = threading.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        self.begun.append(seconds)
        while not self._ended.acquire(blocking=False):
            await asyncio.sleep(0.01)

    def end(self) -> None:
        self._ended.release()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """Of views that stand still."""
    made = Pauses()
    monkeypatch.setattr(standing, "asyncio", made)
    return made


class Disk:
    """Of a Chroma folder."""

    def __init__(self) -> None:
        self.full = False
        self.tries = 0
        """To write to it while it was full."""

    def no_room(self, _path: Path) -> bool:
        self.tries += self.full
        return self.full


# --- trying again ----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_tried_when_it_is_due_and_searched_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: Pauses
) -> None:
    disk = Disk()
    monkeypatch.setattr(folder, "_no_room", disk.no_room)
    with opened(tmp_path / "home") as owner, opened(tmp_path / "home") as other:
        owner.add([{"id": str(number), "text": f"Notes on birds, number {number}."} for number in range(10)])
        assert owner.own()
        disk.full = True
        for tried, pause in enumerate([0.5, 1.0], 1):  # what comes meanwhile is no reason to try
            text = {"id": f"late {tried}", "text": f"A late note, number {tried}."}
            owner.finish(owner.start_add([text]), wait="lexical")
            until(has_begun(pauses, tried), "it has been tried")
            for whimbrel in (owner, other):
                found = whimbrel.search("notes on birds", mode="dense", top_k=20)
                assert len(found.hits) == 10
                assert any(f"{tried} changes behind" in said for said in found.degraded)
            assert (disk.tries, pauses.begun[-1]) == (tried, pause)
            pauses.end()
        until(has_begun(pauses, 3), "it has been tried")
        disk.full = False
        assert len(other.search("notes on birds", mode="dense", top_k=20).hits) == 10
        pauses.end()
        until(lambda: len(other.search("notes on birds", mode="dense", top_k=20).hits) == 12, "it goes on")
        assert (disk.tries, len(pauses.begun)) == (3, 3)
        verified(owner, "default")


def has_begun(pauses: Pauses, number: int) -> Callable[[], bool]:
    return lambda: len(pauses.begun) == number


async def test_what_is_opened_in_vain_is_tried_more_seldom(pauses: Pauses) -> None:
    """A full disk shows when it is written to; anything else is over when the view has been opened."""
    for error, before, after in (
        (DiskFull("No space left.", ""), [0.5, 1.0, 2.0, 4.0, 5.0, 5.0], 5.0),
        (StoreUnavailable("It does not answer.", ""), [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0], 0.5),
    ):
        patience = Patience()
        pauses.begun.clear()
        for _ in before:
            pauses.end()
            await patience.wait(error)
        patience.opened()
        pauses.end()
        await patience.wait(error)
        assert pauses.begun == [*before, after]


# --- dropping --------------------------------------------------------------------------------------------------------


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that failed are tried again at once, and views dropped without a grace."""
    monkeypatch.setattr(tasks, "DROP_GRACE_S", 0.0)
    monkeypatch.setattr(runner, "LONGEST_PAUSE_S", 0.2)


def dropped(whimbrel: Whimbrel) -> Job:
    """The job that drops a view."""
    return next(job for job in whimbrel.jobs() if job.kind == "drop_view")


NOTES = range(30)
SCHEMES = ["chroma", "lancedb", "qdrant"]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("at", [MoveState.COPYING, MoveState.READY])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_move_to_a_full_disk_is_aborted(scheme: str, at: MoveState, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8) as disk, opened(tmp_path / "home", "lancedb:") as whimbrel:
        whimbrel.add([{"id": str(number), "text": f"Note {number} on curlews."} for number in NOTES])
        full = disk / BALLAST
        if at is MoveState.COPYING:
            full.write_bytes(bytes(8 * 2**20 - 40_000))
        _, job = whimbrel.start_move("default", to=f"{scheme}:{disk}/target")
        if at is MoveState.COPYING:
            until(lambda: "pace" in whimbrel.move("default").error, "the move says that no space is left")
        else:
            whimbrel.finish(job, timeout_s=DEADLINE_S)
        assert whimbrel.move("default").state is at
        fill(disk)
        aborted = whimbrel.abort_move(whimbrel.move("default"))
        until(lambda: ended(whimbrel) or "pace" in dropped(whimbrel).error, "it is dropped, or says why not")
        assert len(whimbrel.search("curlews", mode="dense", top_k=50).hits) == len(NOTES)
        whimbrel.add([{"id": "late", "text": "A late note on godwits."}])
        full.unlink()
        until(lambda: ended(whimbrel), "it is dropped")
        assert aborted.target_store not in [row.id for row in whimbrel.views()]
        verified(whimbrel, "default")
        assert whimbrel.search("A late note on godwits.", mode="dense").hits[0].uri == "text:late"


def ended(whimbrel: Whimbrel) -> bool:
    return dropped(whimbrel).state is JobState.DONE


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_view_on_a_full_disk_is_dropped_and_no_other_is_lost(scheme: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8) as disk, opened(tmp_path / "home", f"{scheme}:{disk}/views") as whimbrel:
        for name in ("going", "kept"):
            whimbrel.add([{"id": str(number), "text": f"Note {number} on curlews."} for number in NOTES], name)
        _, job = whimbrel.start_move("going", to="lancedb:elsewhere")
        whimbrel.finish(job, timeout_s=DEADLINE_S)
        whimbrel.finish(whimbrel.switch_move(whimbrel.move("going")), timeout_s=DEADLINE_S)
        old = whimbrel.finalise_move(whimbrel.move("going")).source_store
        assert old is not None
        full = fill(disk)
        whimbrel.start_view_job("drop_view", old)
        until(lambda: ended(whimbrel) or "pace" in dropped(whimbrel).error, "it is dropped, or says why not")
        for name in ("going", "kept"):
            assert len(whimbrel.search("curlews", name, mode="dense", top_k=50).hits) == len(NOTES)
        full.unlink()
        until(lambda: ended(whimbrel), "it is dropped")
        assert old not in [row.id for row in whimbrel.views()]
        whimbrel.add([{"id": "late", "text": "A late note on godwits."}], "kept")
        assert whimbrel.search("A late note on godwits.", "kept", mode="dense").hits[0].uri == "text:late"
        verified(whimbrel, "kept")
