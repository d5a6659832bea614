"""A new chunking: every document is cut again from the catalog's own text, before the views of it are built."""

from __future__ import annotations

import asyncio

from sqlalchemy import Connection

from whimbrel.catalog import collections, moves, rows
from whimbrel.catalog.collections import Collection
from whimbrel.catalog.moves import Move
from whimbrel.domain import MoveState
from whimbrel.errors import Conflict, ExtractionFailed
from whimbrel.ingest.recut import Recut, Step
from whimbrel.owner.runner import JobContext


class Cutter:
    def __init__(self, recut: Recut) -> None:
        self._recut = recut

    async def cut_some(self, context: JobContext, move: Move) -> None:
        """Cut some hundred documents more. With the last of them the target views take their snapshot.

        A document that cannot be cut makes the move `failed`; resumed, it goes on there.
        """
        found = await asyncio.to_thread(self._target, context, move)
        if found is None:  # ended meanwhile
            return
        collection, chunking_id = found

        def keep(connection: Connection, step: Step) -> None:
            if moves.get(connection, move.id).state.ended:
                raise Conflict(f"Move {move.id} was ended meanwhile.")
            moves.change(connection, move.id, recut_after=step.reached)
            if step.reached >= move.recut_upto:
                chunks = rows.count_chunks(connection, collection.id, chunking_id)
                moves.change(connection, move.id, plan={**move.plan, "rows": chunks})
                for key in move.targets:
                    collections.begin_anew(connection, collection.id, key)

        try:
            step = await self._recut.step(
                context.catalog,
                collection,
                chunking_id,
                after=move.recut_after,
                upto=move.recut_upto,
                fence=context.fence,
                also=keep,
            )
        except ExtractionFailed as error:
            await asyncio.to_thread(self._failed, context, move, error)
            return
        await context.checkpoint(state=move.state.value, cut=step.reached, of=move.recut_upto)

    def _target(self, context: JobContext, move: Move) -> tuple[Collection, int] | None:
        with context.catalog.read() as connection:
            collection = collections.by_id(connection, move.collection_id)
            if collection is None or collection.deleting or moves.get(connection, move.id).state.ended:
                return None
            return collection, collections.view(connection, move.targets[0]).view.chunking_id

    def _failed(self, context: JobContext, move: Move, error: ExtractionFailed) -> None:
        hint = f"{error.hint} Then `whimbrel move resume` goes on; `whimbrel move abort` ends the move."
        with context.catalog.write(fence=context.fence) as connection:
            if not moves.get(connection, move.id).state.ended:
                moves.change(connection, move.id, state=MoveState.FAILED, error=error.message, hint=hint)
