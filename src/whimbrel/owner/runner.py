"""Running jobs: claim, work in steps, record the cursor with the work, end visibly."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from whimbrel.catalog import jobs
from whimbrel.catalog.engine import Catalog, now
from whimbrel.domain import Job
from whimbrel.errors import Fenced, ModelUnusable, UserError, WhimbrelError, place
from whimbrel.owner.events import comes
from whimbrel.owner.outages import OUTAGES, Outages

if TYPE_CHECKING:
    from whimbrel.owner.owner import Owner

logger = logging.getLogger("whimbrel.jobs")

LONGEST_PAUSE_S = 300.0
"""Between two tries of a job that failed."""


class Cancelled(Exception):
    """A job was asked to stop, and has come to a place where it can. What it has done stays."""


class PutAway(Exception):
    """A job has nothing to do until a time (seconds since the epoch)."""

    def __init__(self, until: float, cursor: Mapping[str, Any], **progress: Any) -> None:
        super().__init__(until)
        self.until = until
        self.cursor = cursor
        self.progress = progress


class ComeBack(PutAway):
    """As `PutAway`, soon: who waits for the job goes on waiting."""


class Refused(Exception):
    """A job of a persistent kind must not be done after all: it fails, and is not tried again."""

    def __init__(self, error: UserError) -> None:
        super().__init__(error.message)
        self.error = error


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

LANES: Sequence[tuple[frozenset[str], int]] = (
    (frozenset({"ingest"}), 3),
    (frozenset({"add"}), 2),
    (frozenset({"purge"}), 16),
    (frozenset({"move"}), 16),
    (frozenset({"drop_view", "delete_collection"}), 1),
)
"""Kinds, and how many jobs of them may run at once; of any other kind, one. No lane waits for another.

Extraction is bounded by its pool, which serves all jobs in turn, so that a short job goes on beside long ones; what
each `ingest` holds beside that is a batch of text. Purges mostly wait, and those that are due together share a scrub.
"""


class Runner:
    """Claims jobs that are due, and runs each in a task of its own."""

    def __init__(self, owner: Owner, handlers: Mapping[str, Handler], host: str) -> None:
        self._owner = owner
        self._handlers = handlers
        self._host = host
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}
        """Kind and task by job."""
        self._unsure = False
        """A claim has failed: it may have been committed all the same."""
        self._wake = asyncio.Event()

    @property
    def idle(self) -> bool:
        return not self._running

    async def loop(self) -> None:
        """Ends only by an error, `Fenced` mostly."""
        self._owner.job_wakes.append(self._wake)
        try:
            while True:
                self._wake.clear()
                self._raise_failed()
                kinds = self._open_kinds()
                claim = partial(asyncio.to_thread, self._claim, kinds)
                claimed = await self._owner.outages.outlast(claim, "the queue of jobs")
                if claimed is None:
                    await comes(self._wake, self._owner.parts.poll_s)
                else:
                    self._begin(*claimed)
        finally:
            tasks = [task for _, task in self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, job: Job, cursor: dict[str, Any]) -> None:
        context = JobContext(job, cursor, self._owner.catalog, self._owner.fence, self._owner)
        task = asyncio.create_task(run(context, self._handlers[job.kind]), name=f"job-{job.id}")
        self._running[job.id] = job.kind, task
        task.add_done_callback(lambda _: self._owner.wake())

    def _raise_failed(self) -> None:
        for key in [key for key, (_, task) in self._running.items() if task.done()]:
            self._running.pop(key)[1].result()

    def _open_kinds(self) -> list[str]:
        busy = Counter(_lane(kind)[0] for kind, _ in self._running.values())
        return [kind for kind in self._handlers if busy[_lane(kind)[0]] < _lane(kind)[1]]

    def _claim(self, kinds: Sequence[str]) -> tuple[Job, dict[str, Any]] | None:
        catalog, fence = self._owner.catalog, self._owner.fence
        try:
            if self._unsure:
                with catalog.write(fence=fence) as connection:
                    jobs.reclaim(connection, host=self._host, besides=self._running)
                self._unsure = False
            with catalog.read() as connection:
                if not jobs.due(connection, kinds, self._host):
                    return None
            with catalog.write(fence=fence) as connection:
                return jobs.claim(connection, kinds, self._host)
        except OUTAGES:
            self._unsure = True
            raise


def _lane(kind: str) -> tuple[frozenset[str], int]:
    return next((lane for lane in LANES if kind in lane[0]), (frozenset({kind}), 1))


async def run(context: JobContext, handler: Handler) -> None:
    """Run a claimed job to its end, and record how it ended."""
    job = context.job
    persistent = job.kind in jobs.PERSISTENT
    try:
        result = await handler(context)
    except Fenced:
        raise
    except Cancelled:
        await _record(context, lambda connection: jobs.cancelled(connection, job.id))
    except PutAway as away:
        await _put_away(context, away)
    except Refused as refused:
        await _fail(context, refused.error.message, refused.error.hint, refused.error.code)
    except (WhimbrelError, OSError) as error:
        message = error.message if isinstance(error, WhimbrelError) else f"{type(error).__name__}: {error.strerror}"
        hint = error.hint if isinstance(error, WhimbrelError) else ""
        if not isinstance(error, UserError) or persistent:
            logger.warning("job %s (%s): %s", job.id, job.kind, message)
        if persistent or (_passing(error) and job.attempts < jobs.MAX_ATTEMPTS):
            await _try_again(context, message, hint)
        else:
            await _fail(context, message, hint, type(error).__name__)
    except Exception as error:  # a bug in a handler: the job fails visibly, the owner goes on
        logger.error("job %s (%s) failed: %s", job.id, job.kind, place(error))
        said = f"{type(error).__name__} inside job {job.kind}; the log has the details."
        hint = "This is a bug: please report it. What was committed stays."
        await (_try_again(context, said, hint) if persistent else _fail(context, said, hint))
    else:
        await _record(context, lambda connection: jobs.finish(connection, job.id, result))


def _passing(error: Exception) -> bool:
    """Not a wrong key, for example: that waits for somebody to set it right."""
    lasting = isinstance(error, UserError | ModelUnusable)
    return isinstance(error, WhimbrelError) and not lasting and error.status in (503, 507)


async def _put_away(context: JobContext, away: PutAway) -> None:
    put = jobs.requeue if isinstance(away, ComeBack) else jobs.wait
    await _record(context, lambda connection: put(connection, context.job.id, away.until, away.cursor, **away.progress))


async def _try_again(context: JobContext, message: str, hint: str) -> None:
    until = now() + min(2.0 ** min(context.job.attempts, 10), LONGEST_PAUSE_S)
    await _record(context, lambda connection: jobs.retry(connection, context.job.id, until, message, hint))


async def _fail(context: JobContext, message: str, hint: str, code: str = "") -> None:
    await _record(context, lambda connection: jobs.fail(connection, context.job.id, message, hint, code))


async def _record(context: JobContext, said: Callable[[Connection], None]) -> None:
    """Write down how the job ended; when the catalog is back, if need be: nobody else would."""

    def work() -> None:
        with context.catalog.write(fence=context.fence) as connection:
            said(connection)

    outages = context.owner.outages if context.owner is not None else Outages()
    await outages.outlast(partial(asyncio.to_thread, work), f"job {context.job.id}")
