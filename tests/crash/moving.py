"""Moves of a living collection between databases, while whatever takes part in them is killed; replayable by a seed,
mostly: who is how far when another is killed is up to the machine."""

from __future__ import annotations

import json
import math
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from crash import diary, driver
from crash.databases import NAMES, SERVERS, Databases, databases
from crash.diary import Written
from crash.harness import BATCH, SETTINGS, Pool, Process, notes, opened, paid_again, processes
from crash.model import WORDS, contents, strays
from crash.rounds import ask_over_http
from small_models import encoder
from whimbrel.app import Whimbrel
from whimbrel.catalog import tables as t
from whimbrel.catalog import vectors
from whimbrel.catalog.collections import ViewRow
from whimbrel.doctor import Level, diagnose
from whimbrel.domain import Job, JobState

AFTER_KILLS = {"failed_jobs", "stale_socket"}
"""What the doctor may say: what was asked for could not be, at its time; and a killed process was one that serves."""
PATIENCE_S = 240.0
COARSE, FINE = "tokens=128,overlap=16", "tokens=16,overlap=0"
"""Chunkings: the texts are one chunk each, or some."""
AFTERMATH_S = 30.0
"""For so long after a server or an owner is back, a search of vectors alone may still say that the store is out."""


@dataclass(slots=True)
class Figures:
    """What a run did."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    """Of processes, by who and where."""
    server_kills: int = 0
    full_disks: int = 0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Finished moves, by where from and to."""
    changes: Counter[str] = field(default_factory=Counter)
    """Of these, those to another embedder or chunking as well; `in place` where the store stayed."""
    detours: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """Of moves, and of what was asked of them: each was taken up again."""
    rows: int = 0
    writes: int = 0
    searches: int = 0
    behind: int = 0
    """Searches of views to which the last changes had still to come."""
    degraded: int = 0
    """Searches of one view alone, as the other's database was away."""
    refused: int = 0
    """Searches of vectors alone while the database was away."""
    slowest_s: float = 0.0
    given_back: int = 0
    """Rows that a Milvus server had again, or still, although they had been deleted: each was found by a comparison,
    and its view built anew."""
    paid_again: int = 0
    rebuilt: Counter[str] = field(default_factory=Counter)
    """Views that were found damaged, and why."""
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, {self.pairs.total()} moves between {len(self.pairs)} ordered pairs, {self.rows} "
            f"rows verified; {self.kills.total()} kills ({dict(self.kills.most_common())}), {self.server_kills} of "
            f"servers, {self.full_disks} full disks; changes {dict(self.changes)}; "
            f"detours {dict(self.detours)}; {dict(self.failures)}; {self.writes} writes, {self.searches} "
            f"searches ({self.behind} of views that were behind, {self.degraded} degraded, {self.refused} refused, the "
            f"slowest {self.slowest_s:.1f} s), "
            f"{self.given_back} rows given back by a Milvus server; "
            f"{self.paid_again} texts embedded again; rebuilt {dict(self.rebuilt)}; {self.seconds:.0f} s"
        )


class Moving:
    """A home whose collection moves, and whoever works on it."""

    def __init__(
        self,
        seed: int,
        pool: Pool,
        places: Databases,
        folder: Path,
        owners: Sequence[str],
        pause_s: float,
        **settings: Any,
    ) -> None:
        self.dice = random.Random(seed)
        self.pool = pool
        self.owners = owners
        self.pause_s = pause_s
        self.places = places
        self.folder = folder
        self.home = places.home
        self.journal = folder / "journal"
        self.log = folder / "searches"
        self.diary = folder / "diary"
        self.stop = folder / "stop"
        self.settings = {**SETTINGS, **settings}
        self.figures = Figures()
        self.models = {"minilm": f"onnx:{encoder(folder / 'model', dimensions=24, max_tokens=256, words=WORDS)}"}
        self.models |= {other: one for one, other in self.models.items()}
        """The other embedder, by one of two."""
        self.team: dict[str, Process] = {}
        """Who works: those that may be the owner, and answer over HTTP or not; then `writer`, `searcher`, and `client`,
        which is not started again."""
        self.killed: set[Process] = set()
        self.armed: dict[Process, str] = {}
        self.ownerless: list[float] = []
        """When an owner was killed: what it alone may open is away until there is another."""
        self.writing = True
        self.whimbrel: Whimbrel

    @contextmanager
    def going(self) -> Iterator[None]:
        """Fill the collection, and let everybody work."""
        with opened(self.home, self.journal, **self.settings) as whimbrel:
            diary.fill(whimbrel, self.diary)
            whimbrel.wait_for_head("default", timeout_s=PATIENCE_S)
        with Whimbrel(self.home, **self.settings) as self.whimbrel:
            self._keep_going()
            yield

    # --- where it is -------------------------------------------------------------------------------------------------

    def next(self, source: str) -> str:
        """The database to which it has gone least often from here."""
        others = [name for name in NAMES if name != source]
        least = min(self.figures.pairs[source, name] for name in others)
        return self.dice.choice([name for name in others if self.figures.pairs[source, name] == least])

    def place(self) -> str:
        return self.places.name(self._live().view.uri)

    def other(self) -> tuple[str, str]:
        """The embedder and the chunking, each of two, that the collection has not."""
        view = self._live().view
        with self.whimbrel.catalog.read() as connection:
            assert view.space_id is not None
            _, embedder = vectors.read_space(connection, view.space_id)
            chunking = connection.scalar(select(t.chunkings.c.spec).where(t.chunkings.c.id == view.chunking_id))
        return self.models[embedder], FINE if chunking != FINE else COARSE

    def _live(self) -> ViewRow:
        rows = self.whimbrel.views("default")
        return next(row for row in rows if row.view.state == "live" and row.view.kind == "store")

    # --- who works ---------------------------------------------------------------------------------------------------

    def keep_going(self) -> None:
        """Whoever was killed is started again, and servers whose time has come."""
        self.places.revive()
        self._keep_going()

    def _keep_going(self) -> None:
        for role in (*self.owners, "searcher", *(["writer"] if self.writing else [])):
            process = self.team.get(role)
            if process is not None and process.alive:
                continue
            if process is not None:
                self.buried(role, process)
            self.team[role] = self._start(role)

    def buried(self, role: str, process: Process) -> None:
        if process in self.killed:
            return
        status = process.process.wait()
        assert status == -9, f"the {role} ended with {status}: {process.said[-3:]} {process.errors}"
        self.figures.kills[f"{role if role == 'client' else 'owner'}, {self.armed[process]}"] += 1
        if role != "client":
            self.ownerless.append(time.time())

    def _start(self, role: str) -> Process:
        process = self.pool.take()
        match role:
            case "writer":
                self.stop.unlink(missing_ok=True)
                self.tell(
                    process, "write", diary=str(self.diary), stop=str(self.stop), pause=max(self.pause_s / 2, 0.1)
                )
            case "searcher":
                self.tell(
                    process,
                    "search",
                    log=str(self.log),
                    words=list(WORDS),
                    seed=self.dice.randrange(1_000),
                    pause=self.pause_s,
                )
            case _ if self.dice.random() < 0.4:
                self.tell(process, "own")
            case _:
                self.tell(process, "serve")
                threading.Thread(target=self._ask, args=(process,), daemon=True).start()
        return process

    def _ask(self, api: Process) -> None:
        with suppress(EOFError, TimeoutError):  # it was killed before it answered
            ask_over_http(api, json.loads(api.wait_for('"url"'))["url"], self.log, max(self.pause_s, 0.05))

    def tell(self, process: Process, deed: str, place: tuple[str, int] | None = None, **more: Any) -> None:
        order = {"home": str(self.home), "settings": self.settings, "journal": str(self.journal), "crash": place}
        process.tell(do=deed, **order, **more)

    def arm(self, place: str, nth: int) -> None:
        """Whoever is the owner is killed at a place, and so may be the next one."""
        for role in self.owners:
            self.armed[self.team[role]] = place
            with suppress(BrokenPipeError):
                self.team[role].tell(crash=(place, nth))

    def kill(self, role: str, where: str) -> None:
        process = self.team.get(self._owner() if role == "owner" else "second" if role == "api" else role)
        if process is None or process in self.killed:
            return
        if process.kill():
            self.killed.add(process)
            if role == "owner":
                self.ownerless.append(time.time())
            self.figures.kills[f"{role}, {where}"] += 1

    def _owner(self) -> str:
        lease = self.whimbrel.owner_lease()
        pid = lease.info.get("pid") if lease is not None else None
        return next((role for role, process in self.team.items() if process.process.pid == pid), "first")

    # --- checks ------------------------------------------------------------------------------------------------------

    def until(self, true: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := true()):
            self.keep_going()
            if time.monotonic() > deadline:
                raise TimeoutError(f"not in {PATIENCE_S} s: {what}; {self.said()}")
            time.sleep(0.1)
        return found

    def said(self) -> str:
        """Where everything stands, for a test that waits in vain."""
        active = [
            (job.kind, job.args, job.state, job.error, dict(job.progress)) for job in self.whimbrel.jobs(active=True)
        ]
        views = [
            (row.id, row.view.kind, row.view.state, row.view.position, row.view.error) for row in self.whimbrel.views()
        ]
        stacks = {role: process.stacks()[-6_000:] for role, process in self.team.items()}
        text = "\n".join(f"--- {role}: {one}" for role, one in stacks.items())
        return f"jobs {active}; views {views}; moves {self.whimbrel.moves()[:1]}\n{text}"

    def finished(self, job: Job) -> Job:
        """A job, when it has ended."""
        ended = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)
        return self.until(lambda: (found := self.whimbrel.job(job.id)).state in ended and found, f"{job.kind} ends")  # type: ignore[no-any-return]

    def verify(self, views: Sequence[int]) -> None:
        """Every row of these views is what the catalog says."""
        for view in views:
            job = self.finished(self.whimbrel.start_view_job("verify_view", view))
            assert job.state is JobState.DONE, (view, job.error)
            if job.result["equal"]:
                self.figures.rows += job.result["rows"]
            else:
                self.verify(self._built_anew(view, job.result))

    def _built_anew(self, view: int, found: Mapping[str, Any]) -> list[int]:
        """The views that there are when a Milvus server has given back what was deleted (its issues 33015 and 37782;
        killed or not), and the view has been built anew; no other difference is any store's right."""
        place = next(self.places.name(row.view.uri) for row in self.whimbrel.views() if row.id == view)
        wrong = found["missing"] + found["different"] + found["doubled"]
        assert (place, wrong) == ("milvus server", 0), found
        self.figures.given_back += found["extra"]

        def anew() -> list[int]:
            rows = self.whimbrel.views("default")
            there = [row.id for row in rows if row.view.kind == "store" and row.view.state in ("live", "standby")]
            return there if view not in there else []

        return list(self.until(anew, f"view {view} is built anew"))

    def check(self) -> None:
        """What must be true when a move has ended, whatever was killed."""
        written = self._hold_still()
        self.verify([row.id for row in self.whimbrel.views() if row.view.state == "live"])
        found = {uri: document["text"].strip() for uri, document in contents(self.whimbrel).items()}
        assert found == written.texts, set(found.items()) ^ set(written.texts.items())
        found_astray = strays(self.whimbrel)
        assert not found_astray, found_astray
        rows = self.whimbrel.views()
        assert sorted(row.view.kind.value for row in rows) == ["lexicon", "store"], rows
        held = self.places.views()
        assert held == {row.view.name for row in rows if row.view.kind == "store"}, (held, rows)
        assert not self.whimbrel.moves(under_way=True)
        said = [one for one in diagnose(self.whimbrel.settings) if one.level is not Level.NOTE]
        assert {one.check for one in said} <= AFTER_KILLS, said
        self.check_searches(written)
        again = self.figures.paid_again = paid_again(self.journal)
        assert again <= 2 * BATCH * self.figures.kills.total(), f"{again} texts were embedded again"
        self.figures.writes, self.figures.server_kills = written.tasks, self.places.kills
        self.figures.full_disks = self.places.fills
        lines = [line for process in self.pool.every for line in process.errors.splitlines()]
        said = [line for line in lines if "built anew" in line and "the lexicon of" not in line]  # another language
        self.figures.rebuilt = Counter(re.sub(r"\d+", "N", line)[:200] for line in said)
        self.writing = True

    def _hold_still(self) -> Written:
        """Until nobody writes, no job is left, and every view stands where the log ends."""
        self.places.revive(at_once=True)
        self.keep_going()
        self.stop.touch()
        self.writing = False
        writer = self.team.pop("writer")
        while not (said := writer.wait_for("", PATIENCE_S)).isdigit():
            assert said == "go", said
        writer.close()

        def rest() -> bool:
            active = self.whimbrel.jobs(active=True)
            (found,) = self.whimbrel.status()["collections"]
            return not active and all(view["live"] and not view["lag"] and not view["error"] for view in found["views"])

        self.until(rest, "everything is at rest")
        return Written.read(self.diary)

    def check_searches(self, written: Written) -> None:
        """None failed, and none found what had been deleted before it began."""
        found = notes(self.log)
        away_s = [*self.places.outages, *((at, at) for at in self.ownerless)]
        for note in found:
            away = any(since <= note["to"] and note["from"] <= until + AFTERMATH_S for since, until in away_s)
            if "error" in note:
                assert away, (note, away_s)
                assert note["mode"] == "dense", note
            for uri in note.get("uris", ()):
                assert note["from"] < written.gone.get(uri, math.inf), f"{uri} was found after it had gone: {note}"
        self.figures.searches = len(found)
        reasons = [note["degraded"] for note in found if note.get("degraded")]
        self.figures.behind = sum(all(" changes behind" in reason for reason in one) for one in reasons)
        self.figures.degraded = len(reasons) - self.figures.behind
        self.figures.refused = sum("error" in note for note in found)
        self.figures.slowest_s = max((note["to"] - note["from"] for note in found), default=0.0)


@contextmanager
def moving(
    folder: Path,
    seed: int,
    servers: Sequence[str] = SERVERS,
    owners: Sequence[str] = ("first", "second"),
    pause_s: float = 0.1,
    disks: Sequence[str] = (),
    **settings: Any,
) -> Iterator[Moving]:
    """A collection that is written to and searched from here on, in LanceDB.

    `servers`: those that are started; `owners`: who may be the owner, and one of them is. `pause_s`: between two
    searches. `disks`: of which databases those may be filled.
    """
    print(f"seed {seed}", flush=True)
    with databases(folder, servers, disks) as places, driver.quickened(), processes() as pool:
        made = Moving(seed, pool, places, folder, owners, pause_s, **settings)
        try:
            with made.going():
                yield made
        finally:
            said = [f"--- {process.process.pid}\n{process.errors}\n" for process in pool.every]
            (folder / "errors").write_text("".join(said))  # for who looks why a test failed
