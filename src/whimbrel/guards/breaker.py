"""The breaker: a model that failed again and again is not asked, but for one probe at a time, by one process."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, auto
from functools import partial

from whimbrel.catalog.guarding import BreakerRow
from whimbrel.errors import ModelBroken, ModelDown, ModelError, ModelPaused, ModelSlow
from whimbrel.guards.calls import Call, Clock, T
from whimbrel.guards.shared import Shared

logger = logging.getLogger("whimbrel.guards")

PROBE_S = 90.0
"""A probe of a process that died is given up after so long, and so are its tries."""
TRY_S = 0.05
"""Who waits for a try looks again after so long."""


class Why(Enum):
    """Why a call may be made."""

    FREE = auto()
    """Nothing speaks against it."""
    TRY = auto()
    """The model failed the last time; this call is one of those that may find out whether it is out."""
    PROBE = auto()
    """The breaker is open; this is the one call that asks whether it is back."""


@dataclass(slots=True, eq=False)
class Pass:
    """Of one call under way."""

    why: Why


@dataclass(frozen=True, slots=True)
class Rules:
    threshold: int = 8
    """Failures in a row that open it: of a provider that fails every third call, once in 7,000 calls or so."""
    window_s: float = 60.0
    """A failure longer ago is none in a row."""
    pause_s: float = 30.0
    """For so long nobody asks; then one does."""


class Board:
    """All breakers, by their rules."""

    def __init__(self, shared: Shared, rules: Rules, clock: Clock | None = None) -> None:
        self.rules = rules
        self.clock = clock or Clock()
        self._shared = shared

    async def look_if_due(self) -> None:
        """Nobody waits for a place that was out when it was last asked."""
        if self._shared.due():
            alone = self._shared.alone
            looking = asyncio.get_running_loop().run_in_executor(None, self._shared.look)
            if not alone:
                await looking

    def row(self, name: str) -> BreakerRow:
        return self._shared.known(name)

    def failed(self, name: str, reason: str, *, tried: bool) -> BreakerRow:
        rules, now = self.rules, self.clock.wall()
        return self._shared.change(
            name,
            lambda row: row.failed(
                now, reason, tried=tried, threshold=rules.threshold, window_s=rules.window_s, pause_s=rules.pause_s
            ),
        )[0]

    def try_(self, name: str) -> tuple[BreakerRow, bool]:
        """Whether one more call of a model that has failed is under way now; see `BreakerRow.try_`."""
        rules, now = self.rules, self.clock.wall()
        return self._shared.change(
            name, lambda row: row.try_(now, threshold=rules.threshold, window_s=rules.window_s, hold_s=PROBE_S)
        )

    def under_way(self, name: str, calls: int) -> None:
        """These began before the model failed."""
        now = self.clock.wall()
        self._shared.change(name, lambda row: row.under_way(calls, now, PROBE_S))

    def let_go(self, name: str, *, probe: bool) -> None:
        """A call ended that has shown nothing."""
        self._shared.change(name, lambda row: replace(row, probe_until=0.0) if probe else row.tried())

    def worked(self, name: str) -> None:
        self._shared.change(name, BreakerRow.worked)

    def claim(self, name: str, opened: int) -> bool:
        """Whether the caller may ask the model of an open breaker; see `BreakerRow.claimed`."""
        now = self.clock.wall()
        return self._shared.change(name, lambda row: row.claimed(opened, now, PROBE_S))[1]

    def open_ones(self) -> list[BreakerRow]:
        self._shared.look()
        return [row for row in self._shared.breakers() if row.is_open]


class Breaker:
    """Of one model. What is no fault of the provider's service does not touch it: a wrong key, a request that is
    refused, a rate limit.

    After a failure no more calls are under way at a time than would, if all of them failed, open it: a provider that is
    dead costs all processes together the threshold of timeouts, however many wait. One answer, and all may pass.

    When it opened stands in the home by the wall clock; how long it stays open is measured here, by a clock that does
    not jump, from when this process learned of it: never longer than the pause.
    """

    def __init__(self, name: str, board: Board) -> None:
        self._name = name
        self._board = board
        self._opened = (-1, 0.0)
        self._until = 0.0
        self._free: set[Pass] = set()
        self._lock = threading.Lock()

    async def __call__(self, call: Call[T]) -> T:
        """Raises `ModelPaused`, and what the call raises."""
        await self._board.look_if_due()
        leave = await self._pass()
        try:
            found = await call()
        except (ModelDown, ModelSlow, ModelBroken) as error:
            await asyncio.to_thread(self._failed, error, leave)
            raise
        except ModelError:  # it answers: what is wrong is a key, a limit or a request
            if leave.why is Why.PROBE:
                await self._worked()
            elif leave.why is Why.TRY:
                await asyncio.to_thread(self._board.let_go, self._name, probe=False)
            raise
        except BaseException:  # nobody waits any more
            if leave.why is not Why.FREE:
                let_go = partial(self._board.let_go, self._name, probe=leave.why is Why.PROBE)
                asyncio.get_running_loop().run_in_executor(None, let_go)
            raise
        finally:
            with self._lock:
                self._free.discard(leave)
        await self._worked()
        return found

    async def _pass(self) -> Pass:
        """Waits while so many calls are under way that they may open it."""
        row = self._board.row(self._name)
        while row.is_suspect(self._board.clock.wall(), self._board.rules.window_s):
            row, may_try = await asyncio.to_thread(self._try)
            if may_try:
                return Pass(Why.TRY)
            if row.is_suspect(self._board.clock.wall(), self._board.rules.window_s):
                await asyncio.sleep(TRY_S)
        if row.is_open:
            await self._probe(row)
            return Pass(Why.PROBE)
        leave = Pass(Why.FREE)
        with self._lock:
            self._free.add(leave)
        return leave

    def _try(self) -> tuple[BreakerRow, bool]:
        self._tell_of_free_ones()
        return self._board.try_(self._name)

    def _tell_of_free_ones(self) -> None:
        """The model has failed: calls that are under way since before that may fail as well, and count from now on."""
        with self._lock:
            free, self._free = self._free, set()
            for leave in free:
                leave.why = Why.TRY
        if free:
            self._board.under_way(self._name, len(free))

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
        if (row.opened, row.open_until) != self._opened:
            self._opened = (row.opened, row.open_until)
            ahead = row.open_until - self._board.clock.wall()
            self._until = now + min(max(ahead, 0.0), self._board.rules.pause_s)
        return self._until - now

    def _failed(self, error: ModelError, leave: Pass) -> None:
        before = self._board.row(self._name)
        with self._lock:
            self._free.discard(leave)
        row = self._board.failed(self._name, error.code, tried=leave.why is Why.TRY)
        self._tell_of_free_ones()
        if row.opened != before.opened:
            logger.warning(
                "%s has failed %d times in a row (%s): it is not asked for %g s",
                self._name, row.failures, row.reason, self._board.rules.pause_s,
            )  # fmt: skip
