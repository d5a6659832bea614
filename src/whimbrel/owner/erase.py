"""Erasure: a purged document leaves everything.

Its rows go at once, in the transaction that asks for the purge: no search can hydrate it any more. The job then follows
the text to where it may still lie: vectors of record, views, views' old versions, the log, the free pages of files. Old
versions of a view can only be removed when no reader can have them open, which takes `erasure_grace_s`; the job says
until when it waits.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, select

from whimbrel.catalog import collections, conversations, documents, jobs, log, moves, vectors
from whimbrel.catalog import tables as t
from whimbrel.catalog.collections import Collection
from whimbrel.catalog.engine import now
from whimbrel.domain import Job, ViewState
from whimbrel.errors import Busy, Conflict
from whimbrel.owner.follower import Follower
from whimbrel.owner.owner import Owner
from whimbrel.owner.runner import JobContext, PutAway
from whimbrel.owner.scrubs import Scrubs

VIEWS_WAIT_S = 2.0
VIEW_BUSY_S = 10.0
DROP_WAIT_S = 15.0
"""For a replaced view to be dropped. `drop_view` wakes who waits for it; this is for a drop that ends otherwise."""


def request_purge(connection: Connection, collection: Collection, keys: Sequence[int]) -> Job:
    """Take documents out of sight at once, and enqueue the job that removes every trace of them.

    Stored answers that were made from them go in the same moment.
    """
    log.lock(connection, collection.id)
    public_ids = list(connection.execute(select(t.documents.c.public_id).where(t.documents.c.id.in_(keys))).scalars())
    live = collections.collection_chunking(connection, collection.id)
    changes = documents.drop_contents(connection, keys)
    position = log.append(connection, collection.id, changes)
    chunks = sum(change.chunking_id == live for change in changes)
    connection.execute(delete(t.documents).where(t.documents.c.id.in_(keys)))
    conversations.erase(connection, collection.id, public_ids)
    job, _ = jobs.enqueue(
        connection,
        "purge",
        collection_id=collection.id,
        collection=collection.name,
        args={"position": position, "documents": len(keys), "chunks": chunks},
    )
    return job


class Eraser:
    """Handler of `purge` jobs."""

    def __init__(self, grace_s: float, erase_cached: Callable[[int], None] = lambda collection_id: None) -> None:
        """`erase_cached`: removes what was made from a collection's documents and is kept beside the catalog."""
        self.grace_s = grace_s
        self._erase_cached = erase_cached
        self._scrubs = Scrubs()
        self._begun: Counter[int] = Counter()
        """How many erasures of a view have begun, by its key."""
        self._erased: Counter[int] = Counter()
        """The last of them that came to its end."""

    async def __call__(self, context: JobContext) -> Mapping[str, Any]:
        owner = context.owner
        if owner is None:
            raise Conflict("Only the owner can erase.", "Start `whimbrel serve` or `whimbrel owner`.")
        collection_id = await asyncio.to_thread(self._collection, context)
        there = await asyncio.to_thread(self._is_there, context, collection_id)
        if there and not context.cursor.get("compacted"):
            await self._wait_for_views(context, owner, collection_id)
            await asyncio.to_thread(self._sweep, context)
            await asyncio.to_thread(self._erase_cached, collection_id)
            if self.grace_s > 0:
                await self._erase_views(context, owner, collection_id)
                expires = now() + self.grace_s
                cursor = {"compacted": True, "expires": expires}
                raise PutAway(
                    expires, cursor, waiting_for="old versions of views to expire", completes_at=_iso(expires)
                )
        with self._scrubs.removing():
            if there:
                await self._erase_views(context, owner, collection_id)
            await asyncio.to_thread(self._sweep, context)
            await asyncio.to_thread(self._forget, context, collection_id)
            await asyncio.to_thread(self._erase_cached, collection_id)
        scrubbed = await self._scrubs.next(context.catalog)
        if not scrubbed.done:
            raise PutAway(
                now() + 10.0,
                {"compacted": True, "expires": context.cursor.get("expires", now())},
                waiting_for=" ".join(scrubbed.held_by),
                completes_at=_iso(now() + 10.0),
            )
        return {
            "documents": context.job.args["documents"],
            "chunks": context.job.args["chunks"],
            "completed_at": _iso(now()),
            "notes": list(scrubbed.notes),
        }

    def _collection(self, context: JobContext) -> int:
        with context.catalog.read() as connection:
            return int(
                connection.execute(select(t.jobs.c.collection_id).where(t.jobs.c.id == context.job.id)).scalar_one()
            )

    def _is_there(self, context: JobContext, collection_id: int) -> bool:
        """Whether the collection has not been deleted since; its views and rows went with it then."""
        with context.catalog.read() as connection:
            collection = collections.by_id(connection, collection_id)
        if collection is not None and collection.deleting:
            raise PutAway(
                now() + 2.0,
                context.cursor,
                waiting_for="the collection, which has been deleted, to be removed",
                completes_at="unknown",
            )
        return collection is not None

    async def _wait_for_views(self, context: JobContext, owner: Owner, collection_id: int) -> None:
        position = int(context.job.args["position"])
        owner.wake()
        waited = 0.0
        while not await owner.views.have_passed(collection_id, position):
            if waited >= VIEWS_WAIT_S:
                raise PutAway(
                    now() + VIEWS_WAIT_S, context.cursor, waiting_for="views to catch up", completes_at="unknown"
                )
            await context.checkpoint(waiting_for="views to catch up")
            await asyncio.sleep(0.1)
            waited += 0.1

    async def _erase_views(self, context: JobContext, owner: Owner, collection_id: int) -> None:
        with context.catalog.read() as connection:
            views = collections.views(connection, collection_id)
            kept = moves.kept(connection)
        for row in views:
            if row.view.state is ViewState.RETIRED:
                by_hand = f" (a finished move kept its data: `whimbrel view drop {row.id}`)" if row.id in kept else ""
                raise PutAway(
                    now() + DROP_WAIT_S,
                    {**context.cursor, "awaits": row.id},
                    waiting_for=f"view {row.id}, which has been replaced, to be dropped{by_hand}",
                    completes_at="unknown",
                )
            if row.view.state is ViewState.FROZEN:
                continue  # another program's database: nothing is taken out of it
            await self._erase_view(context, await self._follower(owner, row.id))

    async def _erase_view(self, context: JobContext, follower: Follower) -> None:
        """Purges that wait for one view share an erasure of it: one that began after they had asked is theirs too."""
        view = follower.row.id
        before = self._begun[view]
        await self._take_turn(context, follower)
        try:
            if self._erased[view] > before:
                return
            self._begun[view] += 1
            await follower.target.erase(grace_s=self.grace_s)
            self._erased[view] = self._begun[view]
        finally:
            follower.turn.release()

    async def _take_turn(self, context: JobContext, follower: Follower) -> None:
        try:
            async with asyncio.timeout(VIEW_BUSY_S):
                await follower.turn.acquire()
        except TimeoutError:
            raise PutAway(
                now() + VIEW_BUSY_S,
                context.cursor,
                waiting_for=f"view {follower.row.id}, which is being verified or written to",
                completes_at="unknown",
            ) from None

    async def _follower(self, owner: Owner, view: int) -> Follower:
        for _ in range(100):  # an owner that has just begun has not opened it yet
            follower = owner.views.followers.get(view)
            if follower is not None:
                return follower
            await asyncio.sleep(0.1)
        raise Busy(f"View {view} cannot be opened now.", "The erasure goes on when it can be.")

    def _sweep(self, context: JobContext) -> None:
        with context.catalog.write(fence=context.fence) as connection:
            vectors.sweep(connection)

    def _forget(self, context: JobContext, collection_id: int) -> None:
        """The log loses what came before the purge: the ids of deleted chunks are hashes of their text. And ended jobs
        lose the names and metadata that they were given."""
        with context.catalog.write(fence=context.fence) as connection:
            jobs.redact(connection, collection_id, jobs.READING)
            if collections.by_id(connection, collection_id) is None:
                return  # its log went with it
            positions = [row.view.position for row in collections.fed(collections.views(connection, collection_id))]
            log.cut(connection, collection_id, min([int(context.job.args["position"]), *positions]))


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
