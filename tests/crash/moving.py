"""Moves of a living collection between databases, while whatever takes part in them is killed; replayable by a seed,
mostly: who is how far when another is killed is up to the machine."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash import diary, driver
from crash.databases import NAMES, SERVERS, Databases, databases
from crash.diary import Written
from crash.harness import BATCH, SETTINGS, Pool, Process, notes, opened, paid_again, processes
from crash.model import WORDS, contents, strays
from crash.points import MOVING
from crash.rounds import ask_over_http
from whimbrel.app import Whimbrel
from whimbrel.catalog.moves import Move
from whimbrel.doctor import Level, diagnose
from whimbrel.domain import Job, JobState, MoveState
from whimbrel.errors import Conflict, WhimbrelError

BUILDING = (MoveState.COPYING, MoveState.CATCHING_UP, MoveState.VERIFYING)
PHASES = ("started", "copying", "verifying", "ready", "switching", "switched", "going back", "rolled_back")
VICTIMS = ("owner", "owner", "api", "writer", "searcher", "client", "target", "target", "source")
DETOURS = {"pause": 0.2, "abort": 0.15, "abort when ready": 0.1, "rollback": 0.3, "abort at last": 0.1}
CLIENT = ("write:before", "write:after", "move.create:after", "move.change:after")
AFTER_KILLS = {"failed_jobs", "stale_socket"}
"""What the doctor may say: what was asked for could not be, at its time; and a killed process was one that serves."""
PATIENCE_S = 240.0
AFTERMATH_S = 15.0
"""For so long after a server or an owner is back, a search of vectors alone may still say that the store is out."""


@dataclass(slots=True)
class Figures:
    """What a run did."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    """Of processes, by who and where."""
    server_kills: int = 0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Finished moves, by where from and to."""
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
    paid_again: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, {self.pairs.total()} moves between {len(self.pairs)} ordered pairs, {self.rows} "
            f"rows verified; {self.kills.total()} kills ({dict(self.kills.most_common())}), {self.server_kills} of "
            f"servers; detours {dict(self.detours)}; {dict(self.failures)}; {self.writes} writes, {self.searches} "
            f"searches ({self.behind} of views that were behind, {self.degraded} degraded, {self.refused} refused, the "
            f"slowest {self.slowest_s:.1f} s), "
            f"{self.paid_again} texts embedded again; {self.seconds:.0f} s"
        )


class Moving:
    """A home whose collection moves, and whoever works on it."""

    def __init__(self, folder: Path, seed: int, pool: Pool, places: Databases, **settings: Any) -> None:
        self.dice = random.Random(seed)
        self.pool = pool
        self.places = places
        self.folder = folder
        self.home = places.home
        self.journal = folder / "journal"
        self.log = folder / "searches"
        self.diary = folder / "diary"
        self.stop = folder / "stop"
        self.settings = {**SETTINGS, **settings}
        self.figures = Figures()
        self.team: dict[str, Process] = {}
        """Who works: `first` and `second` may be the owner, and answer over HTTP or not; then `writer`, `searcher`,
        and `client`, which is not started again."""
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

    # --- a round -----------------------------------------------------------------------------------------------------

    def round(self, target: str | None = None, disturbances: Sequence[tuple[str, str]] | None = None) -> None:
        """One move, from where the collection is to `target`, with everything that is in its way; then all checks.

        `disturbances`: (phase, victim) pairs.
        """
        self.figures.rounds += 1
        source = self._place()
        target = target or self._next(source)
        if _Round(self, source, target, disturbances).run():
            self.figures.pairs[source, target] += 1
        self.check()

    def _next(self, source: str) -> str:
        """The one to which it has gone least often from here."""
        others = [name for name in NAMES if name != source]
        least = min(self.figures.pairs[source, name] for name in others)
        return self.dice.choice([name for name in others if self.figures.pairs[source, name] == least])

    def _place(self) -> str:
        live = next(
            row for row in self.whimbrel.views("default") if row.view.state == "live" and row.view.kind == "store"
        )
        return self.places.name(live.view.uri)

    # --- who works ---------------------------------------------------------------------------------------------------

    def keep_going(self) -> None:
        """Whoever was killed is started again, and servers whose time has come."""
        self.places.revive()
        self._keep_going()

    def _keep_going(self, armed: tuple[str, int] | None = None) -> None:
        for role in ("first", "second", "searcher", *(["writer"] if self.writing else [])):
            process = self.team.get(role)
            if process is not None and process.alive:
                continue
            if process is not None:
                self.buried(role, process)
            self.team[role] = self._start(role, armed if role in ("first", "second") else None)

    def buried(self, role: str, process: Process) -> None:
        if process in self.killed:
            return
        status = process.process.wait()
        assert status == -9, f"the {role} ended with {status}: {process.said[-3:]} {process.errors}"
        self.figures.kills[f"{role if role == 'client' else 'owner'}, {self.armed[process]}"] += 1

    def _start(self, role: str, armed: tuple[str, int] | None) -> Process:
        process = self.pool.take()
        if armed:
            self.armed[process] = armed[0]
        match role:
            case "writer":
                self.stop.unlink(missing_ok=True)
                self.tell(process, "write", diary=str(self.diary), stop=str(self.stop), pause=0.1)
            case "searcher":
                self.tell(process, "search", log=str(self.log), words=list(WORDS), seed=self.dice.randrange(1_000))
            case _ if self.dice.random() < 0.4:
                self.tell(process, "own", armed)
            case _:
                self.tell(process, "serve", armed)
                threading.Thread(target=self._ask, args=(process,), daemon=True).start()
        return process

    def _ask(self, api: Process) -> None:
        with suppress(EOFError, TimeoutError):  # it was killed before it answered
            ask_over_http(api, json.loads(api.wait_for('"url"'))["url"], self.log)

    def tell(self, process: Process, deed: str, place: tuple[str, int] | None = None, **more: Any) -> None:
        order = {"home": str(self.home), "settings": self.settings, "journal": str(self.journal), "crash": place}
        process.tell(do=deed, **order, **more)

    def arm(self, place: str, nth: int) -> None:
        """Whoever is the owner from here on is killed at a place."""
        for role in ("first", "second"):
            self.kill(role, "arming")
        self._keep_going((place, nth))

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
            time.sleep(0.05)
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
            assert job.result["equal"], job.result
            self.figures.rows += job.result["rows"]

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

        deadline = time.monotonic() + PATIENCE_S
        while not rest():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)
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


class _Round:
    """One move, and what happens to it."""

    def __init__(
        self, moving: Moving, source: str, target: str, disturbances: Sequence[tuple[str, str]] | None
    ) -> None:
        self.moving = moving
        self.whimbrel = moving.whimbrel
        self.dice = dice = moving.dice
        self.source, self.target = source, target
        if disturbances is None:
            disturbances = [(dice.choice(PHASES), dice.choice(VICTIMS)) for _ in range(dice.randint(1, 4))]
        self.left = list(disturbances)
        self.detours = {name for name, share in DETOURS.items() if dice.random() < share}
        before = self.whimbrel.moves(limit=1)
        self.before = {move.id for move in before}
        """Moves that are over."""
        self.options = ["--to", moving.places.uri(target), "--rate", str(dice.choice([0, 60, 150]))]
        if dice.random() < 0.2:
            self.options.append("--auto-switch")
        self.idle = 0

    def run(self) -> bool:
        """Returns whether the collection has moved."""
        dice = self.dice
        armed = None
        if dice.random() < 0.6:
            place = dice.choice([*MOVING, "write"])
            armed = f"{place}:{dice.choice(['before', 'after'])}", dice.randint(1, 30 if place == "write" else 2)
            self.moving.arm(*armed)
        at = time.strftime("%H:%M:%S")
        print(f"{at} {self.source} -> {self.target}: {self.left} {self.detours} {armed}", flush=True)
        self.moving.until(self._step, f"{self.source} -> {self.target}")
        self.moving.until(lambda: not self._client(), "the client ends")
        move = self._move()
        return move is not None and move.state is MoveState.FINALISED

    def _step(self) -> bool:
        """Look where the move is, and do what is due there. True when it is over."""
        move = self._move()
        doing = self._doing(move)
        self._disturb(self._phase(move, doing))
        if doing or self._client():
            self.idle = 0
            return False
        if move is None:
            self._ask("start", *self.options)
            return False
        match move.state:
            case MoveState.FINALISED:
                self.whimbrel.start_view_job("drop_view", move.source_store, now=True)
                return True
            case MoveState.ABORTED:
                self.before.add(move.id)
                return "abort at last" in self.detours
            case MoveState.FAILED:
                self._failed(f"verifying: {move.error}")
                self._ask("resume")
            case state if state in BUILDING:
                self._building(move)
            case MoveState.READY | MoveState.PREPARED:
                self._ask("abort" if self._take("abort when ready") else "switch")
            case MoveState.SWITCHED:
                self._both(move)
                self._ask("rollback" if self._take("rollback") else "finalise")
            case MoveState.ROLLED_BACK:
                self._both(move)
                self._ask("abort" if "abort at last" in self.detours else "switch")
        return False

    def _building(self, move: Move) -> None:
        if self._take("pause"):
            with suppress(Conflict):
                self.whimbrel.pause_move(move)
                time.sleep(self.dice.uniform(0.1, 1.5))
                self._ask("resume")
        elif self._take("abort"):
            self._ask("abort")
        else:  # its job has ended, and it is not ready: nobody goes on
            self.idle += 1
            if self.idle == 40:
                self._failed(f"stands still: {move.state}")
                self._ask("resume")

    def _both(self, move: Move) -> None:
        """Both sides are fed: each is what the catalog says."""
        if self.dice.random() < 0.5:
            self.moving.places.revive(at_once=True)
            self.moving.verify([*move.sources, *move.targets])

    def _take(self, detour: str) -> bool:
        """Whether to go that way now; once."""
        if detour not in self.detours:
            return False
        self.detours.discard(detour)
        self.moving.figures.detours[detour] += 1
        return True

    # --- where it is -------------------------------------------------------------------------------------------------

    def _move(self) -> Move | None:
        found = [move for move in self.whimbrel.moves(limit=1) if move.id not in self.before]
        return found[0] if found else None

    def _doing(self, move: Move | None) -> str:
        """What the owner has been told to do with it."""
        active = [job for job in self.whimbrel.jobs(active=True) if job.kind == "move"]
        return next((job.args["do"] for job in active if move is not None and job.args["move"] == move.id), "")

    def _client(self) -> bool:
        """Whether a command that was begun is still under way."""
        client = self.moving.team.get("client")
        if client is None:
            return False
        if client.alive and not any(line.startswith(("[", '{"error')) for line in client.said):
            return True
        if '{"error"' in "".join(client.said):
            self._failed(f"by command: {client.said[-1]} {client.errors}")
        del self.moving.team["client"]
        if not client.kill() and client.process.returncode < 0:
            self.moving.buried("client", client)
        return False

    def _phase(self, move: Move | None, doing: str) -> str:
        if move is None:
            return "started" if self._client() else ""
        if doing == "switch":
            return "switching"
        if doing == "rollback":
            return "going back"
        return {"catching_up": "copying", "prepared": "ready"}.get(move.state.value, move.state.value)

    def _disturb(self, phase: str) -> None:
        for when, victim in [one for one in self.left if one[0] == phase]:
            self.left.remove((when, victim))
            time.sleep(math.exp(self.dice.uniform(math.log(0.004), math.log(1.0))))
            if victim not in ("target", "source"):
                self.moving.kill(victim, when)
            elif (name := self.target if victim == "target" else self.source) in SERVERS:
                self.moving.places.kill(name, self.dice.uniform(0.1, 3.0))

    def _ask(self, do: str, *options: str) -> None:
        """By the command line in a process of its own, or in this one."""
        if self.dice.random() < 0.6:
            client = self.moving.pool.take()
            place = (self.dice.choice(CLIENT), self.dice.randint(1, 3)) if self.dice.random() < 0.2 else None
            if place:
                self.moving.armed[client] = place[0]
            self.moving.tell(client, "command", place, tasks=[{"task": "move", "do": do, "options": options}])
            self.moving.team["client"] = client
            return
        try:
            self._here(do)
        except WhimbrelError as error:
            self._failed(f"{do}: {error.code}: {error.message}")

    def _failed(self, what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)
        self.moving.figures.failures[what[:50]] += 1

    def _here(self, do: str) -> None:
        whimbrel = self.whimbrel
        if do == "start":
            to, rate = self.options[1], float(self.options[3])
            whimbrel.start_move("default", to=to, rate=rate, auto_switch="--auto-switch" in self.options)
            return
        steps: dict[str, Callable[[Move], Any]] = {
            "resume": whimbrel.resume_move,
            "switch": whimbrel.switch_move,
            "rollback": whimbrel.rollback_move,
            "finalise": whimbrel.finalise_move,
            "abort": whimbrel.abort_move,
        }
        steps[do](whimbrel.move("default"))


def run(folder: Path, seed: int, rounds: int, *, seconds: float = math.inf, **settings: Any) -> Figures:
    """`rounds` moves, or as many as begin in `seconds`."""
    with moving(folder, seed, **settings) as made:
        began = time.monotonic()
        while made.figures.rounds < rounds and time.monotonic() - began < seconds:
            made.round()
            made.figures.seconds = time.monotonic() - began
            print(made.figures, flush=True)
    return made.figures


@contextmanager
def moving(folder: Path, seed: int, **settings: Any) -> Iterator[Moving]:
    print(f"seed {seed}")
    home = folder / "home"
    with databases(folder, home) as places, driver.quickened(), processes() as pool:
        made = Moving(folder, seed, pool, places, **settings)
        with made.going():
            yield made
