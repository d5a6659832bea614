"""The job that brings an exported collection in. Its vectors come with it: nothing is embedded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whimbrel.catalog import compatible, importing, vectors
from whimbrel.catalog.exported_folder import Batch, ExportFolder
from whimbrel.catalog.importing import Into
from whimbrel.errors import Conflict
from whimbrel.owner.runner import Cancelled, JobContext


async def import_collection(context: JobContext) -> Mapping[str, Any]:
    """Handler of `import` jobs: in batches, each with the cursor in one transaction. Whoever asked for it has checked
    the folder; it is checked again where it is not as it was."""
    args, began = context.job.args, time.monotonic()
    folder = await asyncio.to_thread(_as_it_was, args)
    into = Into(args["collection_id"], args["chunkings"], args["spaces"])
    done = _Done(**context.cursor.get("done", {}))
    batches = folder.batches(context.cursor.get("rows"))
    while (batch := await asyncio.to_thread(_next, batches)) is not None:
        if await asyncio.to_thread(_write, context, into, batch, done):
            raise Cancelled
    served = await asyncio.to_thread(_served, context)
    seconds = round(time.monotonic() - began, 2)
    return {"collection": context.job.collection, **done.counts(), **served, "seconds": seconds}


class _Done:
    """Counts, up to a batch."""

    def __init__(self, documents: int = 0, chunks: int = 0, vectors: int = 0, position: int = 0) -> None:
        self.documents, self.chunks, self.vectors, self.position = documents, chunks, vectors, position

    def add(self, batch: Batch, head: int) -> None:
        self.documents += len(batch.documents)
        self.chunks += sum(map(len, batch.chunks.values()))
        self.vectors += sum(len(numbers) for numbers, _ in batch.vectors.values())
        self.position = head

    def counts(self) -> dict[str, int]:
        return dict(vars(self))


def _as_it_was(args: Mapping[str, Any]) -> ExportFolder:
    folder = ExportFolder(Path(args["folder"]))
    if folder.digest != args["manifest"]:
        raise Conflict(
            f"{folder.folder} holds another export than when this import was begun. What it had done stays.",
            f"`whimbrel collections delete {args['name']}`, then import it anew.",
        )
    if [list(one) for one in args["signature"]] != folder.signature():
        folder.check()
    return folder


def _served(context: JobContext) -> dict[str, Any]:
    """What embeds its questions: `embedder`, `none` where its model is not here; `declared`: what was measured of one
    that did not make its vectors."""
    space = context.job.args.get("searched")
    if space is None:
        return {}
    with context.catalog.read() as connection:
        _, embedder = vectors.read_space(connection, space)
        declared = compatible.serving(connection, space)
    if declared is None:
        return {"embedder": embedder}
    return {"embedder": declared.embedder, "declared": dict(declared.checks)}


def _next(batches: Iterator[Batch]) -> Batch | None:
    return next(batches, None)


def _write(context: JobContext, into: Into, batch: Batch, done: _Done) -> bool:
    """Whether the job is to stop."""
    with context.catalog.write(fence=context.fence) as connection:
        done.add(batch, importing.write(connection, into, batch))
        cursor = {"rows": dict(batch.cursor), "done": done.counts()}
        return context.checkpoint_in(connection, cursor=cursor, **done.counts())
