"""One move of a living collection, and what happens to it on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash.databases import DISKS, SERVERS
from crash.moving import Figures, Moving, moving
from crash.points import MOVING
from whimbrel.catalog.moves import Move
from whimbrel.domain import MoveState
from whimbrel.errors import Conflict, WhimbrelError

BUILDING = (MoveState.COPYING, MoveState.CATCHING_UP, MoveState.VERIFYING)
PHASES = ("started", "copying", "verifying", "ready", "switching", "switched", "going back", "rolled_back")
VICTIMS = (
    *("owner", "owner", "api", "writer", "searcher", "client"),
    *("target", "target", "source"),
)
FILLED = 4
"""How often the disk under one of the two stores is drawn among these, where one has a small one."""
DETOURS = {"pause": 0.2, "abort": 0.15, "abort when ready": 0.1, "rollback": 0.3, "abort at last": 0.1}
CHANGE = 0.2
"""How often a move is to another embedder; and to another chunking."""
IN_PLACE = 0.3
"""How often such a move stays in its store."""
CLIENT = ("write:before", "write:after", "move.create:after", "move.change:after")
STANDS_STILL = 40
"""Looks at a move that nobody works on, before it is asked to go on."""


@dataclass(frozen=True, slots=True)
class Course:
    """What is to happen."""

    target: str
    disturbances: Sequence[tuple[str, str]] = ()
    """(phase, who is killed then); `disk`: that under the target, or else the source, is full for a while"""
    detours: Set[str] = frozenset()
    armed: tuple[str, int] | None = None
    """The place in the code where the owner is killed, and at which time that it comes there."""
    rate: int = 0
    auto_switch: bool = False
    embedder: str = ""
    chunking: str = ""

    @classmethod
    def drawn(cls, made: Moving) -> Course:
        dice, source = made.dice, made.place()
        others = made.other()
        embedder, chunking = (other if dice.random() < CHANGE else "" for other in others)
        target = source if (embedder or chunking) and dice.random() < IN_PLACE else made.next(source)
        victims = [*VICTIMS, *(["disk"] * FILLED if {source, target} & made.places.disks else [])]
        place = dice.choice([*MOVING, "write"])
        nth = dice.randint(1, 30 if place == "write" else 2)
        return cls(
            target,
            [(dice.choice(PHASES), dice.choice(victims)) for _ in range(dice.randint(1, 4))],
            {name for name, share in DETOURS.items() if dice.random() < share},
            (f"{place}:{dice.choice(['before', 'after'])}", nth) if dice.random() < 0.6 else None,
            dice.choice([0, 60, 150]),
            dice.random() < 0.2,
            embedder,
            chunking,
        )


def take(made: Moving, course: Course) -> bool:
    """One move, from where the collection is, with everything that is in its way; then all checks. Returns whether it
    has moved."""
    made.figures.rounds += 1
    source = made.place()
    print(f"{time.strftime('%H:%M:%S')} {source} -> {course}", flush=True)
    moved = Round(made, source, course).run()
    if moved:
        changed = [name for name in ("embedder", "chunking") if getattr(course, name)]
        made.figures.changes.update([*changed, *(["in place"] if source == course.target else [])])
        if source != course.target:
            made.figures.pairs[source, course.target] += 1
    made.check()
    return moved


class Round:
    """One move, and what happens to it."""

    def __init__(self, moving: Moving, source: str, course: Course) -> None:
        self.moving = moving
        self.whimbrel = moving.whimbrel
        self.dice = moving.dice
        self.source, self.target = source, course.target
        self.course = course
        self.left = list(course.disturbances)
        self.detours = set(course.detours)
        self.before = {move.id for move in self.whimbrel.moves(limit=1)}
        """Moves that are over."""
        self.idle = 0

    def run(self) -> bool:
        """Returns whether the collection has moved."""
        if self.course.armed is not None:
            self.moving.arm(*self.course.armed)
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
            self._ask("start", *self._options())
            return False
        match move.state:
            case MoveState.FINALISED:
                for view in move.sources:
                    self.whimbrel.start_view_job("drop_view", view, now=True)
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
            if self.idle == STANDS_STILL:
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
        if any(line.startswith('{"error"') for line in client.said):
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
            places = self.moving.places
            if victim == "disk":
                for name in [one for one in (self.target, self.source) if one in places.disks][:1]:
                    places.fill(name, self.dice.uniform(0.5, 5.0))
            elif victim not in ("target", "source"):
                self.moving.kill(victim, when)
            elif (name := self.target if victim == "target" else self.source) in SERVERS:
                places.kill(name, self.dice.uniform(0.1, 3.0))

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

    def _to(self) -> str | None:
        return self.moving.places.uri(self.target) if self.target != self.source else None

    def _options(self) -> list[str]:
        course = self.course
        said = {"--to": self._to(), "--embedder": course.embedder, "--chunking": course.chunking}
        options = [word for option, value in said.items() if value for word in (option, value)]
        return [*options, "--rate", str(course.rate), *(["--auto-switch"] if course.auto_switch else [])]

    def _failed(self, what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)
        self.moving.figures.failures[what[:50]] += 1

    def _here(self, do: str) -> None:
        whimbrel = self.whimbrel
        if do == "start":
            course = self.course
            whimbrel.start_move(
                "default",
                to=self._to(),
                embedder=course.embedder or None,
                chunking=course.chunking or None,
                rate=course.rate,
                auto_switch=course.auto_switch,
            )
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
    with moving(folder, seed, disks=tuple(DISKS), **settings) as made:
        began = time.monotonic()
        while made.figures.rounds < rounds and time.monotonic() - began < seconds:
            take(made, Course.drawn(made))
            made.figures.seconds = time.monotonic() - began
            print(made.figures, flush=True)
    return made.figures
