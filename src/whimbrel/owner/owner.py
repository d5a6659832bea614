"""The owner: the one process of a home that changes views.

It runs in a thread of its own with its own event loop, beside an API or a CLI command in the same process, or alone. It
feeds the views (a follower each), fills the vectors of record (a stage for each collection and space), runs the jobs,
and keeps its lease. Catalog work runs in threads, model work in the embedder's; the loop only decides.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from whimbrel.catalog import collections, jobs, log
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.engine import Catalog, now
from whimbrel.domain import ViewKind, ViewState
from whimbrel.errors import (
    CollectionNotFound,
    ConfigError,
    Fenced,
    ModelError,
    NotFound,
    UserError,
    ViewDamaged,
    WhimbrelError,
    place,
    spot,
)
from whimbrel.home import host_name
from whimbrel.models.embedders.base import Embedder
from whimbrel.owner.embedding import EmbeddingStage
from whimbrel.owner.events import comes
from whimbrel.owner.follower import Follower
from whimbrel.owner.languages import LanguageWatch
from whimbrel.owner.lock import Ownership
from whimbrel.owner.outages import OUTAGES, Outages
from whimbrel.owner.rest import rest
from whimbrel.owner.runner import Handler, Runner
from whimbrel.owner.targets import Target

logger = logging.getLogger("whimbrel.owner")

LOG_KEPT = 100_000
"""Changes that stay in the log although every view has them, so that a view from an older copy can catch up."""
AT_REST_S = 30.0
"""A view to which nothing has come for so long is tidied up to the last row."""
ABANDONED_S = 900.0
"""A job that a process of another machine runs, and has not touched for so long, goes back to the queue."""
ALL_JOBS = 1_000_000
CLOSING_S = 1.0
"""How long letting go of a view waits for it to be closed."""
JOBS_KEPT_S = 30 * 24 * 3600.0
DROP_GRACE_S = 60.0
"""How long the data of a replaced view stays, for searches that have it open."""


Where = tuple[str, int | None, int]
"""(uri, space, chunking) of a view to be made."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the owner works with; wired by `whimbrel.app`."""

    catalog: Catalog
    open_target: Callable[[Collection, ViewRow], Target]
    embedder_for: Callable[[int], Embedder]
    """By space key of the catalog. Raises when the configured model is not of that space."""
    default_view: Callable[[Collection, ViewKind], Where | None]
    """Where a collection's first view of a kind goes; None while that cannot be told yet."""
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    on_stop: Callable[[], Coroutine[Any, Any, None]] | None = None
    """Runs last on the owner's loop: what jobs have opened on it is closed there."""
    poll_s: float = 0.2
    lease_s: float = 15.0
    batch: int = 128


class Owner:
    """Start it with an `Ownership`; `stop` gives that back."""

    def __init__(self, parts: Parts, ownership: Ownership) -> None:
        self.parts = parts
        self.ownership = ownership
        self.fence = ownership.token
        self.catalog = parts.catalog
        self.failed: WhimbrelError | None = None
        """Why the owner stopped by itself: it was fenced off."""
        self.followers: dict[int, Follower] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._stages: dict[tuple[int, int, int], tuple[EmbeddingStage, asyncio.Task[None]]] = {}
        self._staging = asyncio.Lock()
        self.outages = Outages()
        self._wakes: dict[int, asyncio.Event] = {}
        self._replacing: set[int] = set()
        self._given_up: set[int] = set()
        self._cannot_make: dict[tuple[int, ViewKind], str] = {}
        self._languages = LanguageWatch(parts.catalog)
        self._heads: dict[int, int] = {}
        self._leaving: dict[asyncio.Task[None], Follower] = {}
        """Views that are let go, and are being closed."""
        self._settled: set[int] = set()
        """Views that have been tidied up since they were last written to."""
        self._rebuilds: dict[tuple[int, ViewKind], list[float]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
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
        if self._wake is not None:
            self._call(*(event.set for event in (self._wake, *self.job_wakes)))

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
        reached: dict[int, int] = {}
        for (collection_id, _, _), (stage, _) in list(self._stages.items()):
            reached[collection_id] = min(stage.upto, reached.get(collection_id, stage.upto))
        return reached

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
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        if self._stop_asked:
            self._stopping.set()
        await asyncio.to_thread(self._reclaim)
        runner = Runner(self, self.parts.handlers, host_name())
        self._started.set()
        tasks = [
            asyncio.create_task(self._keep_lease(), name="lease"),
            asyncio.create_task(self._look_after_views(), name="views"),
            asyncio.create_task(self._cut_logs(), name="log"),
            asyncio.create_task(runner.loop(), name="jobs"),
        ]
        resting = asyncio.create_task(rest(lambda: runner.idle and self._at_rest(), AT_REST_S), name="rest")
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()  # a loop ends only by an error: Fenced, mostly
        finally:
            self._stopping.set()
            running = [*tasks, *self._tasks.values(), *(task for _, task in self._stages.values()), resting, stopping]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for follower in (*self.followers.values(), *self._leaving.values()):
                await follower.target.close()
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
            for row in collections.views(connection):
                if row.view.state is ViewState.RETIRED and row.id not in going:  # nobody would drop it any more
                    _drop_later(connection, row)

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

    # --- views -------------------------------------------------------------------------------------------------------

    async def _look_after_views(self) -> None:
        assert self._wake is not None
        while True:
            await self.outages.outlast(self._look_at_views, "looking after views")
            await comes(self._wake, self.parts.poll_s)
            self._wake.clear()

    async def _look_at_views(self) -> None:
        rows = await asyncio.to_thread(self._read_views)
        heads = {collection.id: collection.head for collection, _ in rows}
        wanted: dict[int, tuple[Collection, ViewRow]] = {}
        for collection, views in rows:
            await self._ensure_views(collection, views)
            await self._mind_language(collection, views)
            for row in collections.fed(views):
                wanted[row.id] = (collection, row)
                if row.suspect and row.id not in self._replacing:
                    await self.replace(collection, row, row.suspect)
        # What was to take a view's place may have been dropped: then that one is fed, or found damaged, again.
        self._replacing &= {row.replaces for _, row in wanted.values() if row.replaces is not None} | {
            key for key, task in self._tasks.items() if not task.done()
        }
        for key in [key for key in self._tasks if key not in wanted]:
            await self.let_go(key)
        for key, (collection, row) in wanted.items():
            task = self._tasks.get(key)
            if (task is None or task.done()) and key not in self._replacing | self._given_up:
                self._tasks[key] = asyncio.create_task(self._follow(collection, row), name=f"view-{key}")
        self._heads = heads
        self._nudge(heads)

    def _at_rest(self) -> bool:
        """Every view has been tidied up, and stands where its log ends."""
        return self.followers.keys() <= self._settled and all(
            follower.position >= self._heads.get(follower.collection_id, 0) for follower in self.followers.values()
        )

    def _read_views(self) -> list[tuple[Collection, list[ViewRow]]]:
        with self.catalog.read() as connection:
            every = collections.views(connection)
            return [
                (collection, [row for row in every if row.view.collection_id == collection.id])
                for collection in collections.every(connection)
            ]

    async def _ensure_views(self, collection: Collection, views: list[ViewRow]) -> None:
        """Each collection has a live store view and lexicon, or one being built."""
        for kind, live in ((ViewKind.LEXICON, collection.lexicon_view_id), (ViewKind.STORE, collection.store_view_id)):
            if live is not None or any(row.view.kind is kind for row in collections.fed(views)):
                continue
            try:
                made = await asyncio.to_thread(self.parts.default_view, collection, kind)
            except (UserError, ModelError) as error:  # the model is not there, or its name is wrong
                if self._cannot_make.get((collection.id, kind)) != error.message:
                    self._cannot_make[collection.id, kind] = error.message
                    logger.warning("no %s view of %s can be made: %s", kind, collection.name, error.message)
                continue
            if made is not None:
                await asyncio.to_thread(self._add_view, collection, kind, *made)

    async def _mind_language(self, collection: Collection, views: list[ViewRow]) -> None:
        """A lexicon in another language is another view: it is built beside the old one, which is fed meanwhile."""
        live = next((row for row in views if row.id == collection.lexicon_view_id), None)
        if live is None or live.id in self._replacing or any(row.replaces == live.id for row in collections.fed(views)):
            return
        if not self._languages.is_due(collection, live):
            return
        uri = await asyncio.to_thread(self._languages.other_uri, collection, live)
        if uri is not None:
            logger.info("the lexicon of %s is built anew as %s", collection.name, uri)
            await asyncio.to_thread(self._build_beside, collection, live.id, "", None, uri)
            self.wake()

    def _add_view(
        self, collection: Collection, kind: ViewKind, uri: str, space: int | None, chunking: int
    ) -> ViewRow | None:
        with suppress(CollectionNotFound), self.catalog.write(fence=self.fence) as connection:
            log.lock(connection, collection.id)
            if any(row.view.kind is kind for row in collections.fed(collections.views(connection, collection.id))):
                return None  # a rebuild was quicker
            return collections.add_view(connection, collection, kind, uri=uri, space_id=space, chunking_id=chunking)
        return None  # deleted meanwhile

    def _nudge(self, heads: Mapping[int, int]) -> None:
        for follower in self.followers.values():
            if heads.get(follower.collection_id, 0) > follower.position:
                self._event(follower.row.id).set()
        for (collection_id, _, _), (stage, _) in self._stages.items():
            if heads.get(collection_id, 0) > stage.upto:
                self._event(-id(stage)).set()

    def _event(self, key: int) -> asyncio.Event:
        return self._wakes.setdefault(key, asyncio.Event())

    async def _follow(self, collection: Collection, row: ViewRow) -> None:
        """Feed one view until it is let go; try again, ever more slowly, while its database does not answer."""
        patience = 0.5
        while True:
            target = None
            try:
                stage = await self._stage(collection, row)
                target = self.parts.open_target(collection, row)
                follower = Follower(
                    self.catalog,
                    collection,
                    row,
                    target,
                    stage,
                    fence=self.fence,
                    on_position=lambda: self._pass_on(collection.id),
                )
                await follower.open()
                self.followers[row.id] = follower
                patience = 0.5
                await self._feed(collection, follower)
            except ViewDamaged as error:
                self._replacing.add(row.id)
                await self._forget(row.id, target)
                await asyncio.sleep(self._rebuild_delay(collection.id, row.view.kind))
                await self.replace(collection, row, error.message)
                return
            except Fenced as error:
                self._fenced(error)
                raise
            except Exception as error:  # also a defect, of ours or of a library: the view says so and tries again
                said = _said(error)
                logger.warning("view %s stands still: %s", row.id, _logged(error))
                await self._forget(row.id, target)
                if isinstance(error, ConfigError) and await self._named_wrongly(collection, row):
                    await self.replace(collection, row, said)
                    return
                await self._note_error(row.id, said)
                await asyncio.sleep(patience)
                patience = min(patience * 2, 30.0)
                found = await asyncio.to_thread(self._view_row, row.id)
                if found is None:
                    return
                row = found

    async def _feed(self, collection: Collection, follower: Follower) -> None:
        event = self._event(follower.row.id)
        since_maintained = 0
        at_rest = False
        while True:
            event.clear()
            if await follower.step():
                at_rest = False
                self._settled.discard(follower.row.id)
                since_maintained += 1
                if since_maintained >= 20:
                    await follower.maintain()
                    since_maintained = 0
                continue
            if follower.row.view.state is ViewState.BUILDING:
                await follower.check_count()  # its data may be what this machine had built when it was the owner before
                await self._promote(collection, follower)
            if since_maintained:
                await follower.maintain()
                since_maintained = 0
            if not await comes(event, AT_REST_S):
                if not at_rest:
                    await follower.settle()
                at_rest = True
                self._settled.add(follower.row.id)

    async def _promote(self, collection: Collection, follower: Follower) -> None:
        """A view that has been built and has caught up becomes the live one, if it was built to."""

        def work() -> tuple[ViewRow, int | None] | None:
            with suppress(CollectionNotFound), self.catalog.write(fence=self.fence) as connection:
                log.lock(connection, collection.id)
                found = collections.by_id(connection, collection.id)
                if found is None or found.head != follower.position:
                    return None
                live = found.store_view_id if follower.row.view.kind is ViewKind.STORE else found.lexicon_view_id
                if live is not None and live != follower.row.replaces:
                    return None
                before = collections.switch(connection, found.id, follower.row)
                if before is not None:
                    collections.set_view(connection, before, state=ViewState.RETIRED)
                    _drop_later(connection, collections.view(connection, before))
                return collections.view(connection, follower.row.id), before
            return None  # deleted meanwhile

        switched = await asyncio.to_thread(work)
        if switched is not None:
            follower.row, before = switched
            if before is not None:
                self._replacing.discard(before)
                logger.info("view %s has taken the place of view %s", follower.row.id, before)

    def _rebuild_delay(self, collection_id: int, kind: ViewKind) -> float:
        """Seconds to wait before a view is built anew: none at first, ever longer for one that breaks again."""
        recent = [at for at in self._rebuilds.get((collection_id, kind), []) if at > now() - 600]
        self._rebuilds[collection_id, kind] = [*recent, now()]
        return min(2.0 ** len(recent), 120.0) if len(recent) > 1 else 0.0

    async def replace(self, collection: Collection, row: ViewRow, reason: str) -> None:
        """Build another view beside a damaged one, to take its place; that one is not fed any more."""
        self._replacing.add(row.id)
        await self.let_go(row.id)
        logger.warning("view %s of %s is built anew: %s", row.id, collection.name, reason)
        await asyncio.to_thread(self._build_beside, collection, row.id, reason, await self._today(collection, row))
        self.wake()

    async def rebuild(self, collection: Collection, row: ViewRow) -> ViewRow | None:
        """Build another view beside one that is fed meanwhile, to take its place. None if there is one already."""
        made = await asyncio.to_thread(self._build_beside, collection, row.id, "", await self._today(collection, row))
        self.wake()
        return made

    async def _today(self, collection: Collection, row: ViewRow) -> Where | None:
        """Where a collection's first view goes today: one that was never live may have been named wrongly, and goes
        there when it is built anew. None for a view that goes where it is."""
        if row.view.state is not ViewState.BUILDING or row.replaces is not None:
            return None
        try:
            return await asyncio.to_thread(self.parts.default_view, collection, row.view.kind)
        except (UserError, ModelError) as error:  # the model is not there, or its name is wrong
            logger.warning("view %s is built anew as it was: %s", row.id, error.message)
            return None

    async def _named_wrongly(self, collection: Collection, row: ViewRow) -> bool:
        """Whether what stands in a new view's way is a setting that has been mended since."""
        today = await self._today(collection, row)
        return today is not None and today[0] != row.view.uri

    def _build_beside(
        self, collection: Collection, key: int, reason: str, first: Where | None, uri: str | None = None
    ) -> ViewRow | None:
        """`first`: where it goes if it was never live; `uri`: another one than it has, for a live one."""
        with suppress(CollectionNotFound), self.catalog.write(fence=self.fence) as connection:
            log.lock(connection, collection.id)  # or two that find it damaged at once would each build another
            views = collections.fed(collections.views(connection, collection.id))
            row = next((row for row in views if row.id == key), None)  # as it is now: it may have become live since
            if row is None:
                return None
            where = (row.view.uri, row.view.space_id, row.view.chunking_id)
            if row.view.state is ViewState.BUILDING and row.replaces is None:
                where = first or where
            if row.view.state is ViewState.BUILDING:  # it was never live: simply begin again
                collections.set_view(connection, key, state=ViewState.RETIRED, error=reason)
                _drop_later(connection, row)
                replaces = row.replaces
            else:
                said = f"being replaced: {reason}" if reason else row.view.error
                collections.set_view(connection, key, suspect="", error=said)
                replaces = key
            same = [other for other in views if other.id != key and other.view.kind is row.view.kind]
            if any(other.view.state is ViewState.BUILDING and other.replaces == replaces for other in same):
                return None
            same_uri, space, chunking = where
            return collections.add_view(
                connection,
                collection,
                row.view.kind,
                uri=uri or same_uri,
                space_id=space,
                chunking_id=chunking,
                replaces=replaces,
            )
        return None

    async def give_up(self, view: int) -> None:
        """Let go of a view for good: its data is about to be dropped, and whoever has read of it before comes late."""
        self._given_up.add(view)
        await self.let_go(view)
        leaving = [task for task, follower in self._leaving.items() if follower.row.id == view]
        if leaving:
            await asyncio.wait(leaving)

    async def let_go(self, view: int) -> None:
        """Stop feeding a view and close it: as soon as a purge or a comparison that is at it has ended."""
        task = self._tasks.pop(view, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        follower = self.followers.pop(view, None)
        self._settled.discard(view)
        if follower is not None:
            closing = asyncio.create_task(follower.close(), name=f"close-{view}")
            self._leaving[closing] = follower
            closing.add_done_callback(self._leaving.pop)
            await asyncio.wait([closing], timeout=CLOSING_S)

    async def _forget(self, view: int, target: Target | None) -> None:
        self.followers.pop(view, None)
        self._settled.discard(view)
        if target is not None:
            await target.close()

    async def _note_error(self, view: int, said: str) -> None:
        def work() -> None:
            with self.catalog.write(fence=self.fence) as connection:
                collections.set_view(connection, view, error=said)

        try:
            await asyncio.to_thread(work)
        except WhimbrelError as error:  # the catalog is what is out; the log has both
            logger.warning("could not record the state of view %s: %s", view, error.message)

    def _view_row(self, view: int) -> ViewRow | None:
        with self.catalog.read() as connection:
            try:
                return collections.view(connection, view)
            except NotFound:
                return None

    # --- the embedding stage -----------------------------------------------------------------------------------------

    async def _stage(self, collection: Collection, row: ViewRow) -> EmbeddingStage | None:
        space = row.view.space_id
        if row.view.kind is not ViewKind.STORE or space is None:
            return None
        key = (collection.id, row.view.chunking_id, space)
        async with self._staging:  # or two views that begin at once would each pay for the same texts
            known = self._stages.get(key)
            if known is not None and not known[1].done():
                return known[0]
            embedder = await asyncio.to_thread(self.parts.embedder_for, space)
            stage = EmbeddingStage(
                self.catalog,
                embedder,
                collection_id=collection.id,
                chunking_id=row.view.chunking_id,
                space_id=space,
                after=await asyncio.to_thread(self._lowest, collection.id, row),
                fence=self.fence,
                batch=self.parts.batch,
                on_progress=lambda: self._pass_on(collection.id),
            )
            self._stages[key] = (stage, asyncio.create_task(self._embed(stage, collection.id), name=f"embed-{key}"))
            return stage

    def _lowest(self, collection_id: int, row: ViewRow) -> int:
        """The position of the slowest view that holds the same vectors: a stage that began further on would leave out
        what that one has still to get."""
        same = (row.view.space_id, row.view.chunking_id)
        with self.catalog.read() as connection:
            fed = collections.fed(collections.views(connection, collection_id))
        found = [other.view.position for other in fed if (other.view.space_id, other.view.chunking_id) == same]
        return min([row.view.position, *found])

    async def _embed(self, stage: EmbeddingStage, collection_id: int) -> None:
        event = self._event(-id(stage))
        patience = 1.0
        while True:
            event.clear()
            try:
                if await stage.step():
                    stage.error = ""
                    patience = 1.0
                    self._pass_on(collection_id)
                    continue
            except Fenced as error:
                self._fenced(error)
                raise
            except Exception as error:  # as in `_follow`
                stage.error = _said(error)
                logger.warning("embedding stands still: %s", _logged(error))
                for follower in list(self.followers.values()):
                    if follower.stage is stage:
                        await self._note_error(follower.row.id, f"embedding stands still: {stage.error}")
                await asyncio.sleep(patience)
                patience = min(patience * 2, 60.0)
                continue
            await comes(event, 30.0)

    def _fenced(self, error: Fenced) -> None:
        """Stop at once: nothing that this owner does counts any more."""
        assert self._stopping is not None
        self.failed = error
        self._stopping.set()

    def _pass_on(self, collection_id: int) -> None:
        """A stage or a view has come further: those that wait for it look again."""
        for follower in self.followers.values():
            if follower.collection_id == collection_id:
                self._event(follower.row.id).set()

    # --- the log -----------------------------------------------------------------------------------------------------

    async def _cut_logs(self) -> None:
        while True:
            await asyncio.sleep(60.0)
            await self.outages.outlast(lambda: asyncio.to_thread(self._cut), "cutting the log")

    def _cut(self) -> None:
        """Cut each log below its slowest leased view. Views of this home are leased by being followed."""
        with self.catalog.write(fence=self.fence) as connection:
            for key in self.followers:
                collections.set_view(connection, key, lease_until=now() + 3600)
            jobs.forget(connection, now() - JOBS_KEPT_S)
            jobs.release_stale(connection, host_name(), now() - ABANDONED_S)
        for collection, views in self._read_views():
            leased = [row for row in collections.fed(views) if row.lease_until > now()]
            if not leased:
                continue
            upto = min(min(row.view.position for row in leased), collection.head - LOG_KEPT)
            if upto > collection.floor:
                # A collection may have been deleted since.
                with suppress(CollectionNotFound), self.catalog.write(fence=self.fence) as connection:
                    log.cut(connection, collection.id, upto)

    async def wait_for_views(self, collection_id: int, position: int) -> bool:
        """True when every fed view of the collection has passed `position`."""

        def work() -> bool:
            with self.catalog.read() as connection:
                views = collections.fed(collections.views(connection, collection_id))
                return all(row.view.position >= position and row.view.state is not ViewState.BUILDING for row in views)

        return await asyncio.to_thread(work)


def _drop_later(connection: Connection, row: ViewRow) -> None:
    """Enqueue the removal of a retired view's data."""
    collection = collections.by_id(connection, row.view.collection_id)
    name = collection.name if collection is not None else None
    jobs.enqueue(connection, "drop_view", collection_id=row.view.collection_id, collection=name, args={"view": row.id})


def _said(error: Exception) -> str:
    """For people. The message of an error that is not ours may quote a document."""
    if isinstance(error, WhimbrelError):
        return error.message
    return f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else spot(error)


def _logged(error: Exception) -> str:
    return _said(error) if isinstance(error, WhimbrelError | OSError) else place(error)
