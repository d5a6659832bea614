"""What processes share about models, breakers and rates: in the catalog of their home, or in Redis for several homes.

Where that place is out, each process goes on by itself, from what it knew last, says so once, and shares again as soon
as the place answers.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeVar

from whimbrel.catalog import guarding
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.guarding import BreakerRow
from whimbrel.errors import OperatorError, WhimbrelError
from whimbrel.guards.calls import Clock

logger = logging.getLogger("whimbrel.guards")

T = TypeVar("T")
Change = Callable[[BreakerRow], BreakerRow | None]
"""What a breaker is to be; None to leave it as it is. It may be called several times."""

LOOK_S = 1.0
"""What another process has found is known after so long."""
AGAIN_S = 2.0
"""A place that is out is looked at again after so long."""


class PlaceOut(OperatorError):
    """The place that processes share does not answer, or refuses."""


class Place(ABC):
    """Where breakers and rates are kept. Calls block. Each is atomic among all processes, and raises a
    `WhimbrelError` where the place is out."""

    said: str
    """Its name for people; no password."""

    @abstractmethod
    def breakers(self) -> dict[str, BreakerRow]:
        """Those that have anything to tell, by name."""

    @abstractmethod
    def change(self, name: str, change: Change) -> tuple[BreakerRow, bool]:
        """What the breaker is after that, and whether it was changed."""

    @abstractmethod
    def take(self, name: str, now: float, seconds: float, *, burst_s: float, longest_s: float) -> float:
        """Seconds to wait for `seconds` of a rate; where that is more than `longest_s`, nothing was taken."""

    def check(self) -> None:
        """Raises where it answers, and takes no changes."""

    def close(self) -> None:
        """Let go of connections."""


class Memory(Place):
    """Of this process."""

    said = "this process"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: Mapping[str, BreakerRow] = {}
        self._ready_at: dict[str, float] = {}

    def breakers(self) -> dict[str, BreakerRow]:
        return dict(self._rows)

    def row(self, name: str) -> BreakerRow:
        return self._rows.get(name) or BreakerRow(name)

    def put(self, row: BreakerRow) -> None:
        with self._lock:
            self._rows = {**self._rows, row.name: row}

    def put_all(self, rows: Mapping[str, BreakerRow]) -> None:
        """And no others."""
        with self._lock:
            self._rows = rows

    def change(self, name: str, change: Change) -> tuple[BreakerRow, bool]:
        with self._lock:
            row = change(self.row(name))
            if row is None:
                return self.row(name), False
            self._rows = {**self._rows, name: row}
            return row, True

    def take(self, name: str, now: float, seconds: float, *, burst_s: float, longest_s: float) -> float:
        with self._lock:
            ready_at, wait = guarding.due(self._ready_at.get(name, 0.0), now, seconds, burst_s)
            if wait <= longest_s:
                self._ready_at[name] = ready_at
            return wait


class InCatalog(Place):
    """Of the home."""

    said = "the catalog"

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def breakers(self) -> dict[str, BreakerRow]:
        with self._catalog.read() as connection:
            return guarding.breakers(connection)

    def change(self, name: str, change: Change) -> tuple[BreakerRow, bool]:
        with self._catalog.write() as connection:
            return guarding.change_breaker(connection, name, change)

    def take(self, name: str, now: float, seconds: float, *, burst_s: float, longest_s: float) -> float:
        with self._catalog.write() as connection:
            return guarding.take_rate(connection, name, now, seconds, burst_s=burst_s, longest_s=longest_s)


class Shared:
    """A place, and what this process knows of it. Thread-safe; raises nothing where the place is out."""

    def __init__(self, place: Place | None = None, clock: Clock | None = None) -> None:
        """Without a place nothing is shared."""
        self._place = place
        self._clock = clock or Clock()
        self._memory = Memory()
        self._looked = float("-inf")
        self._looks = 0
        self._looking = threading.Lock()
        self._turning = threading.Lock()
        self.out = ""
        """Why the place is out; empty where it is not."""

    @property
    def alone(self) -> bool:
        """Nothing blocks: this process goes by itself."""
        return self._place is None or bool(self.out)

    def state(self) -> dict[str, str | None]:
        """`in`: the place; `out`: why each process goes by itself now."""
        return {"in": (self._place or self._memory).said, "out": self.out or None}

    # --- looking -----------------------------------------------------------------------------------------------------

    def due(self) -> bool:
        """It is time to look. Of a place that is out only one caller is told so."""
        if self._place is None:
            return False
        now = self._clock.monotonic()
        if not self.out:
            return now - self._looked > LOOK_S
        with self._turning:
            again = now - self._looked > AGAIN_S
            if again:
                self._looked = now
            return again

    def look(self) -> None:
        """Read what others have written. Who comes while another looks waits for what that one finds."""
        if self._place is None:
            return
        before = self._looks
        with self._looking:
            if self._looks != before:
                return
            self._looked = self._clock.monotonic()
            try:
                if self.out:
                    self._place.check()
                rows = self._place.breakers()
            except WhimbrelError as error:
                self._went_out(error)
            else:
                self._memory.put_all(rows)
                self._came_back()
            self._looks += 1

    def known(self, name: str) -> BreakerRow:
        return self._memory.row(name)

    def breakers(self) -> list[BreakerRow]:
        """Those that were known at the last look."""
        return list(self._memory.breakers().values())

    # --- changing ----------------------------------------------------------------------------------------------------

    def change(self, name: str, change: Change) -> tuple[BreakerRow, bool]:
        """As `Place.change`."""

        def changed(place: Place) -> tuple[BreakerRow, bool]:
            found = place.change(name, change)
            if place is not self._memory:
                self._memory.put(found[0])
            return found

        return self._at(changed)

    def take(self, name: str, now: float, seconds: float, *, burst_s: float, longest_s: float) -> float:
        """As `Place.take`."""
        return self._at(lambda place: place.take(name, now, seconds, burst_s=burst_s, longest_s=longest_s))

    def close(self) -> None:
        if self._place is not None:
            self._place.close()

    def _at(self, do: Callable[[Place], T]) -> T:
        if self._place is not None and not self.out:
            try:
                return do(self._place)
            except WhimbrelError as error:
                self._went_out(error)
        return do(self._memory)

    def _went_out(self, error: WhimbrelError) -> None:
        with self._turning:
            said, self.out = self.out, error.message
            self._looked = self._clock.monotonic()
        if not said:
            logger.warning("breakers and rates of models are kept by this process for itself: %s", error.message)

    def _came_back(self) -> None:
        with self._turning:
            said, self.out = self.out, ""
        if said:
            logger.warning("breakers and rates of models are shared again, in %s", self.state()["in"])
