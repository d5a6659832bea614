"""The owner's jobs on views and collections: verify, rebuild, drop, delete."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from whimbrel.catalog import collections, jobs, moves, vectors
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.engine import now
from whimbrel.config import mask_url
from whimbrel.domain import ViewState
from whimbrel.errors import ConfigError, Conflict, NotFound, StoreUnavailable, ViewDamaged
from whimbrel.owner.compare import Comparison, compare
from whimbrel.owner.follower import Follower
from whimbrel.owner.owner import Owner
from whimbrel.owner.runner import ComeBack, JobContext, PutAway, Refused

logger = logging.getLogger("whimbrel.jobs")

PATIENCE_S = 600.0
LOOKS = 20
"""At a view that has far to go, before others have their turn."""
COME_BACK_S = 0.5
OPENING_LOOKS = 300
"""For a view that is not open, a tenth of a second apart."""
DROP_GRACE_S = 60.0
"""How long the data of a replaced view stays, for searches that have it open."""


def _owner(context: JobContext) -> Owner:
    if context.owner is None:
        raise Conflict("Only the owner can do this.", "Start `whimbrel serve` or `whimbrel owner`.")
    return context.owner


async def verify_view(context: JobContext) -> Mapping[str, Any]:
    """Compare a view with the catalog at one position: every id, every text, metadata and vector by digest.

    A view that is found to differ is built anew by itself, beside the old one.
    """
    owner = _owner(context)
    key = int(context.job.args["view"])
    deadline = float(context.cursor.get("deadline", now() + PATIENCE_S))
    for _ in range(LOOKS):
        follower = await follower_of(owner, key)
        try:
            async with follower.standing_still() as still:
                report = (await _compared(context, follower, *still)).report() if still is not None else None
        except ViewDamaged as damaged:
            found = Comparison(key, follower.row.view.kind, follower.position, damage=damaged.message)
            report = found.report()
        if report is not None and not report["equal"]:
            await asyncio.to_thread(_suspect, context, key, report.get("damage", "verifying found that it differs"))
            owner.wake()
        if report is not None:
            return report
        await context.checkpoint(waiting_for="the view to catch up")
        await asyncio.sleep(0.1)
    if now() < deadline:
        raise ComeBack(now() + COME_BACK_S, {"deadline": deadline}, waiting_for="the view to catch up")
    raise ViewDamaged(
        f"View {key} did not come to rest at the head of its log in {PATIENCE_S / 60:.0f} minutes.",
        "Try again when less is being written; `whimbrel status` shows its lag.",
    )


async def _compared(context: JobContext, follower: Follower, connection: Connection, changing: set[str]) -> Comparison:
    rejected = await asyncio.to_thread(moves.rejects, connection, follower.row)
    besides = changing | {one.chunk_id for one in rejected}
    return await compare(follower, connection, besides, context.checkpoint)


def _suspect(context: JobContext, key: int, reason: str) -> None:
    with context.catalog.write(fence=context.fence) as connection:
        collections.set_view(connection, key, suspect=reason)


async def follower_of(owner: Owner, key: int) -> Follower:
    for _ in range(OPENING_LOOKS):
        follower = owner.views.followers.get(key)
        if follower is not None:
            return follower
        with owner.catalog.read() as connection:
            row = collections.view(connection, key)  # raises NotFound
        if row.view.state in (ViewState.RETIRED, ViewState.FROZEN):
            raise Conflict(f"View {key} is {row.view.state}: it does not follow the log.", "Verify a live view.")
        await asyncio.sleep(0.1)
    said = row.view.error.rstrip(".") or "its database does not answer"
    hint = "The catalog holds everything: `whimbrel view rebuild` makes it anew."
    raise StoreUnavailable(f"View {key} cannot be opened: {said}.", hint)


async def rebuild_view(context: JobContext) -> Mapping[str, Any]:
    """Build a view anew beside itself; searches go on with the old one until the new one has caught up."""
    owner = _owner(context)
    key = int(context.job.args["view"])
    made = context.cursor.get("made")
    if made is None:
        made = await _begin_rebuild(context, owner, key)
        await context.checkpoint(cursor={"made": made})
    for _ in range(LOOKS):
        with context.catalog.read() as connection:
            new_row = collections.view(connection, made)
        if new_row.view.state is ViewState.LIVE:
            return {"view": made, "replaces": key, "position": new_row.view.position}
        if new_row.view.state is ViewState.RETIRED:
            raise ViewDamaged(f"View {made} failed while it was built: {new_row.view.error}", "Try again.")
        await context.checkpoint(cursor={"made": made}, **_stand(new_row))
        await asyncio.sleep(0.1)
    raise ComeBack(now() + COME_BACK_S, {"made": made}, **_stand(new_row))


def _stand(row: ViewRow) -> dict[str, Any]:
    """How far a view has been built, and what stands in its way."""
    stand: dict[str, Any] = {"copied": row.build_after, "of": row.build_upto}
    return {**stand, "waiting_for": row.view.error} if row.view.error else stand


async def _begin_rebuild(context: JobContext, owner: Owner, key: int) -> int:
    """The id of the view that is to take the place of view `key`: begun now, or by an owner that was killed since."""
    begun = context.cursor.get("begun")
    with context.catalog.read() as connection:
        every = collections.views(connection)
        row = next((row for row in every if row.id == key), None)
        if begun is not None and (row is None or row.view.state is ViewState.RETIRED):
            later = [other.id for other in every if other.id > begun["last"] and _same(other, begun)]
            if later:
                return max(later)
        row = collections.view(connection, key)
        collection = collections.by_id(connection, row.view.collection_id)
    if collection is None or row.view.state in (ViewState.RETIRED, ViewState.FROZEN):
        raise Conflict(f"View {key} is {row.view.state}.", "Only a view that follows the log can be rebuilt.")
    if begun is None:
        last = max(other.id for other in every)
        begun = {"last": last, "collection": collection.id, "kind": row.view.kind.value}
        await context.checkpoint(cursor={"begun": begun})
    new = await owner.views.rebuild(collection, row)
    return new.id if new is not None else _replacement(context, key, begun)


def _same(row: ViewRow, begun: Mapping[str, Any]) -> bool:
    return (row.view.collection_id, row.view.kind) == (begun["collection"], begun["kind"])


def _replacement(context: JobContext, key: int, begun: Mapping[str, Any] | None) -> int:
    with context.catalog.read() as connection:
        for row in collections.fed(collections.views(connection)):
            if row.replaces == key or (begun is not None and row.id > begun["last"] and _same(row, begun)):
                return row.id
    raise Conflict(f"View {key} cannot be rebuilt now.", "Try again in a moment.")


async def drop_view(context: JobContext) -> Mapping[str, Any]:
    """Remove a view that is not live, and its data. Searches that have it open get a minute to finish."""
    owner = _owner(context)
    key = int(context.job.args["view"])
    with context.catalog.read() as connection:
        try:
            row = collections.view(connection, key)
        except NotFound:
            return {"view": key, "dropped": True}
        collection = collections.by_id(connection, row.view.collection_id)
    if collection is not None and key in (collection.store_view_id, collection.lexicon_view_id):
        live = Conflict(f"View {key} is the live one.", "Rebuild it, or move the collection to another view first.")
        raise Refused(live)
    if not context.cursor.get("waited") and not context.job.args.get("now"):
        raise PutAway(now() + DROP_GRACE_S, {"waited": True}, waiting_for="searches that have it open")
    await asyncio.to_thread(_retire, context, key)
    await owner.views.give_up(key)
    left = await drop_data(owner, row) if collection is not None else ""
    await asyncio.to_thread(_forget, context, key)
    return {"view": key, "dropped": True, **({"left": left} if left else {})}


def _retire(context: JobContext, key: int) -> None:
    with context.catalog.write(fence=context.fence) as connection:
        collections.set_view(connection, key, state=ViewState.RETIRED)


def _forget(context: JobContext, key: int) -> None:
    with context.catalog.write(fence=context.fence) as connection:
        collections.forget_view(connection, key)
        jobs.wake(connection, "purge", awaits=key)


async def drop_data(owner: Owner, row: ViewRow) -> str:
    """Remove a view's data. Returns what may be left, in words: where its URI names no store, nobody can go there."""
    with owner.catalog.read() as connection:
        collection = collections.by_id(connection, row.view.collection_id)
    assert collection is not None
    try:
        target = await asyncio.to_thread(owner.parts.open_target, collection, row)
    except ConfigError as error:
        left = f"Data may be left at {mask_url(row.view.uri)!r}, table {row.view.name!r}: {error.message}"
        logger.warning("view %s is forgotten. %s", row.id, left)
        return left
    try:
        await target.drop()  # also what cannot be opened any more: damaged data still holds text
    finally:
        await target.close()
    return ""


async def delete_collection(context: JobContext) -> Mapping[str, Any]:
    """Remove what a deleted collection left: its views' data, its rows, and the vectors that nobody else has."""
    owner = _owner(context)
    key = int(context.job.args["collection_id"])
    with context.catalog.read() as connection:
        views = collections.views(connection, key)
    left = []
    for row in views:
        await owner.views.give_up(row.id)
        left.append(await drop_data(owner, row))
    removed = int(context.cursor.get("removed", 0))
    while True:
        count = await asyncio.to_thread(_remove_some, context, key)
        removed += count
        if count == 0:
            break
        await context.checkpoint(cursor={"removed": removed}, documents=removed)
    await asyncio.to_thread(_sweep, context)
    notes = [said for said in left if said]
    return {"documents": removed, "views": len(views), **({"left": notes} if notes else {})}


def _remove_some(context: JobContext, key: int) -> int:
    with context.catalog.write(fence=context.fence) as connection:
        return collections.remove_some(connection, key)


def _sweep(context: JobContext) -> int:
    with context.catalog.write(fence=context.fence) as connection:
        return vectors.sweep(connection)
