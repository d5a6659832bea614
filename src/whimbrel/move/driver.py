"""The job that takes a move from state to state.

The views do the work: the target is built and fed like any view, by the owner. This looks where they stand, writes down
each state that was reached, compares when there is something to compare, and switches when asked to. Killed anywhere,
it goes on from the row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from whimbrel.catalog import collections, moves
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.engine import now
from whimbrel.catalog.moves import Move
from whimbrel.domain import MoveState, ViewKind, ViewState
from whimbrel.errors import (
    CatalogUnavailable,
    Conflict,
    DiskFull,
    ModelBusy,
    ModelDown,
    ModelSlow,
    StoreUnavailable,
    WhimbrelError,
)
from whimbrel.move.checks import Asker, Checker, Judge
from whimbrel.move.cutting import Cutter
from whimbrel.move.report import Reporter
from whimbrel.move.steps import SEARCHED, SWITCHABLE, VERIFIED, check_verify
from whimbrel.move.switching import Switcher
from whimbrel.owner.owner import Owner
from whimbrel.owner.runner import JobContext

LOOK_S = 0.1
"""Between two looks at views that are being built."""
SAMPLE_S = 1.0

LONGEST_PAUSE_S = 10.0

_BUILDING = (MoveState.COPYING, MoveState.CATCHING_UP)
_PASSES = (StoreUnavailable, CatalogUnavailable, DiskFull, ModelDown, ModelSlow, ModelBusy)
_GOES_ON = "It goes on by itself when its trouble is over; `whimbrel move abort` ends it."


class Mover:
    """Handler of `move` jobs: `{"move": id, "do": "build" | "verify" | "switch" | "rollback"}`.

    `"mend": true` with `build`: what is found to differ is written again, once.
    """

    def __init__(self, asker: Asker, cutter: Cutter, judge: Judge, reporter: Reporter) -> None:
        self._asker = asker
        self._cutter = cutter
        self._judge = judge
        self._reporter = reporter

    async def __call__(self, context: JobContext) -> Mapping[str, Any]:
        owner = context.owner
        if owner is None:
            raise Conflict("Only the owner can move a collection.", "Start `whimbrel serve` or `whimbrel owner`.")
        run = _Run(context, owner, self._asker, self._cutter, self._judge)
        try:
            await self._do(run, str(context.job.args["do"]))
        except WhimbrelError:
            await asyncio.to_thread(self._reporter.try_to_write, run.id)
            raise
        await asyncio.to_thread(self._reporter.try_to_write, run.id)
        move = await run.read()
        return {"move": move.id, "state": move.state.value, **({"error": move.error} if move.error else {})}

    async def _do(self, run: _Run, what: str) -> None:
        match what:
            case "build":
                await run.build()
            case "verify":
                await run.verify()
            case "switch":
                await run.switch()
            case "rollback":
                await run.switch(back=True)


class _Run:
    """One job's work on one move."""

    def __init__(self, context: JobContext, owner: Owner, asker: Asker, cutter: Cutter, judge: Judge) -> None:
        self.context = context
        self.owner = owner
        self.id = str(context.job.args["move"])
        self._cutter = cutter
        self._checker = Checker(context, owner, asker, judge)
        self._switcher = Switcher(context, owner)
        self._mend = bool(context.job.args.get("mend"))
        self._sampled = 0.0
        self._base: int | None = None

    async def read(self) -> Move:
        def work() -> Move:
            with self.context.catalog.read() as connection:
                return moves.get(connection, self.id)

        return await asyncio.to_thread(work)

    async def change(self, *of: MoveState, **values: Any) -> Move | None:
        """Where it is in one of these states still; None otherwise: what has become of it meanwhile stands."""

        def work() -> Move | None:
            with self.context.catalog.write(fence=self.context.fence) as connection:
                if moves.lock(connection, self.id).state not in of:
                    return None
                return moves.change(connection, self.id, **values)

        return await asyncio.to_thread(work)

    # --- building ----------------------------------------------------------------------------------------------------

    async def build(self) -> None:
        """Until the move is ready (or switched, where that was asked for), failed, or ended by a person."""
        while True:
            move = await self.read()
            if move.paused and move.state in _BUILDING:
                await self.context.checkpoint(state="paused")
                await asyncio.sleep(10 * LOOK_S)
            elif move.state in _BUILDING:
                await self._build_on(move)
            elif move.state is MoveState.VERIFYING:
                await self.verify(mend=self._mend)
            elif move.state in (MoveState.READY, MoveState.PREPARED) and move.request.auto_switch:
                await self.switch()
            else:
                return

    async def _build_on(self, move: Move) -> None:
        if move.cutting:
            await self._cutter.cut_some(self.context, move)
            return
        rows = await asyncio.to_thread(self._targets, move)
        error = " ".join(row.view.error for row in rows if row.view.error)
        if error != move.error:
            move = await self.change(*_BUILDING, error=error, hint=_GOES_ON if error else "") or move
        if all(row.view.state in (ViewState.STANDBY, ViewState.LIVE) for row in rows):
            await self.change(*_BUILDING, state=MoveState.VERIFYING, error="", hint="")
            return
        copied = all(row.build_after >= row.build_upto for row in rows)
        if copied and move.state is MoveState.COPYING:
            move = await self.change(MoveState.COPYING, state=MoveState.CATCHING_UP) or move
        await self._sample(move, rows)
        await asyncio.sleep(LOOK_S)

    def _targets(self, move: Move) -> list[ViewRow]:
        with self.context.catalog.read() as connection:
            rows = [collections.view(connection, key) for key in move.targets]
        lost = next((row for row in rows if row.view.state is ViewState.RETIRED), None)
        if lost is not None:
            raise Conflict(f"View {lost.id}, which the move was building, has been dropped: {lost.view.error}")
        return rows

    async def _sample(self, move: Move, rows: list[ViewRow]) -> None:
        if now() - self._sampled < SAMPLE_S:
            return
        self._sampled = now()
        store = next(row for row in rows if row.view.kind is ViewKind.STORE)
        follower = self.owner.views.followers.get(store.id)
        written = follower.written if follower is not None else 0
        if self._base is None:
            self._base = int(move.samples[-1]["rows"]) - written if move.samples else 0
        done = max(0, self._base + written)

        def work() -> None:
            with self.context.catalog.write(fence=self.context.fence) as connection:
                collection = collections.by_id(connection, move.collection_id)
                lag = collection.head - store.view.position if collection is not None else 0
                moves.sample(connection, move, rows=done, lag=lag)

        await asyncio.to_thread(work)
        total = int(move.plan.get("rows", 0))
        waiting: dict[str, Any] = {"waiting_for": move.error} if move.error else {}
        await self.context.checkpoint(state=move.state.value, rows=done, of=total, **waiting)

    # --- verifying ---------------------------------------------------------------------------------------------------

    async def verify(self, *, mend: bool = False) -> None:
        """Compare everything. What was ready and is found to differ is not ready any more."""
        move = await self.read()
        check_verify(move)
        if move.state in SEARCHED:
            checks = await self._checker.check(move)
            await self.change(*SEARCHED, checks=checks)
            return
        begun = await self.change(*VERIFIED, state=MoveState.VERIFYING, accepted=False, error="", hint="")
        if begun is None:
            raise Conflict(f"Move {move.id} is {(await self.read()).state} now: it was not verified.")
        try:
            checks = await self._checked(begun, mend=mend)
        except WhimbrelError as error:
            broke_off: dict[str, Any] = {"checks": {}, "error": error.message, "hint": error.hint}
            await self.change(MoveState.VERIFYING, state=MoveState.FAILED, **broke_off)
            raise
        except Exception as defect:  # the job fails, and its log says where: the move must not seem to be at it still
            said = f"{type(defect).__name__} inside the comparison; the owner's log has the details."
            hint = "This is a bug: please report it. Nothing was switched; `whimbrel move resume` compares again."
            await self.change(MoveState.VERIFYING, state=MoveState.FAILED, checks={}, error=said, hint=hint)
            raise
        if checks["holds"]:
            position = min(int(report["position"]) for report in checks["views"])
            ready: dict[str, Any] = {"checks": checks, "position": position, "error": "", "hint": ""}
            await self.change(MoveState.VERIFYING, state=MoveState.READY, **ready)
        else:
            hint = (
                "Nothing was switched. `whimbrel move resume` writes what differs again and compares again; "
                "`whimbrel move verify --accept` accepts what `whimbrel move status` names; `whimbrel move abort` ends "
                "the move."
            )
            failed: dict[str, Any] = {"checks": checks, "error": checks["said"], "hint": hint}
            await self.change(MoveState.VERIFYING, state=MoveState.FAILED, **failed)

    async def _checked(self, move: Move, *, mend: bool) -> dict[str, Any]:
        """All checks, when what they need answers: an outage says nothing of the rows."""
        pause = LOOK_S
        while True:
            try:
                return await self._checker.check(move, mend=mend)
            except _PASSES as error:
                await self.change(MoveState.VERIFYING, error=error.message, hint=_GOES_ON)
                await self.context.checkpoint(state="verifying", waiting_for=error.message)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            move = await self.read()
            if move.state is not MoveState.VERIFYING:
                raise Conflict(f"Move {move.id} is {move.state} now: it was not compared to the end.")

    # --- switching ---------------------------------------------------------------------------------------------------

    async def switch(self, *, back: bool = False) -> None:
        """A target that was built anew since the last comparison is compared first."""
        move = await self.read()
        if not back and move.state in SWITCHABLE and not _compared(move):
            await self.verify()
            move = await self.read()
            if not move.checks.get("holds"):
                raise Conflict(f"{move.checks.get('said') or move.error} Nothing was switched.", move.hint)
        await self._switcher.switch(move, back=back)


def _compared(move: Move) -> bool:
    """Whether its views are those that were compared."""
    return {int(one["view"]) for one in move.checks.get("views", ())} >= set(move.targets)
