"""The jobs that read documents: `ingest` for files and folders, `add` for texts that were handed in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from whimbrel.catalog import collections, jobs
from whimbrel.catalog.collections import Collection
from whimbrel.errors import CollectionNotFound, Conflict
from whimbrel.ingest.pipeline import Cutting, Guard, Ingest, IngestArgs, IngestReport, path_of
from whimbrel.ingest.workers import ExtractionPool
from whimbrel.owner.runner import Cancelled, JobContext

UPLOADS_AT_ONCE = 256


class Secrets(Protocol):
    """The passwords that were given to this process for a job: its row holds no more than a name for them."""

    def secrets_of(self, name: str) -> Sequence[str]: ...

    def forget_secrets(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading documents needs; wired by `whimbrel.app`."""

    pool: Callable[[], ExtractionPool]
    cutting_of: Callable[[Collection], Cutting]
    """How a collection's documents are cut."""
    guard: Guard
    in_flight: int
    secrets: Secrets

    async def ingest(self, context: JobContext) -> Mapping[str, Any]:
        """Handler of `ingest` jobs. After a crash it walks again: what is done is unchanged, and costs a `stat`."""
        arguments = context.job.args
        args = IngestArgs(
            paths=[path_of(path) for path in arguments["paths"]],
            external_id=arguments.get("id"),
            metadata=arguments.get("metadata"),
            allow_gone=bool(arguments.get("allow_gone")),
        )
        run = await asyncio.to_thread(self._run, context)
        began = time.monotonic()
        await context.checkpoint(documents=0)
        async with aclosing(run.files(args)) as reports:
            async for report in reports:
                counts = report.counts
                await context.checkpoint(
                    documents=report.seen,
                    added=counts.added,
                    changed=counts.changed,
                    unchanged=counts.unchanged,
                    failed=counts.failed,
                    removed=counts.removed,
                    chunks=counts.chunks_added,
                    position=counts.head,
                )
        return self._result(context, run, began)

    async def add(self, context: JobContext) -> Mapping[str, Any]:
        """Handler of `add` jobs. The cursor is the last upload that was committed, and the report up to there."""
        run = await asyncio.to_thread(self._run, context)
        after = int(context.cursor.get("after", -1))
        if "report" in context.cursor:
            run.report = IngestReport.of(context.cursor["report"])
        began = time.monotonic()
        while True:
            some = await asyncio.to_thread(self._uploads, context, after)
            if not some:
                break
            run.report.seen += len(some)
            await run.texts([run.text(about, data) for _, about, data in some])
            after = some[-1][0]
            if await asyncio.to_thread(self._taken_in, context, after, run.report):
                raise Cancelled
        return self._result(context, run, began)

    def _uploads(self, context: JobContext, after: int) -> list[tuple[int, dict[str, Any], bytes]]:
        with context.catalog.read() as connection:
            return jobs.uploads(connection, context.job.id, after, UPLOADS_AT_ONCE)

    def _taken_in(self, context: JobContext, upto: int, report: IngestReport) -> bool:
        """What is in the collection now need not wait here for the end of the job: an erasure would miss it. Returns
        whether the job is to stop."""
        with context.catalog.write(fence=context.fence) as connection:
            jobs.drop_uploads(connection, context.job.id, upto)
            cursor = {"after": upto, "report": report.as_dict()}
            return context.checkpoint_in(connection, cursor=cursor, documents=report.seen)

    def _run(self, context: JobContext) -> Ingest:
        collection_id = context.job.args["collection_id"]
        with context.catalog.read() as connection:
            collection = collections.by_id(connection, collection_id)
        if collection is None or collection.deleting:
            raise CollectionNotFound(
                f"The collection {context.job.collection!r} has been deleted meanwhile.", "Nothing was written."
            )
        return Ingest(
            context.catalog,
            collection_id,
            cutting=lambda: self._cutting(context, collection),
            pool=self.pool(),
            guard=self.guard,
            fence=context.fence,
            in_flight=self.in_flight,
        )

    def _cutting(self, context: JobContext, collection: Collection) -> Cutting:
        cutting = self.cutting_of(collection)
        if passwords := self.secrets.secrets_of(context.job.args.get("secrets", "")):
            options = replace(cutting.options, passwords=[*passwords, *cutting.options.passwords])
            cutting = replace(cutting, options=options)
        return cutting

    def _result(self, context: JobContext, run: Ingest, began: float) -> dict[str, Any]:
        self.secrets.forget_secrets(context.job.args.get("secrets", ""))
        return {**self._position(context, run), "seconds": round(time.monotonic() - began, 2)}

    def _position(self, context: JobContext, run: Ingest) -> dict[str, Any]:
        """The report; with the head of the log where nothing was written, so that there is a position to wait for."""
        found = run.report.as_dict()
        if not found["position"]:
            with context.catalog.read() as connection:
                collection = collections.by_id(connection, run.collection_id)
            if collection is None:
                raise Conflict("The collection was deleted while the job ran.", "Nothing else was changed.")
            found["position"] = collection.head
        return {"collection": context.job.collection, **found}
