"""Searches go on whatever happens to the views, return nothing that was deleted, and say when a half is out."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crash import driver
from crash.harness import opened, settle, verified
from crash.model import WORDS, Model
from whimbrel.app import Whimbrel
from whimbrel.domain import SearchResult
from whimbrel.errors import CollectionNotFound, ViewError


@dataclass(slots=True)
class Searches:
    """What searchers in threads have seen."""

    found: list[tuple[float, float, SearchResult]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    gone: dict[str, float] = field(default_factory=dict)
    """URIs, and since when they are not in the collection."""

    @property
    def degraded(self) -> set[str]:
        return {reason for _, _, result in self.found for reason in result.degraded}

    def check(self) -> None:
        assert not self.errors, self.errors[:3]
        for began, _, result in self.found:
            for hit in result.hits:
                assert began < self.gone.get(hit.uri, began + 1), f"{hit.uri} was found after it had gone"


@contextmanager
def searching(whimbrel: Whimbrel, threads: int = 2) -> Iterator[Searches]:
    seen = Searches()
    stop = threading.Event()

    def search(seed: int) -> None:
        dice = random.Random(seed)
        while not stop.wait(0.03):
            began = time.time()
            try:
                mode = dice.choice(["hybrid", "dense", "lexical"])
                result = whimbrel.search(" ".join(dice.sample(WORDS, 2)), mode=mode, top_k=20)
                seen.found.append((began, time.time(), result))
            except Exception as error:
                seen.errors.append(f"{mode}: {type(error).__name__}: {error}")

    running = [threading.Thread(target=search, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in running:
            thread.join()


@pytest.mark.parametrize("soaking", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_searches_go_on_through_ingest_rebuild_compaction_and_erasure(soaking: bool, tmp_path: Path) -> None:
    model = Model(tmp_path / "documents", random.Random(5))
    model.root.mkdir()
    model.grow(15)
    with opened(tmp_path / "home") as whimbrel:
        whimbrel.ingest([model.root])
        with searching(whimbrel) as seen:
            for number in range(1 + 2 * soaking):
                model.grow(5)
                for path in model.files()[:8]:
                    path.write_text(model.page())
                whimbrel.ingest([model.root])
                for kind in ("store", "lexicon"):
                    driver.perform(whimbrel, {"task": "rebuild", "kind": kind})
                driver.maintain(whimbrel)
                for task, path in zip(("delete", "purge"), model.files()[:2], strict=True):
                    uri = path.as_uri()
                    path.unlink()
                    if task == "delete":
                        whimbrel.delete([uri])
                        seen.gone[uri] = time.time()
                    else:
                        job = whimbrel.purge([uri])
                        seen.gone[uri] = time.time()
                        whimbrel.finish(job, wait="end")
                assert len(seen.found) > 10 * (number + 1)
        seen.check()
        assert all("changes behind" in reason for reason in seen.degraded), seen.degraded
        settle(whimbrel)
        verified(whimbrel)


def test_what_is_deleted_is_not_found_although_no_view_has_heard_of_it(tmp_path: Path) -> None:
    with opened(tmp_path / "home") as whimbrel:
        whimbrel.add([{"id": name, "text": f"A curlew in the {name}."} for name in ("harbour", "estuary", "marsh")])
        settle(whimbrel)
        assert whimbrel.owner is not None
        whimbrel.owner.stop()  # nobody feeds the views now
        whimbrel.delete(["harbour"])
        whimbrel.purge(["marsh"])
        for mode in ("hybrid", "dense", "lexical"):
            found = whimbrel.search("curlew", mode=mode)
            assert [hit.uri for hit in found.hits] == ["text:estuary"]
            assert found.degraded, mode
            assert all("2 changes behind" in reason for reason in found.degraded)


@pytest.mark.parametrize(("half", "other"), [("store", "lexical"), ("lexicon", "dense")])
def test_a_half_that_is_out_is_said_in_every_answer(half: str, other: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with opened(home) as whimbrel:
        whimbrel.add([{"id": "one", "text": "A curlew in the harbour."}])
        settle(whimbrel)
    shutil.rmtree(home / ("views" if half == "store" else "lexicons"))
    with opened(home) as whimbrel:  # without an owner that would mend it
        for _ in range(3):
            found = whimbrel.search("curlew")
            assert [hit.uri for hit in found.hits] == ["text:one"]
            assert [reason.split(":")[0] for reason in found.degraded] == [half]
        assert not whimbrel.search("curlew", mode=other).degraded
        with pytest.raises(ViewError):
            whimbrel.search("curlew", mode="dense" if half == "store" else "lexical")
        whimbrel.own()
        settle(whimbrel)
        assert not whimbrel.search("curlew").degraded


def test_the_only_searches_that_fail_are_those_before_the_first_view(tmp_path: Path) -> None:
    with opened(tmp_path / "home") as whimbrel:
        with pytest.raises(CollectionNotFound):
            whimbrel.search("curlew")
        whimbrel.create_collection("default")
        assert whimbrel.search("curlew").hits == []
        with searching(whimbrel) as seen:
            whimbrel.add([{"id": str(number), "text": f"A curlew, number {number}."} for number in range(200)])
        assert all("being built" in error for error in seen.errors), seen.errors[:3]
        assert seen.found


def test_a_search_does_not_wait_for_a_writer_to_note_damage(tmp_path: Path) -> None:
    """While the catalog's files are written anew, for an erasure, nobody can write; searches go on."""
    home = tmp_path / "home"
    with opened(home) as whimbrel:
        whimbrel.add([{"id": "one", "text": "A curlew in the harbour."}])
        settle(whimbrel)
    shutil.rmtree(home / "views")
    with opened(home) as whimbrel:
        whimbrel.search("curlew", mode="lexical")
        with whimbrel.catalog.write():
            assert whimbrel.search("curlew").degraded  # while the lock is held: it would wait for a minute
        assert within(30.0, lambda: any(row.suspect for row in whimbrel.views()))


def within(seconds: float, true: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False
