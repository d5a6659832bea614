"""Running the command line as a user does: in processes of its own, with a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE_S = 60.0

# Several command lines in one process: starting Python and importing the app is what takes long.
_SEVERAL = """
import contextlib, io, json, sys
from whimbrel.cli.run import run
told = []
for args in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(args)
    told.append([args, status, out.getvalue(), err.getvalue()])
json.dump(told, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Ran:
    args: Sequence[str]
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What `--json` printed: one line, and nothing else."""
        lines = self.out.splitlines()
        assert len(lines) == 1, f"not one line of JSON: {self}"
        assert self.out.endswith("\n")
        return json.loads(lines[0])


class Shell:
    """Commands on one home."""

    def __init__(self, home: Path, **variables: str) -> None:
        self.home = home
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("WHIMBREL_")}
        inherited.pop("DATABASE_URL", None)
        # One worker: starting a second takes longer than what these tests give it to read.
        few = {"WHIMBREL_HOME": str(home), "WHIMBREL_INGEST_WORKERS": "1", "WHIMBREL_CACHE_ANSWERS_S": "0"}
        self.env: Mapping[str, str] = {**inherited, **few, **variables}

    def run(self, *args: str, ok: bool = True) -> Ran:
        """One command in a process of its own; with `ok`, it must end with status 0."""
        done = subprocess.run(
            [sys.executable, "-m", "whimbrel", *args],
            env=self.env,
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        ran = Ran(args, done.returncode, done.stdout, done.stderr)
        assert not ok or ran.status == 0, ran
        return ran

    def several(self, *lines: Sequence[str]) -> list[Ran]:
        """Several commands one after the other in one process."""
        done = subprocess.run(
            [sys.executable, "-c", _SEVERAL],
            input=json.dumps([list(line) for line in lines]),
            env=self.env,
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [Ran(*one) for one in json.loads(done.stdout)]

    @contextmanager
    def started(self, *args: str) -> Iterator[subprocess.Popen[str]]:
        """A command that stays; killed at the end if it has not ended."""
        log = self.home.parent / f"{args[0]}-{time.monotonic_ns()}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "whimbrel", *args],
                env=self.env,
                cwd=self.home.parent,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        process.log = log  # type: ignore[attr-defined]
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE_S:.0f} s: {what}"
        time.sleep(0.05)
