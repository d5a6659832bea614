"""The owner's jobs on views and collections: verify, rebuild, drop, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from whimbrel.catalog import collections, rows, vectors
from whimbrel.catalog.collections import ViewRow
from whimbrel.catalog.engine import now
from whimbrel.domain import ViewKind, ViewState
from whimbrel.errors import Conflict, NotFound, ViewDamaged
from whimbrel.owner.follower import Follower
from whimbrel.owner.owner import DROP_GRACE_S, Owner
from whimbrel.owner.runner import JobContext, PutAway

LISTED = 20
"""Differences that a report names one by one."""


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
    deadline = now() + 600
    while now() < deadline:
        follower = await _follower(owner, key)
        try:
            async with follower.standing_still() as still:
                report = await _compare(context, follower, *still) if still is not None else None
        except ViewDamaged as damaged:
            report = {**_report(follower, 0, equal=False), "damage": damaged.message}
        if report is not None and not report["equal"]:
            await asyncio.to_thread(_suspect, context, key, report.get("damage", "verifying found that it differs"))
            owner.wake()
        if report is not None:
            return report
        await context.checkpoint(waiting_for="the view to catch up")
        await asyncio.sleep(0.1)
    raise ViewDamaged(
        f"View {key} did not come to rest at the head of its log in 10 minutes.",
        "Try again when less is being written; `whimbrel status` shows its lag.",
    )


def _suspect(context: JobContext, key: int, reason: str) -> None:
    with context.catalog.write(fence=context.fence) as connection:
        collections.set_view(connection, key, suspect=reason)


async def _follower(owner: Owner, key: int) -> Follower:
    for _ in range(300):
        follower = owner.followers.get(key)
        if follower is not None:
            return follower
        with owner.catalog.read() as connection:
            row = collections.view(connection, key)  # raises NotFound
        if row.view.state in (ViewState.RETIRED, ViewState.FROZEN):
            raise Conflict(f"View {key} is {row.view.state}: it does not follow the log.", "Verify a live view.")
        await asyncio.sleep(0.1)
    raise ViewDamaged(
        f"View {key} cannot be opened: {row.view.error or 'its database does not answer'}.",
        "The catalog holds everything: `whimbrel view rebuild` makes it anew.",
    )


async def _compare(
    context: JobContext, follower: Follower, connection: Connection, changing: set[str]
) -> dict[str, Any]:
    """`connection`: the catalog in one snapshot throughout; `changing`: what the view has not heard of yet."""
    row, target = follower.row, follower.target
    await target.check()  # what a scan does not read, too
    expected = await asyncio.to_thread(_expected, connection, row) - changing
    seen: set[str] = set()
    differs: list[str] = []
    extra: list[str] = []
    doubled = 0
    async for ids, digests in target.scan():
        known = await asyncio.to_thread(_digests, connection, follower, ids)
        for chunk_id, digest in zip(ids, digests, strict=True):
            if chunk_id in seen:
                doubled += 1
            elif chunk_id in changing:
                continue
            elif chunk_id not in known:
                extra.append(chunk_id)
            elif known[chunk_id] != digest:
                differs.append(chunk_id)
            seen.add(chunk_id)
        await context.checkpoint(compared=len(seen), expected=len(expected))
    missing = expected - seen
    equal = not (missing or extra or differs or doubled)
    return _report(
        follower,
        len(expected),
        equal=equal,
        rows=len(seen),
        missing=sorted(missing),
        extra=extra,
        different=differs,
        doubled=doubled,
        changing=len(changing),
    )


def _report(
    follower: Follower,
    expected: int,
    *,
    equal: bool,
    rows: int = 0,
    missing: Sequence[str] = (),
    extra: Sequence[str] = (),
    different: Sequence[str] = (),
    doubled: int = 0,
    changing: int = 0,
) -> dict[str, Any]:
    found = {"missing": missing, "extra": extra, "different": different}
    return {
        "view": follower.row.id,
        "kind": follower.row.view.kind,
        "position": follower.position,
        "rows": rows,
        "expected": expected,
        "equal": equal,
        **{name: len(ids) for name, ids in found.items()},
        "doubled": doubled,
        "changing": changing,
        "examples": {name: list(ids[:LISTED]) for name, ids in found.items()},
    }


def _expected(connection: Connection, row: ViewRow) -> set[str]:
    space = row.view.space_id if row.view.kind is ViewKind.STORE else None
    return rows.public_ids(connection, row.view.collection_id, row.view.chunking_id, space)


def _digests(connection: Connection, follower: Follower, ids: list[str]) -> dict[str, str]:
    view = follower.row.view
    space = view.space_id if view.kind is ViewKind.STORE else None
    keys = rows.keys_of(connection, view.collection_id, view.chunking_id, ids)
    found, _, _ = rows.load_chunks(connection, keys, space)
    return dict(zip(found.ids, follower.target.digests(found), strict=True))


async def rebuild_view(context: JobContext) -> Mapping[str, Any]:
    """Build a view anew beside itself; searches go on with the old one until the new one has caught up."""
    owner = _owner(context)
    key = int(context.job.args["view"])
    made = context.cursor.get("made")
    if made is None:
        made = await _begin_rebuild(context, owner, key)
        await context.checkpoint(cursor={"made": made})
    while True:
        with context.catalog.read() as connection:
            new_row = collections.view(connection, made)
        if new_row.view.state is ViewState.LIVE:
            return {"view": made, "replaces": key, "position": new_row.view.position}
        if new_row.view.state is ViewState.RETIRED:
            raise ViewDamaged(f"View {made} failed while it was built: {new_row.view.error}", "Try again.")
        await context.checkpoint(cursor={"made": made}, copied=new_row.build_after, of=new_row.build_upto)
        await asyncio.sleep(0.1)


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
    new = await owner.rebuild(collection, row)
    return new.id if new is not None else _replacement(context, key)


def _same(row: ViewRow, begun: Mapping[str, Any]) -> bool:
    return (row.view.collection_id, row.view.kind) == (begun["collection"], begun["kind"])


def _replacement(context: JobContext, key: int) -> int:
    with context.catalog.read() as connection:
        for row in collections.fed(collections.views(connection)):
            if row.replaces == key:
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
        raise Conflict(f"View {key} is the live one.", "Rebuild it, or move the collection to another view first.")
    if not context.cursor.get("waited") and not context.job.args.get("now"):
        raise PutAway(now() + DROP_GRACE_S, {"waited": True}, waiting_for="searches that have it open")
    with context.catalog.write(fence=context.fence) as connection:
        collections.set_view(connection, key, state=ViewState.RETIRED)
    await owner.give_up(key)
    if collection is not None:
        await drop_data(owner, row)
    with context.catalog.write(fence=context.fence) as connection:
        collections.forget_view(connection, key)
    return {"view": key, "dropped": True}


async def drop_data(owner: Owner, row: ViewRow) -> None:
    with owner.catalog.read() as connection:
        collection = collections.by_id(connection, row.view.collection_id)
    assert collection is not None
    target = await asyncio.to_thread(owner.parts.open_target, collection, row)
    try:
        await target.drop()  # also what cannot be opened any more: damaged data still holds text
    finally:
        await target.close()


async def delete_collection(context: JobContext) -> Mapping[str, Any]:
    """Remove what a deleted collection left: its views' data, its rows, and the vectors that nobody else has."""
    owner = _owner(context)
    key = int(context.job.args["collection_id"])
    with context.catalog.read() as connection:
        views = collections.views(connection, key)
    for row in views:
        await owner.give_up(row.id)
        await drop_data(owner, row)
    removed = int(context.cursor.get("removed", 0))
    while True:
        count = await asyncio.to_thread(_remove_some, context, key)
        removed += count
        if count == 0:
            break
        await context.checkpoint(cursor={"removed": removed}, documents=removed)
    await asyncio.to_thread(_sweep, context)
    return {"documents": removed, "views": len(views)}


def _remove_some(context: JobContext, key: int) -> int:
    with context.catalog.write(fence=context.fence) as connection:
        return collections.remove_some(connection, key)


def _sweep(context: JobContext) -> int:
    with context.catalog.write(fence=context.fence) as connection:
        return vectors.sweep(connection)
