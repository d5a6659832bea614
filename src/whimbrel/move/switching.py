"""The switch: every process has the view open, then one row changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from whimbrel.catalog import collections, log, moves, processes
from whimbrel.catalog.engine import now
from whimbrel.catalog.moves import Move
from whimbrel.catalog.processes import Process
from whimbrel.domain import MoveState, ViewState
from whimbrel.errors import Conflict, StoreUnavailable, ViewDamaged
from whimbrel.move.steps import check_switch
from whimbrel.owner.owner import Owner
from whimbrel.owner.runner import JobContext
from whimbrel.owner.tasks import follower_of

PREPARE_S = 60.0
"""How long a switch waits until every process has the view open."""
LEVEL_S = 60.0
"""How long it waits until the view is as far as the one that is searched."""
LOOK_S = 0.05
COUNTS = 10
"""Tries to count a view where it stands at the end of its log: others write meanwhile."""
NOTICE_S = 2.5
"""A process that searches has seen by then that there is a move, and said that it is there."""


class Switcher:
    def __init__(self, context: JobContext, owner: Owner) -> None:
        self._context = context
        self._catalog = context.catalog
        self._owner = owner

    async def switch(self, move: Move, *, back: bool = False) -> Move:
        """Make the target live, or with `back` the source again. Raises `Conflict`; then nothing was switched."""
        if self._context.cursor.get("switched"):  # by an owner that was killed before it could say so
            return move
        check_switch(move, back=back)
        views = move.sources if back else move.targets
        await self._count(move, views, back=back)
        await self._prepared(move, views)
        if not back:
            await asyncio.to_thread(self._change, move.id, MoveState.PREPARED)
        deadline = now() + LEVEL_S
        while True:
            switched = await asyncio.to_thread(self._try, move.id, back)
            if switched is not None:
                self._owner.wake()
                return switched
            if now() > deadline:
                if not back:
                    await asyncio.to_thread(self._change, move.id, MoveState.READY)
                raise Conflict(
                    f"View {views[0]} lags behind the one that is searched, for {LEVEL_S:.0f} s now. "
                    "Nothing was switched.",
                    "`whimbrel status` shows why; switch again when it has caught up.",
                )
            await asyncio.sleep(LOOK_S)

    async def _count(self, move: Move, views: Sequence[int], *, back: bool) -> None:
        """A last look, without reading the rows: none has been lost since they were compared. Where others write so
        much that the view never stands at the end of its log, it is not counted."""
        for key in views:
            if (frozen := self._owner.views.frozen(key)) is not None:
                await frozen.exists()  # raises where its database is gone
                continue
            try:
                follower = await follower_of(self._owner, key)  # an owner that has just begun has not opened it yet
            except StoreUnavailable as error:
                hint = "Switch again when `whimbrel status` shows no error."
                raise Conflict(f"{error.message} Nothing was switched.", hint) from error
            try:
                for _ in range(COUNTS):
                    async with follower.turn:
                        if await follower.check_count():
                            break
                    await asyncio.sleep(LOOK_S)
            except ViewDamaged as damaged:
                said = f"{damaged.message} It has changed since it was verified."
                hint = (
                    f"`whimbrel view rebuild {key}` makes it anew from the catalog; then roll back."
                    if back
                    else "`whimbrel move resume` finds what differs, and writes it again."
                )
                if not back:
                    await asyncio.to_thread(self._change, move.id, MoveState.FAILED, error=said, hint=hint)
                raise Conflict(f"{said} Nothing was switched.", hint) from damaged

    async def _prepared(self, move: Move, views: Sequence[int]) -> None:
        """Until each process that searches has opened the views. One that ended meanwhile is not waited for."""
        since = max((at for state, at in move.history), default=0.0)
        await asyncio.sleep(max(0.0, move.created_at + NOTICE_S - now()))
        deadline = max(now(), since) + PREPARE_S
        while True:
            missing = await asyncio.to_thread(self._unprepared, set(views))
            if not missing:
                return
            if now() > deadline:
                raise Conflict(
                    f"{_named(missing)} could not open view {views[0]} in {PREPARE_S:.0f} s. Nothing was switched.",
                    "Mend what is named, or stop that process; then switch again.",
                )
            await self._context.checkpoint(waiting_for=f"{len(missing)} processes to open the view")
            await asyncio.sleep(2 * LOOK_S)

    def _unprepared(self, views: set[int]) -> list[Process]:
        with self._catalog.read() as connection:
            return [one for one in processes.present(connection) if not views <= set(one.prepared)]

    def _change(self, move_id: str, state: MoveState, **values: Any) -> None:
        """Unless the move is no longer to be switched: it was aborted, or is being verified again."""
        with self._catalog.write(fence=self._context.fence) as connection:
            check_switch(moves.lock(connection, move_id))
            moves.change(connection, move_id, state=state, **values)

    def _try(self, move_id: str, back: bool) -> Move | None:
        """The switch itself; None while the view is behind the one that it takes the place of."""
        with self._catalog.write(fence=self._context.fence) as connection:
            log.lock(connection, moves.get(connection, move_id).collection_id)
            move = moves.lock(connection, move_id)
            check_switch(move, back=back)
            collection = collections.by_id(connection, move.collection_id)
            if collection is None:
                raise Conflict(f"The collection of move {move_id} has been deleted. Nothing was switched.")
            live = {collection.store_view_id, collection.lexicon_view_id}
            pairs = zip(move.sources, move.targets, strict=False)
            for source, target in pairs:
                to, from_ = (source, target) if back else (target, source)
                if to in live:
                    continue
                new, old = collections.view(connection, to), collections.view(connection, from_)
                if new.view.state is ViewState.FROZEN:
                    continue  # it does not follow: what came since is not in it, and its lag says so
                if new.view.state is not ViewState.STANDBY:
                    raise Conflict(f"View {to} is {new.view.state}: it does not stand by. Nothing was switched.")
                if new.view.position < old.view.position:
                    return None
            moves.switch(connection, move, back=back)
            self._context.checkpoint_in(connection, cursor={"switched": True})
            state = MoveState.ROLLED_BACK if back else MoveState.SWITCHED
            return moves.change(connection, move_id, state=state, error="", hint="")


def _named(missing: Sequence[Process]) -> str:
    said = [
        f"process {one.info.get('pid')} on {one.info.get('host')}{f' ({one.error})' if one.error else ''}"
        for one in missing
    ]
    return ", ".join(said[:5])
