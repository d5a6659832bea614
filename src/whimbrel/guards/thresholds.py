"""Error rates and response times past what was set: told once when it begins, and once more when it is over.

Each process judges its own calls of a model: those of the last five minutes, of which there must be at least 20 for
anything to begin.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from whimbrel.catalog.usage import OK
from whimbrel.errors import ModelSlow
from whimbrel.guards.calls import Clock, Kind
from whimbrel.guards.meter import Meter, Seen

logger = logging.getLogger("whimbrel.guards")

What = Literal["error rate", "response time"]

LEAST = 20
"""Fewer calls tell nothing."""
CALM_S = 60.0
"""It is over when it has been no more than the threshold for so long: one more failure is no new episode."""
EACH_S = 1.0
"""It is judged so often."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """A model is past a threshold, or is no longer."""

    what: What
    kind: Kind
    model: str
    value: float
    """A share of calls, or seconds."""
    threshold: float
    calls: int
    mostly: str = ""
    """The error that most of the calls that failed ended with."""
    over: bool = False

    @property
    def said(self) -> str:
        if self.over:
            return f"{self.model}: its {self.what} is no longer above {self._amount(self.threshold)}"
        now = f"{self.model}: its {self.what} is {self._amount(self.value)}, above {self._amount(self.threshold)}"
        return f"{now}, of {self.calls} calls in five minutes" + (f"; mostly {self.mostly}" if self.mostly else "")

    def as_dict(self) -> dict[str, object]:
        return {
            "alert": self.what,
            "model": self.model,
            "kind": self.kind,
            "value": round(self.value, 4),
            "threshold": self.threshold,
            "calls": self.calls,
            "mostly": self.mostly,
        }

    def _amount(self, value: float) -> str:
        return f"{100 * value:.3g} %" if self.what == "error rate" else f"{value:.3g} s"


@dataclass(slots=True)
class _Episode:
    now: Crossing
    calm_since: float | None = None


class Thresholds:
    """Thread-safe. Judges in a thread of its own, which begins with `start`."""

    def __init__(
        self,
        meter: Meter,
        *,
        error_rate: float | None = None,
        response_s: float | None = None,
        on_alert: Callable[[Crossing], None] = lambda crossing: None,
        clock: Clock | None = None,
    ) -> None:
        """`error_rate`: a share of the calls; `response_s`: the mean of calls that were answered or timed out. None:
        not judged."""
        self._meter = meter
        set_: dict[What, float | None] = {"error rate": error_rate, "response time": response_s}
        self._limits = {what: limit for what, limit in set_.items() if limit is not None}
        self._on_alert = on_alert
        self._clock = clock or Clock()
        self._lock = threading.Lock()
        self._episodes: dict[tuple[What, Kind, str], _Episode] = {}
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Where there is anything to judge. Again and again is once."""
        if not self._limits or self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._end.is_set():
                self._thread = threading.Thread(target=self._run, name="whimbrel-thresholds", daemon=True)
                self._thread.start()

    def judge(self) -> None:
        """Begin and end what is to be told."""
        told: list[Crossing] = []
        with self._lock:
            for (kind, model), figures in self._meter.figures().items() if self._limits else ():
                recent = self._meter.recent(figures)
                for what, limit in self._limits.items():
                    crossing = self._judged(_crossing(what, kind, model, recent, limit))
                    told += [crossing] if crossing is not None else []
        for crossing in told:
            logger.warning("alert: %s", crossing.said)
            self._on_alert(crossing)

    def now(self) -> list[Crossing]:
        """What was begun and is not over."""
        with self._lock:
            return [episode.now for episode in self._episodes.values()]

    def close(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _judged(self, found: Crossing) -> Crossing | None:
        """What is to be told."""
        key = found.what, found.kind, found.model
        episode = self._episodes.get(key)
        above = found.value > found.threshold
        if episode is None:
            if not above or found.calls < LEAST:
                return None
            self._episodes[key] = _Episode(found)
            return found
        if above:
            episode.now, episode.calm_since = found, None
            return None
        now = self._clock.monotonic()
        episode.calm_since = now if episode.calm_since is None else episode.calm_since
        if now - episode.calm_since < CALM_S:
            return None
        del self._episodes[key]
        return found

    def _run(self) -> None:
        while not self._end.wait(EACH_S):
            self.judge()


def _crossing(what: What, kind: Kind, model: str, recent: Sequence[Seen], limit: float) -> Crossing:
    if what == "response time":
        waited = [seen.seconds for seen in recent if seen.outcome in (OK, ModelSlow.__name__)]
        mean = sum(waited) / len(waited) if waited else 0.0
        return Crossing(what, kind, model, mean, limit, len(waited), over=mean <= limit)
    failed = Counter(seen.outcome for seen in recent if seen.outcome != OK)
    share = failed.total() / len(recent) if recent else 0.0
    mostly = failed.most_common(1)[0][0] if failed else ""
    return Crossing(what, kind, model, share, limit, len(recent), mostly, over=share <= limit)
