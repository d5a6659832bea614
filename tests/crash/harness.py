"""Processes to kill, and what must be true of a home afterwards."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash import driver
from crash.model import Model, contents, strays
from whimbrel.app import Whimbrel
from whimbrel.catalog.collections import fed
from whimbrel.errors import Conflict, DocumentNotFound, ViewNotFound

BATCH = 4
"""Texts embedded at once: what a kill may cost to pay again is at most two batches."""

SETTINGS: Mapping[str, Any] = {
    "embed.batch": BATCH,
    "embed.threads": 1,
    "owner.poll_s": 0.05,
    "owner.erasure_grace_s": 0.0,
    "ingest.workers": 1,
    "search.timeout_s": 60.0,
}


class Process:
    """A driver: started, told what to do, killed."""

    def __init__(self, **environment: str) -> None:
        self.lines: queue.Queue[str] = queue.Queue()
        self.said: list[str] = []
        self._errors: deque[str] = deque(maxlen=400)
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("driver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root / "src"), **environment},
        )
        for stream, keep in ((self.process.stdout, self._hear), (self.process.stderr, self._errors.append)):
            threading.Thread(target=_listen, args=(stream, keep), daemon=True).start()

    def _hear(self, line: str) -> None:
        self.said.append(line)
        self.lines.put(line)

    @property
    def errors(self) -> str:
        return "\n".join(self._errors)

    def tell(self, **order: Any) -> Process:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self

    def wait_for(self, text: str, timeout_s: float = 180.0) -> str:
        """The next line that holds `text`."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self.lines.get(timeout=min(0.1, max(deadline - time.monotonic(), 0.001)))
            except queue.Empty:
                if self.process.poll() is not None and self.lines.empty():
                    raise EOFError(f"ended with {self.process.returncode}: {self.errors}") from None
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no {text!r} in {timeout_s} s; {self.said[-3:]}; {self.stacks()}") from None
                continue
            if text in line:
                return line

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stacks(self) -> str:
        """What it has said last, and what each of its threads is at."""
        if self.alive:
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
        return self.errors

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> bool:
        """With SIGKILL, of which nothing can be learned before. False if it had ended by itself."""
        was_alive = self.alive
        self.process.kill()
        self.process.wait()
        return was_alive

    def close(self) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream
            stream.close()


def _listen(stream: Any, keep: Any) -> None:
    try:
        for line in stream:
            keep(line.rstrip("\n"))
    except ValueError:  # closed beneath us
        return


@contextmanager
def processes() -> Iterator[Pool]:
    pool = Pool()
    try:
        yield pool
    finally:
        for process in pool.every:
            process.close()


class Pool:
    """Processes that have imported everything, ready to be told; the next one is started ahead."""

    def __init__(self) -> None:
        self.every: list[Process] = []
        self._next: Process | None = None

    def take(self, *, ahead: bool = True) -> Process:
        process, self._next = self._next or self._start(), None
        process.wait_for("ready")
        if ahead:
            self._next = self._start()
        return process

    def _start(self) -> Process:
        process = Process()
        self.every.append(process)
        return process


@contextmanager
def opened(home: Path, journal: Path | None = None, **settings: Any) -> Iterator[Whimbrel]:
    """The home in this process, at the pace of the drivers."""
    with (
        driver.quickened(),
        driver.journalled(journal or home.parent / "journal"),
        Whimbrel(home, **{**SETTINGS, **settings}) as whimbrel,
    ):
        yield whimbrel


def settle(whimbrel: Whimbrel, timeout_s: float = 240.0) -> None:
    """Until no job is left and the views stand at the head of the log."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        whimbrel.own()
        active = whimbrel.jobs(active=True)
        # Before the views are counted: a suspect one is cleared in the transaction that makes its successor.
        suspect = [row.suspect for row in whimbrel.views() if row.suspect]
        views = [found["views"] for found in whimbrel.status()["collections"]]
        quiet = not active and not suspect and _opened(whimbrel)
        if quiet and all(len(some) == 2 and all(map(_at_rest, some)) for some in views):
            return
        time.sleep(0.05)
    raise TimeoutError(
        f"not at rest after {timeout_s} s: {[(job.kind, job.state, job.error, dict(job.progress)) for job in active]} "
        f"{whimbrel.status()['collections']}"
    )


def _opened(whimbrel: Whimbrel) -> bool:
    """Whether the owner, if it is here, has looked at the data of every view: what is wrong with it shows by then."""
    return whimbrel.owner is None or {row.id for row in fed(whimbrel.views())} <= whimbrel.owner.views.followers.keys()


def _at_rest(view: Mapping[str, Any]) -> bool:
    return view["live"] and view["state"] == "live" and not view["lag"] and not view["error"]


def verified(whimbrel: Whimbrel, collection: str = "default") -> list[dict[str, Any]]:
    """Every live view of a collection, compared row for row with the catalog; fails where one differs."""
    live = [row for row in whimbrel.views(collection) if row.view.state == "live"]
    assert {row.view.kind for row in live} == {"store", "lexicon"}, live
    reports = [whimbrel.finish(whimbrel.start_view_job("verify_view", row.id), timeout_s=240) for row in live]
    for report in reports:
        assert report["equal"], report
    return reports


def check_whole(whimbrel: Whimbrel, model: Model) -> None:
    """The collection is what the model says, and each view is what the collection is."""
    settle(whimbrel)
    failed = [job for job in whimbrel.jobs() if job.state == "failed"]
    twice = [job for job in failed if job.kind == "rebuild_view" and job.error_code in ("Conflict", "ViewNotFound")]
    assert len(failed) == len(twice), failed  # asked for once more when the first had done it already
    found = contents(whimbrel)
    assert set(found) == set(model.documents), set(found) ^ set(model.documents)
    for uri, document in model.documents.items():
        assert found[uri]["metadata"] == document.metadata, uri
        assert found[uri]["state"] == "extracted"
        for number in (word for word in document.text.split() if word.endswith(".")):
            assert number in found[uri]["text"], (uri, number)
    verified(whimbrel)
    assert not strays(whimbrel)


def undisturbed(home: Path, model: Model) -> dict[str, Any]:
    """The content of a fresh home over the same folder and texts."""
    with opened(home, journal=home.parent / "journal-of-the-fresh-home") as whimbrel:
        whimbrel.ingest([model.root])
        labelled: dict[str, list[Path]] = {}
        for uri, document in model.documents.items():
            if uri.startswith("text:"):
                text = {"id": uri.removeprefix("text:"), "text": document.text, "metadata": document.metadata}
                whimbrel.add([text], wait="job")
            elif document.metadata:
                path = next(path for path in model.files() if path.as_uri() == uri)
                labelled.setdefault(json.dumps(document.metadata), []).append(path)
        for label, paths in labelled.items():
            whimbrel.ingest(paths, metadata=json.loads(label), wait="job")
        gone = [uri for uri in contents(whimbrel) if uri not in model.documents]
        if gone:
            whimbrel.delete(gone)
        settle(whimbrel)
        verified(whimbrel)
        return contents(whimbrel)


def paid_again(journal: Path) -> int:
    """How often a text was embedded that had been embedded before (and was not erased since)."""
    seen: Counter[str] = Counter()
    again = 0
    for line in journal.read_text().splitlines() if journal.exists() else []:
        if line == "sweep":
            seen.clear()
            continue
        again += sum(seen[text] > 0 for text in line.split())
        seen.update(line.split())
    return again


# --- searches that go on meanwhile -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Absences:
    """When which documents were certainly not in the collection."""

    closed: list[tuple[str, float, float]] = field(default_factory=list)
    open: dict[str, float] = field(default_factory=dict)

    def may_return(self) -> None:
        """From now on any of them may come back."""
        self.closed += [(uri, since, time.time()) for uri, since in self.open.items()]
        self.open = {}

    def are_gone(self, uris: set[str]) -> None:
        for uri in uris:
            self.open.setdefault(uri, time.time())

    def violations(self, log: Path) -> list[str]:
        self.may_return()
        found = []
        for note in notes(log):
            for uri, since, until in self.closed:
                if uri in note.get("uris", ()) and note["from"] > since and note["to"] < until:
                    found.append(f"{uri} was found {note['from'] - since:.3f} s after it had gone")
        return found


def notes(log: Path) -> list[dict[str, Any]]:
    """What the searcher wrote, without a line that a kill cut short."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


@dataclass(slots=True)
class Figures:
    """What a run did."""

    rounds: int = 0
    kills: int = 0
    places: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    checks: int = 0
    searches: int = 0
    degraded: int = 0
    paid_again: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.rounds} rounds ({dict(self.tasks)}) at {len(self.places)} kinds of place; "
            f"{self.checks} full checks, {self.searches} searches ({self.degraded} of them degraded), "
            f"{self.paid_again} texts embedded again; {self.seconds:.0f} s"
        )


def done(whimbrel: Whimbrel, task: Mapping[str, Any]) -> None:
    """Do a task that a killed process may have done, in part or whole, before."""
    try:
        driver.perform(whimbrel, dict(task))
    except DocumentNotFound:
        assert task["task"] in ("delete", "purge")
    except (Conflict, ViewNotFound):
        assert task["task"] == "rebuild"  # the one that the killed process asked for has been done meanwhile
