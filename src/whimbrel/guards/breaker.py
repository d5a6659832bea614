"""The breaker: a model that failed again and again is not asked, but for one probe at a time, by one process."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from datetime import datetime

from whimbrel.catalog import guarding
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.guarding import BreakerRow
from whimbrel.errors import ModelBroken, ModelDown, ModelError, ModelPaused, ModelSlow, WhimbrelError
from whimbrel.guards.calls import Call, Clock, T

logger = logging.getLogger("whimbrel.guards")

LOOK_S = 1.0
"""What another process has found is known after so long."""
PROBE_S = 90.0
"""A probe of a process that died is given up after so long."""


@dataclass(frozen=True, slots=True)
class Rules:
    threshold: int = 8
    """Failures in a row that open it: of a provider that fails every third call, once in 7,000 calls or so."""
    window_s: float = 60.0
    """A failure longer ago is none in a row."""
    pause_s: float = 30.0
    """For so long nobody asks; then one does."""


class Board:
    """The rows of all breakers of a home, read at most once a second. Without a catalog: of this process."""

    def __init__(self, catalog: Catalog | None, rules: Rules, clock: Clock | None = None) -> None:
        self.rules = rules
        self.clock = clock or Clock()
        self._catalog = catalog
        self._rows: dict[str, BreakerRow] = {}
        self._looked = float("-inf")
        self._lock = threading.Lock()

    def due(self) -> bool:
        return self._catalog is not None and self.clock.monotonic() - self._looked > LOOK_S

    def row(self, name: str) -> BreakerRow:
        return self._rows.get(name) or BreakerRow(name)

    def look(self) -> None:
        """Read what others have written. A catalog that is out leaves what was known."""
        if self._catalog is None:
            return
        self._looked = self.clock.monotonic()
        try:
            with self._catalog.read() as connection:
                self._rows = guarding.breakers(connection)
        except WhimbrelError as error:
            logger.warning("the state of the models' breakers could not be read: %s", error.message)

    def failed(self, name: str, reason: str) -> BreakerRow:
        rules, now = self.rules, self.clock.wall()
        if self._catalog is not None:
            try:
                with self._catalog.write() as connection:
                    return self._put(
                        guarding.breaker_failed(
                            connection, name, now, reason, threshold=rules.threshold, window_s=rules.window_s,
                            pause_s=rules.pause_s,
                        )
                    )  # fmt: skip
            except WhimbrelError as error:
                logger.warning("a model's breaker is counted in this process only: %s", error.message)
        with self._lock:
            row = self.row(name).failed(
                now, reason, threshold=rules.threshold, window_s=rules.window_s, pause_s=rules.pause_s
            )
            return self._put(row)

    def worked(self, name: str) -> BreakerRow:
        if self._catalog is not None:
            try:
                with self._catalog.write() as connection:
                    return self._put(guarding.breaker_worked(connection, name))
            except WhimbrelError as error:
                logger.warning("a model's breaker is closed in this process only: %s", error.message)
        return self._put(BreakerRow(name, opened=self.row(name).opened))

    def claim(self, name: str, opened: int) -> bool:
        if self._catalog is not None:
            try:
                with self._catalog.write() as connection:
                    return guarding.claim_probe(connection, name, opened, self.clock.wall(), PROBE_S)
            except WhimbrelError as error:
                logger.warning("a model's breaker is probed by this process alone: %s", error.message)
        with self._lock:
            row = self.row(name)
            now = self.clock.wall()
            if row.opened != opened or not row.is_open or now <= row.probe_until <= now + 2 * PROBE_S:
                return False
            self._put(BreakerRow(name, row.failures, row.failed_at, opened, row.open_until, now + PROBE_S, row.reason))
            return True

    def open_ones(self) -> list[BreakerRow]:
        self.look()
        return [row for row in self._rows.values() if row.is_open]

    def _put(self, row: BreakerRow) -> BreakerRow:
        self._rows = {**self._rows, row.name: row}
        return row


class Breaker:
    """Of one model. What is no fault of the provider's service does not touch it: a wrong key, a request that is
    refused, a rate limit.

    When it opened stands in the home by the wall clock; how long it stays open is measured here, by a clock that does
    not jump, from when this process learned of it: never longer than the pause.
    """

    def __init__(self, name: str, board: Board) -> None:
        self._name = name
        self._board = board
        self._opened = -1
        self._until = 0.0

    async def __call__(self, call: Call[T]) -> T:
        """Raises `ModelPaused`, and what the call raises."""
        if self._board.due():
            await asyncio.to_thread(self._board.look)
        row = self._board.row(self._name)
        probing = row.is_open
        if probing:
            await self._probe(row)
        try:
            found = await call()
        except (ModelDown, ModelSlow, ModelBroken) as error:
            await asyncio.to_thread(self._failed, error)
            raise
        except ModelError:
            if probing:  # it answers: what is wrong is a key, a limit or a request
                await self._worked()
            raise
        await self._worked()
        return found

    async def _worked(self) -> None:
        row = self._board.row(self._name)
        if row.failures or row.is_open:
            await asyncio.to_thread(self._board.worked, self._name)
            if row.is_open:
                logger.warning("%s answers again", self._name)

    async def _probe(self, row: BreakerRow) -> None:
        left = self._left(row)
        if left <= 0 and await asyncio.to_thread(self._board.claim, self._name, row.opened):
            return
        until = datetime.fromtimestamp(self._board.clock.wall() + max(left, 0)).strftime("%H:%M:%S")
        raise ModelPaused(
            f"{self._name}: breaker open until {until}, after {row.failures} failures in a row ({row.reason}).",
            "It is asked again by itself then.",
            retry_after_s=max(left, 1.0),
        )

    def _left(self, row: BreakerRow) -> float:
        now = self._board.clock.monotonic()
        if row.opened != self._opened:
            self._opened = row.opened
            ahead = row.open_until - self._board.clock.wall()
            self._until = now + min(max(ahead, 0.0), self._board.rules.pause_s)
        return self._until - now

    def _failed(self, error: ModelError) -> None:
        before = self._board.row(self._name)
        row = self._board.failed(self._name, error.code)
        if row.opened != before.opened:
            logger.warning(
                "%s has failed %d times in a row (%s): it is not asked for %g s",
                self._name, row.failures, row.reason, self._board.rules.pause_s,
            )  # fmt: skip
