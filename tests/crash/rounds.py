"""Random rounds of work and kills on one home, replayable by their seed."""

from __future__ import annotations

import http.client
import json
import math
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from crash import points
from crash.driver import BY_COMMAND
from crash.harness import (
    BATCH,
    SETTINGS,
    Absences,
    Figures,
    Pool,
    Process,
    check_whole,
    done,
    notes,
    opened,
    paid_again,
    processes,
    undisturbed,
)
from crash.model import WORDS, Model, contents

RARE = {
    "purge": ("store.erase", "lexicon.erase", "lexicon.rewrite", "scrub", "sweep"),
    "rebuild": (
        *("store.create", "lexicon.create", "store.drop", "lexicon.drop"),
        *("view.built", "view.promote", "view.rebuild", "view.open"),
    ),
    "maintain": ("store.maintain", "lexicon.maintain", "lexicon.rewrite"),
    "backup": ("backup.write",),
}
COMMON = (
    *("store.upsert", "store.delete", "store.position", "lexicon.apply", "view.save", "view.open"),
    *("embed.put", "store.maintain", "lexicon.maintain"),
)


class Rounds:
    """A home, its model, and whoever works on it."""

    def __init__(self, folder: Path, seed: int, pool: Pool, pause_s: float, **settings: Any) -> None:
        self.dice = random.Random(seed)
        self.pool = pool
        self.pause_s = pause_s
        self.home = folder / "home"
        self.journal = folder / "journal"
        self.log = folder / "searches"
        self.settings = {**SETTINGS, **settings}
        root = folder / "documents"
        root.mkdir(parents=True)
        self.model = Model(root.resolve(), self.dice)
        self.absences = Absences()
        self.figures = Figures()
        self.owner: Process | None = None
        self.searcher: Process | None = None
        self.known: set[str] = set()

    def begin(self, files: int = 20) -> None:
        """Something to search, and a process that searches from here on."""
        self.model.grow(files)
        task = {"task": "ingest", "paths": [str(self.model.root)], "key": "first"}
        with opened(self.home, self.journal, **self.settings) as whimbrel:
            done(whimbrel, task)
        self._applied(task)
        self._start_searcher()

    def round(self) -> None:
        """One task, during which one process is killed; then the task again, until it is done."""
        self.figures.rounds += 1
        task = self.model.task()
        self.figures.tasks[task["task"]] += 1
        if task["task"] in ("ingest", "add"):
            self.absences.may_return()
        beside = self.dice.random() < 0.5
        place = self._place(task["task"])
        victim = self.dice.choice(["client", "owner"]) if beside else "client"
        if not beside:
            self._end_owner()
        elif self.owner is None or not self.owner.alive or (victim == "owner" and place):
            self._end_owner()
            self.owner = self._own(place if victim == "owner" else None)
        print(f"round {self.figures.rounds}: {task['task']}, {victim} of {'two' if beside else 'one'}, {place}")
        client = self.pool.take()
        deed = "command" if task["task"] in BY_COMMAND and self.dice.random() < 0.4 else "work"
        self._tell(client, deed, place if victim == "client" else None, tasks=[task])
        self._watch(client, victim, place)
        if self.searcher is not None and self.dice.random() < 0.1:
            self.figures.kills += self.searcher.kill()  # an API worker that only reads
            self._start_searcher()
        with opened(self.home, self.journal, **self.settings) as whimbrel:
            done(whimbrel, task)
        self._applied(task)

    def check(self) -> None:
        """Everything that must be true, whatever was killed."""
        self.figures.checks += 1
        with opened(self.home, self.journal, **self.settings) as whimbrel:
            check_whole(whimbrel, self.model)
        assert self._searched() == []
        again = paid_again(self.journal)
        self.figures.paid_again = again
        assert again <= 2 * BATCH * self.figures.kills, f"{again} texts were embedded again"

    def end(self) -> None:
        """The content equals that of a home where nothing was killed."""
        self._end_owner()
        self.check()
        fresh = undisturbed(self.home.parent / "fresh", self.model)
        with opened(self.home, self.journal, **self.settings) as whimbrel:
            found = contents(whimbrel)
        assert found == fresh
        if self.searcher is not None:
            self.searcher.close()
        self.absences.may_return()
        assert self.absences.violations(self.log) == []

    # --- inside ------------------------------------------------------------------------------------------------------

    def _place(self, task: str) -> tuple[str, int] | None:
        """Where to kill; None: at a random time."""
        chance = self.dice.random()
        when = self.dice.choice(["before", "after"])
        if chance < 0.4:
            return f"write:{when}", self.dice.randint(1, 16)
        if chance < 0.75:
            name = self.dice.choice([*RARE.get(task, ()), *RARE.get(task, ()), *COMMON])
            return f"{name}:{when}", self.dice.randint(1, 3)
        return None

    def _watch(self, client: Process, victim: str, place: tuple[str, int] | None) -> None:
        """Let them work until the victim is dead, or the task done."""
        target = client if victim == "client" else self.owner
        assert target is not None
        client.wait_for("go")
        if place is None:
            time.sleep(math.exp(self.dice.uniform(math.log(0.004), math.log(2.0))))
            self._count(target.kill(), "time")
        if target is not client or place is not None:
            try:
                said = client.wait_for("", timeout_s=120)
                assert not re.search(r'"error": ?["\d][^"]', said), said
            except EOFError:
                assert target is client, client.errors
            except TimeoutError as error:
                others = self.owner.stacks() if self.owner is not None else ""
                raise TimeoutError(f"{error}\nthe owner: {others}") from None
        if place is not None and not target.alive:
            self._count(target.process.wait() < 0, place[0])
        client.kill()
        if self.owner is not None and not self.owner.alive:
            self.owner = None

    def _count(self, killed: bool, place: str) -> None:
        if killed:
            self.figures.kills += 1
            self.figures.places[place] += 1

    def _tell(self, process: Process, deed: str, place: tuple[str, int] | None, **more: Any) -> None:
        process.tell(
            do=deed, home=str(self.home), settings=self.settings, journal=str(self.journal), crash=place, **more
        )

    def _own(self, place: tuple[str, int] | None) -> Process:
        """An owner alone, or an API that is the owner; asked all the time when it is the latter."""
        owner = self.pool.take()
        if self.dice.random() < 0.5:
            self._tell(owner, "own", place, seed=self.dice.randrange(1_000))
            with suppress(EOFError):  # it has come to its place already
                owner.wait_for('"owner": true', 30)
            return owner
        self._tell(owner, "serve", place)
        with suppress(EOFError):
            url = json.loads(owner.wait_for('"url"', 30))["url"]
            threading.Thread(target=ask_over_http, args=(owner, url, self.log, self.pause_s), daemon=True).start()
        return owner

    def _end_owner(self) -> None:
        if self.owner is not None:
            self._count(self.owner.kill(), "at rest")
            self.owner = None

    def _start_searcher(self) -> None:
        self.searcher = self.pool.take()
        order = {"log": str(self.log), "words": list(WORDS), "seed": self.dice.randrange(1_000), "pause": self.pause_s}
        self.searcher.tell(do="search", home=str(self.home), settings=self.settings, **order)

    def _applied(self, task: Mapping[str, Any]) -> None:
        self.model.apply(task)
        self.known |= set(self.model.documents)
        self.absences.are_gone(self.known - set(self.model.documents))

    def _searched(self) -> list[str]:
        found = notes(self.log)
        self.figures.searches = len(found)
        self.figures.degraded = sum(bool(note.get("degraded")) for note in found)
        if self.searcher is not None and not self.searcher.alive:
            return [f"the searcher has died: {self.searcher.errors}"]
        return [json.dumps(note) for note in found if "error" in note]


def ask_over_http(api: Process, url: str, log: Path, pause_s: float) -> None:
    """Search over HTTP until the process is dead, whose last answer may be cut short; write down what was found."""
    dice = random.Random(url)
    while api.alive:
        note: dict[str, Any] = {"mode": "http", "from": time.time()}
        body = json.dumps({"query": " ".join(dice.sample(WORDS, 2)), "top_k": 20}).encode()
        request = urllib.request.Request(f"{url}/v1/search", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found = json.load(answer)
            note |= {"uris": [hit["uri"] for hit in found["hits"]], "degraded": found["degraded"]}
        except urllib.error.HTTPError as error:
            note["error"] = f"{error.code}: {error.read().decode()}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            if api.alive:
                time.sleep(0.2)
            if not api.alive:
                return
            note["error"] = f"{type(error).__name__}: {error}"
        note["to"] = time.time()
        with log.open("a") as out:
            out.write(json.dumps(note) + "\n")
        time.sleep(pause_s)


def run(
    folder: Path,
    seed: int,
    count: int,
    *,
    every: int = 5,
    seconds: float = math.inf,
    pause_s: float = 0.05,
    **settings: Any,
) -> Figures:
    """`count` rounds, or as many as begin in `seconds`; a full check after `every` of them, and at the end. `pause_s`:
    between two searches."""
    began = time.monotonic()
    print(f"seed {seed}")
    with processes() as pool:
        rounds = Rounds(folder, seed, pool, pause_s, **settings)
        rounds.begin()
        for number in range(1, count + 1):
            if time.monotonic() - began > seconds:
                break
            rounds.round()
            if number % every == 0:
                rounds.check()
        rounds.end()
    rounds.figures.seconds = time.monotonic() - began
    print(rounds.figures)
    return rounds.figures


assert {name for names in (*RARE.values(), COMMON) for name in names} <= set(points.CALLS)
