"""The owner: the one process of a home that changes views.

It runs in a thread of its own with its own event loop, beside an API or a CLI command in the same process, or alone. It
feeds the views (a follower each), fills the vectors of record (a stage for each collection and space), runs the jobs,
and keeps its lease. Catalog work runs in threads, model work in the embedder's; the loop only decides.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from whimbrel.catalog import collections, jobs, log, moves
from whimbrel.catalog.engine import now
from whimbrel.domain import ViewState
from whimbrel.errors import CollectionNotFound, Fenced, WhimbrelError
from whimbrel.home import host_name
from whimbrel.owner import views
from whimbrel.owner.lock import Ownership
from whimbrel.owner.outages import OUTAGES, Outages
from whimbrel.owner.parts import Parts, logged
from whimbrel.owner.rest import rest
from whimbrel.owner.runner import Runner
from whimbrel.owner.succession import drop_later

logger = logging.getLogger("whimbrel.owner")

LOG_KEPT = 100_000
"""Changes that stay in the log although every view has them, so that a view from an older copy can catch up."""
ABANDONED_S = 900.0
"""A job that a process of another machine runs, and has not touched for so long, goes back to the queue."""
ALL_JOBS = 1_000_000
WATCH_S = 60.0
"""Between two looks at databases that were adopted."""
JOBS_KEPT_S = 30 * 24 * 3600.0


class Owner:
    """Start it with an `Ownership`; `stop` gives that back."""

    def __init__(self, parts: Parts, ownership: Ownership) -> None:
        self.parts = parts
        self.ownership = ownership
        self.fence = ownership.token
        self.catalog = parts.catalog
        self.failed: WhimbrelError | None = None
        """Why the owner stopped by itself: it was fenced off."""
        self.outages = Outages()
        self.views = views.Views(parts, self.fence, self.outages, self._fenced)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.job_wakes: list[asyncio.Event] = []
        self._stopping: asyncio.Event | None = None
        self._stop_asked = False
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="whimbrel-owner", daemon=True)

    # --- from other threads ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()
        self._started.wait()

    def wake(self) -> None:
        """Something was written: look now, not at the next poll. Nothing happens when the owner has stopped."""
        if self._loop is not None:
            self._call(*(event.set for event in (self.views.wakened, *self.job_wakes)))

    def stop(self, timeout: float = 30.0) -> None:
        """Finish the batch at hand, then give the ownership back."""
        self._stop_asked = True  # it may not have come so far yet that it can be told
        if self._stopping is not None:
            self._call(self._stopping.set)
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning("the owner is in a long step and has not stopped in %.0f s; it still owns the home", timeout)

    def _call(self, *actions: Callable[[], object]) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop has been closed
            for action in actions:
                self._loop.call_soon_threadsafe(action)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def embedded_upto(self) -> dict[int, int]:
        """By collection: the position up to which every change has its vector of record, in every space."""
        return self.views.stages.upto()

    # --- the owner's loop --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Fenced as error:
            self.failed = error
            logger.error("%s %s", error.message, error.hint)
        except WhimbrelError as error:
            self.failed = error
            logger.error("the owner stopped: %s %s", error.message, error.hint)
        finally:
            self._started.set()
            try:
                self.ownership.release()
            except WhimbrelError as error:
                logger.warning("the lease was not given back and will run out: %s", error.message)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        if self._stop_asked:
            self._stopping.set()
        await asyncio.to_thread(self._reclaim)
        runner = Runner(self, self.parts.handlers, host_name())
        self._started.set()
        tasks = [
            asyncio.create_task(self._keep_lease(), name="lease"),
            asyncio.create_task(self.views.look_after(), name="views"),
            asyncio.create_task(self._cut_logs(), name="log"),
            asyncio.create_task(self._watch(), name="watch"),
            asyncio.create_task(runner.loop(), name="jobs"),
        ]
        resting = asyncio.create_task(rest(lambda: runner.idle and self.views.at_rest, views.AT_REST_S), name="rest")
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()  # a loop ends only by an error: Fenced, mostly
        finally:
            self._stopping.set()
            running = [*tasks, *self.views.tasks, resting, stopping]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self.views.close()
            if self.parts.on_stop is not None:
                await self.parts.on_stop()

    @property
    def stopping(self) -> bool:
        return self._stopping is not None and self._stopping.is_set()

    def _reclaim(self) -> None:
        with self.catalog.write(fence=self.fence) as connection:
            for job in (*jobs.reclaim(connection), *jobs.revive(connection)):
                logger.info("job %s (%s) goes on from where its last owner stopped", job.id, job.kind)
            going = {job.args.get("view") for job in jobs.listing(connection, active=True, limit=ALL_JOBS)}
            going |= moves.kept(connection)
            for row in collections.views(connection):
                if row.view.state is ViewState.RETIRED and row.id not in going:  # nobody would drop it any more
                    drop_later(connection, row)

    async def _keep_lease(self) -> None:
        """On SQLite the file lock is what keeps others out: that the catalog cannot be written to now, because it is
        locked or its disk is full, changes nothing. On Postgres the lease may run out meanwhile."""
        renewed = now()
        said = ""
        while True:
            await asyncio.sleep(self.parts.lease_s / 3)
            try:
                kept = await asyncio.to_thread(self.ownership.renew)
            except OUTAGES as error:
                if not self.catalog.is_sqlite and now() - renewed > self.parts.lease_s:
                    raise
                if error.message != said:
                    logger.warning("the lease cannot be renewed now: %s", error.message)
                said = error.message
                continue
            renewed, said = now(), ""
            if not kept:
                raise Fenced(
                    "Another process has become the owner of this home.",
                    "Nothing was lost: it goes on from the same cursors.",
                )

    def _fenced(self, error: Fenced) -> None:
        """Stop at once: nothing that this owner does counts any more."""
        assert self._stopping is not None
        self.failed = error
        self._stopping.set()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            if self.parts.watch is not None:
                look = partial(self.parts.watch, self.fence)
                try:
                    await self.outages.outlast(look, "looking at adopted databases")
                except Fenced:
                    raise
                except Exception as error:  # also a defect, of ours or of a library: views and jobs go on
                    logger.warning("adopted databases could not be looked at: %s", logged(error))

    # --- the log -----------------------------------------------------------------------------------------------------

    async def _cut_logs(self) -> None:
        while True:
            await asyncio.sleep(60.0)
            await self.outages.outlast(lambda: asyncio.to_thread(self._cut), "cutting the log")

    def _cut(self) -> None:
        """Cut each log below its slowest leased view. Views of this home are leased by being followed."""
        with self.catalog.write(fence=self.fence) as connection:
            for key in {*self.views.followers, *self.views.held}:
                collections.set_view(connection, key, lease_until=now() + 3600)
            jobs.forget(connection, now() - JOBS_KEPT_S)
            jobs.release_stale(connection, host_name(), now() - ABANDONED_S)
        for collection, rows in self.views.read():
            leased = [row for row in collections.fed(rows) if row.lease_until > now()]
            if not leased:
                continue
            upto = min(min(row.view.position for row in leased), collection.head - LOG_KEPT)
            if upto > collection.floor:
                # A collection may have been deleted since.
                with suppress(CollectionNotFound), self.catalog.write(fence=self.fence) as connection:
                    log.cut(connection, collection.id, upto)
