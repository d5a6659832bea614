"""Progress on stderr: one line that is rewritten on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

from whimbrel.cli.out import shown

if TYPE_CHECKING:
    from whimbrel.catalog.listing import Lag
    from whimbrel.domain import Job

REWRITE_S = 0.2
REPEAT_S = 2.0


class Progress:
    """Shows jobs, lags and rows as they come. `end` leaves the last state standing."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        """`quiet`: nothing but on a terminal (a program reads the JSON)."""
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._silent = quiet and not self._terminal
        self._every = REWRITE_S if self._terminal else REPEAT_S
        self._began = time.monotonic()
        self._last_at = self._began - self._every + 0.3
        self._last = ""
        self._standing = ""
        self._vectors: tuple[float, int] | None = None
        self._phase = ("", 0.0, 0)

    def job(self, job: Job) -> None:
        """For `Service.finish(on_progress=...)`."""
        if job.state == "queued" and job.error:
            self._show(f"{job.kind}: {job.error} It will be tried again.")
        elif job.state in ("running", "waiting", "done"):
            self._show(f"{job.kind}: {_counts(dict(job.progress)) or job.state}{self._rate(job)}")

    def lag(self, lag: Lag) -> None:
        """For `Service.finish(on_lag=...)`."""
        if self._vectors is None:
            self._vectors = (time.monotonic(), lag.vectors)
        since, before = self._vectors
        made, took = lag.vectors - before, time.monotonic() - since
        rate = f", {made / took:,.0f} texts/s embedded" if made and took > 1 else ""
        words, meaning = (f"{min(at, lag.position):,}" for at in (lag.lexicon, lag.store))
        self._show(f"indexing {lag.position:,} changes: {words} by words, {meaning} by meaning{rate}")

    def rows(self, table: str, done: int, total: int) -> None:
        """For backup and restore."""
        self._show(f"{table}: {done:,} of {total:,} rows")

    def step(self, what: str, done: int, total: int) -> None:
        """For `whimbrel.evaluation.evaluate(on_progress=...)`."""
        self._show(f"{what}: {done:,} of {total:,}")

    def paced(self, what: str, done: int, total: int) -> None:
        """For `whimbrel.move.copy`: with the rate, and the time that is left at this rate."""
        if what != self._phase[0] or done < self._phase[2]:
            self._phase = (what, time.monotonic(), done)
        _, since, before = self._phase
        took, did = time.monotonic() - since, done - before
        pace = f", {did / took:,.0f} rows/s, {_left((total - done) * took / did)} left" if did and took > 1 else ""
        self._show(f"{what}: {done:,} of {total:,}{pace}" if total else what)

    def doing(self, what: str) -> None:
        """For steps that are not counted."""
        self._show(what)

    def end(self) -> None:
        if self._silent or not self._standing:
            return
        if self._last != self._standing:
            self._write(self._last)
        if self._terminal:
            self._stream.write("\n")
            self._stream.flush()
        self._standing = ""

    def _rate(self, job: Job) -> str:
        done, took = job.progress.get("documents"), time.monotonic() - self._began
        return f" ({done / took:,.1f} documents/s)" if isinstance(done, int) and done and took > 1 else ""

    def _show(self, text: str) -> None:
        if self._silent or text == self._last:
            return
        self._last = text
        if time.monotonic() - self._last_at >= self._every:
            self._write(text)

    def _write(self, text: str) -> None:
        self._last_at = time.monotonic()
        self._standing = text
        said = shown(text)
        self._stream.write(f"\r\x1b[2K{said}" if self._terminal else f"{said}\n")
        self._stream.flush()


def _left(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _counts(progress: dict[str, object]) -> str:
    progress.pop("position", None)
    told = []
    for name, value in progress.items():
        word = name.replace("_", " ")
        if isinstance(value, int):
            if value or name == "documents":
                told.append(f"{value:,} {word}")
        else:
            told.append(f"{word} {value}")
    return ", ".join(told)
