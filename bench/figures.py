"""One JSON line for each figure, with what it is held against."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    bench: str
    value: float
    unit: str
    against: float | None = None
    """What was measured beside it, in the same unit."""
    target: str = ""
    """`>= 0.9` or `<= 400`, of the ratio where there is something beside it, else of the value; empty for a note."""

    @property
    def ratio(self) -> float | None:
        return self.value / self.against if self.against else None

    @property
    def ok(self) -> bool | None:
        if not self.target:
            return None
        sign, limit = self.target.split()
        measured = self.value if self.ratio is None else self.ratio
        return measured >= float(limit) if sign == ">=" else measured <= float(limit)

    def show(self) -> Figure:
        line = {
            "bench": self.bench,
            "value": rounded(self.value),
            "unit": self.unit,
            "against": rounded(self.against),
            "ratio": rounded(self.ratio),
            "target": self.target or None,
            "ok": self.ok,
        }
        print(json.dumps(line), flush=True)
        return self


def rounded(value: float | None) -> float | None:
    """Four significant digits: the rest is noise."""
    return None if value is None else float(f"{value:.4g}")


def note(text: str) -> None:
    """For the reader, not for a program."""
    print(json.dumps({"note": text}), flush=True)


def about_the_machine() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0]
    note(f"{cores} cores; load of the machine before the run {load:.2f}; {time.strftime('%Y-%m-%d')}")


@contextmanager
def clock() -> Iterator[Callable[[], float]]:
    """Yields what says the seconds since; after the block, the seconds it took."""
    began = time.perf_counter()
    ended: list[float] = []
    yield lambda: (ended[0] if ended else time.perf_counter()) - began
    ended.append(time.perf_counter())


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def rss_mb(pid: int) -> dict[str, float]:
    """Resident memory of a process in MB: all of it, and the part that is no file's (files' pages can be dropped)."""
    fields: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon", "VmHWM"):
            fields[name] = int(value.split()[0]) / 1024
    return fields
