"""A process killed at a named place: just before, or just after, something became durable."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from crash.harness import SETTINGS, check_whole, done, opened, processes, settle, verified
from crash.model import Model, contents, strays
from crash.points import PLACES

Tasks = list[dict[str, Any]]


def change(model: Model) -> Tasks:
    """Some files added, some changed, one gone."""
    model.grow(3)
    for path in model.files()[:3]:
        path.write_text(model.page())
    model.files()[3].unlink()
    return [{"task": "ingest", "paths": [str(model.root)], "key": "second"}]


def purge(model: Model) -> Tasks:
    chosen = sorted(model.documents)[:2]
    for path in model.files():
        if path.as_uri() in chosen:
            path.unlink()
    return [{"task": "purge", "documents": chosen}]


def rebuild_store(_model: Model) -> Tasks:
    return [{"task": "rebuild", "kind": "store"}, {"task": "rest"}]


def rebuild_lexicon(_model: Model) -> Tasks:
    return [{"task": "rebuild", "kind": "lexicon"}, {"task": "rest"}]


def maintain(model: Model) -> Tasks:
    return [*change(model), {"task": "maintain"}]


def backup(model: Model) -> Tasks:
    return [{"task": "backup", "to": str(model.root.parent / "saved.whimbrel")}]


def add(model: Model) -> Tasks:
    texts = [{"id": f"note-{number}", "text": model.page(), "metadata": {"n": number}} for number in range(5)]
    return [{"task": "add", "texts": texts, "key": "added"}]


def work_that_comes_to(place: str) -> Callable[[Model], Tasks]:
    name = place.partition(":")[0]
    if name in ("store.erase", "lexicon.erase", "lexicon.rewrite", "scrub", "sweep"):
        return purge
    if name in ("store.create", "store.drop"):
        return rebuild_store
    if name in ("lexicon.create", "lexicon.drop", "view.built", "view.promote", "view.rebuild"):
        return rebuild_lexicon
    if name.endswith(".maintain"):
        return maintain
    return backup if name == "backup.write" else change


def killed_at(place: str, nth: int, folder: Path, work: Callable[[Model], Tasks]) -> bool:
    """Begin, be killed at `place`, begin again. Returns whether it was killed at all."""
    root = folder / "documents"
    root.mkdir()
    model = Model(root.resolve(), random.Random(place))
    model.grow(8)
    first = {"task": "ingest", "paths": [str(model.root)], "key": "first"}
    home = folder / "home"
    with opened(home) as whimbrel:
        done(whimbrel, first)
        settle(whimbrel)
    model.apply(first)
    tasks = work(model)
    with processes() as pool:
        client = pool.take(ahead=False)
        client.tell(do="work", home=str(home), settings=SETTINGS, crash=(place, nth), tasks=tasks)
        client.wait_for("go")
        with suppress(EOFError):
            client.wait_for("", timeout_s=120)
        killed = not client.alive and client.process.wait() < 0
    with opened(home) as whimbrel:
        settle(whimbrel)  # by itself: whatever was committed reaches the views without another word
        verified(whimbrel)
        for task in tasks:
            done(whimbrel, task)
            model.apply(task)
        check_whole(whimbrel, model)
    return killed


@pytest.mark.parametrize(
    "place",
    [
        "view.save:before",  # the data stood at the head of the log, and the catalog said for ever that it did not
        "lexicon.rewrite:after",
    ],
)
def test_killed_at_a_place_that_has_done_harm(place: str, tmp_path: Path) -> None:
    assert killed_at(place, 1, tmp_path, work_that_comes_to(place))


@pytest.mark.soak
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("place", [place for place in PLACES if not place.startswith("restore")])
def test_killed_at_every_place(place: str, nth: int, tmp_path: Path) -> None:
    if not killed_at(place, nth, tmp_path, work_that_comes_to(place)) and nth == 1:
        pytest.fail(f"{place} was never reached")


@pytest.mark.soak
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("work", [change, purge, rebuild_store, rebuild_lexicon, add], ids=lambda work: work.__name__)
def test_killed_at_every_commit(work: Callable[[Model], Tasks], when: str, tmp_path: Path) -> None:
    """Each of the transactions that a task makes, in turn, until it makes no more."""
    reached = 0
    for nth in range(1, 60):
        folder = tmp_path / str(nth)
        folder.mkdir()
        if not killed_at(f"write:{when}", nth, folder, work):
            break
        reached = nth
        shutil.rmtree(folder)
    assert reached > 5


RESTORING = ["restore.fill:before", "restore.fill:after", "write:before", "write:after"]


@pytest.mark.parametrize(
    "place",
    [place if place == "restore.fill:after" else pytest.param(place, marks=pytest.mark.soak) for place in RESTORING],
)
def test_a_killed_restore_is_as_if_it_had_not_been_or_whole(place: str, tmp_path: Path) -> None:
    archive = tmp_path / "saved.whimbrel"
    with opened(tmp_path / "home") as whimbrel:
        whimbrel.add([{"id": str(number), "text": f"A curlew, number {number}."} for number in range(20)])
        whimbrel.backup(archive)
        before = contents(whimbrel)
    for nth in range(1, 6):
        home = tmp_path / f"restored-{nth}"
        with processes() as pool:
            process = pool.take(ahead=False)
            process.tell(do="restore", home=str(home), settings=SETTINGS, crash=(place, nth), archive=str(archive))
            with suppress(EOFError):
                process.wait_for("[", 60)
            killed = not process.alive and process.process.wait() < 0
        with opened(home) as whimbrel:
            if not whimbrel.collections():
                whimbrel.restore(archive)
            whimbrel.own()
            settle(whimbrel)
            verified(whimbrel)
            assert contents(whimbrel) == before
            assert not strays(whimbrel)
        if not killed:
            assert nth > 1
            return
