"""Running jobs: claim, work in steps, record the cursor with the work, end visibly."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from whimbrel.catalog import jobs
from whimbrel.catalog.engine import Catalog, now
from whimbrel.domain import Job
from whimbrel.errors import Fenced, UserError, WhimbrelError
from whimbrel.owner.events import comes

if TYPE_CHECKING:
    from whimbrel.owner.owner import Owner

logger = logging.getLogger("whimbrel.jobs")

READING = ("ingest", "add")
"""Kinds that read documents. They have a loop of their own, so that a long one does not hold up an erasure."""


class Cancelled(Exception):
    """A job was asked to stop, and has come to a place where it can. What it has done stays."""


class PutAway(Exception):
    """A job has nothing to do until a time (seconds since the epoch)."""

    def __init__(self, until: float, cursor: Mapping[str, Any], **progress: Any) -> None:
        super().__init__(until)
        self.until = until
        self.cursor = cursor
        self.progress = progress


PERSISTENT = ("purge", "drop_view", "delete_collection")
"""Kinds that are tried until they succeed: what they are about cannot be asked for again."""


@dataclass(slots=True)
class JobContext:
    """What a handler sees of its job."""

    job: Job
    cursor: dict[str, Any]
    catalog: Catalog
    fence: int | None
    owner: Owner | None
    """None where a process that is not the owner runs an ingest of its own files."""

    async def checkpoint(self, *, cursor: Mapping[str, Any] | None = None, **progress: Any) -> None:
        """Record where the job is. Raises `Cancelled` if that was asked for."""

        def work() -> bool:
            with self.catalog.write(fence=self.fence) as connection:
                return jobs.progress(connection, self.job.id, cursor=cursor, **progress)

        if await asyncio.to_thread(work):
            raise Cancelled

    def checkpoint_in(self, connection: Connection, *, cursor: Mapping[str, Any] | None, **progress: Any) -> bool:
        """The same inside a transaction of the job's own work. Returns whether to stop after it."""
        return jobs.progress(connection, self.job.id, cursor=cursor, **progress)


Handler = Callable[[JobContext], Awaitable[Mapping[str, Any]]]
"""Does the job and returns its result. Runs again from `cursor` after a crash, so each step must be repeatable."""


class Runner:
    def __init__(self, owner: Owner, handlers: Mapping[str, Handler], host: str) -> None:
        self._owner = owner
        self._handlers = handlers
        self._host = host

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        reading = [kind for kind in self._handlers if kind in READING]
        others = [kind for kind in self._handlers if kind not in READING]
        return [self._loop(kinds) for kinds in (reading, others) if kinds]

    async def _loop(self, kinds: list[str]) -> None:
        event = asyncio.Event()
        self._owner.job_wakes.append(event)
        while True:
            event.clear()
            claimed = await asyncio.to_thread(self._claim, kinds)
            if claimed is None:
                await comes(event, self._owner.parts.poll_s)
                continue
            job, cursor = claimed
            context = JobContext(job, cursor, self._owner.catalog, self._owner.fence, self._owner)
            await run(context, self._handlers[job.kind])
            self._owner.wake()

    def _claim(self, kinds: list[str]) -> tuple[Job, dict[str, Any]] | None:
        with self._owner.catalog.read() as connection:
            if not jobs.due(connection, kinds, self._host):
                return None
        with self._owner.catalog.write(fence=self._owner.fence) as connection:
            return jobs.claim(connection, kinds, self._host)


async def run(context: JobContext, handler: Handler) -> None:
    """Run a claimed job to its end, and record how it ended."""
    job = context.job
    try:
        result = await handler(context)
    except Fenced:
        raise
    except Cancelled:
        async with _recorded(context) as connection:
            jobs.cancelled(connection, job.id)
    except PutAway as away:
        async with _recorded(context) as connection:
            jobs.wait(connection, job.id, away.until, away.cursor, **away.progress)
    except UserError as error:
        async with _recorded(context) as connection:
            jobs.fail(connection, job.id, error.message, error.hint, error.code)
    except (WhimbrelError, OSError) as error:
        message = error.message if isinstance(error, WhimbrelError) else f"{type(error).__name__}: {error.strerror}"
        hint = error.hint if isinstance(error, WhimbrelError) else ""
        passing = isinstance(error, WhimbrelError) and error.status in (503, 507)
        again = job.kind in PERSISTENT or (passing and job.attempts < jobs.MAX_ATTEMPTS)
        logger.warning("job %s (%s): %s", job.id, job.kind, message)
        async with _recorded(context) as connection:
            if again:
                jobs.retry(connection, job.id, now() + min(2.0**job.attempts, 300.0), message, hint)
            else:
                jobs.fail(connection, job.id, message, hint, type(error).__name__)
    except Exception as error:  # a bug in a handler: the job fails visibly, the owner goes on
        logger.exception("job %s (%s) failed", job.id, job.kind)
        async with _recorded(context) as connection:
            said = f"{type(error).__name__} inside job {job.kind}; the log has the details."
            jobs.fail(connection, job.id, said, "This is a bug: please report it. What was committed stays.")
    else:
        async with _recorded(context) as connection:
            jobs.finish(connection, job.id, result)


@asynccontextmanager
async def _recorded(context: JobContext) -> AsyncIterator[Connection]:
    with context.catalog.write(fence=context.fence) as connection:
        yield connection
