"""Removing the chunks of chunkings that a collection has left."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from whimbrel.catalog import chunkings, collections, jobs
from whimbrel.errors import Conflict
from whimbrel.owner.runner import JobContext


def forget_later(connection: Connection, collection_id: int) -> None:
    """Enqueue the removal of what no view of a collection follows any more: after a move's end."""
    collection = collections.by_id(connection, collection_id)
    name = collection.name if collection is not None else None
    args = {"collection_id": collection_id}
    jobs.enqueue(connection, "forget_chunkings", collection_id=collection_id, collection=name, args=args)


async def forget_chunkings(context: JobContext) -> Mapping[str, Any]:
    """Handler of `forget_chunkings` jobs: some hundred documents at a time, between which others write."""
    collection_id = int(context.job.args["collection_id"])
    removed = 0
    while count := await asyncio.to_thread(_forget_some, context, collection_id):
        removed += count
        await context.checkpoint(rows=removed)
    return {"rows": removed}


def _forget_some(context: JobContext, collection_id: int) -> int:
    with context.catalog.write(fence=context.fence) as connection:
        collection = collections.by_id(connection, collection_id)
        if collection is None or collection.deleting:  # all of it goes
            return 0
        for key in chunkings.left_behind(connection, collection_id):
            try:
                count = chunkings.forget_chunking(connection, collection_id, key)
            except Conflict:  # a move back to it has begun since
                continue
            if count:
                return count
    return 0
