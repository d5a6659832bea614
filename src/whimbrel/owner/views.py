"""The views of a home: that each collection has those that it needs, and that each is fed, by a follower in a task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from whimbrel.catalog import collections, moves
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.engine import now
from whimbrel.catalog.moves import Move
from whimbrel.domain import ViewKind, ViewState
from whimbrel.errors import (
    ConfigError,
    DiskFull,
    Fenced,
    MissingExtra,
    NotFound,
    ViewDamaged,
    ViewError,
    WhimbrelError,
)
from whimbrel.owner.at_hand import FrozenStores
from whimbrel.owner.embedding import EmbeddingStage
from whimbrel.owner.events import comes
from whimbrel.owner.first import FirstViews
from whimbrel.owner.follower import Follower
from whimbrel.owner.languages import LanguageWatch
from whimbrel.owner.lending import Lender
from whimbrel.owner.outages import Outages
from whimbrel.owner.parts import Parts, Where, logged, said
from whimbrel.owner.stages import Stages
from whimbrel.owner.standing import Patience, Standing
from whimbrel.owner.succession import build_beside, promote
from whimbrel.owner.targets import StoreTarget, Target
from whimbrel.stores.base import Store

logger = logging.getLogger("whimbrel.owner")

AT_REST_S = 30.0
"""A view to which nothing has come for so long is tidied up to the last row."""
CLOSING_S = 1.0
"""How long letting go of a view waits for it to be closed."""


class Views:
    """Lives on the owner's loop."""

    def __init__(self, parts: Parts, fence: int, outages: Outages, on_fenced: Callable[[Fenced], None]) -> None:
        self.followers: dict[int, Follower] = {}
        self.wakened = asyncio.Event()
        self._parts = parts
        self._catalog = parts.catalog
        self._fence = fence
        self._outages = outages
        self._on_fenced = on_fenced
        self.stages = Stages(
            parts, fence, on_progress=self._pass_on, on_error=self._stage_stands_still, on_fenced=on_fenced
        )
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._wakes: dict[int, asyncio.Event] = {}
        self._replacing: set[int] = set()
        self._given_up: set[int] = set()
        self._first = FirstViews(parts, fence)
        self._languages = LanguageWatch(parts.catalog)
        self._heads: dict[int, int] = {}
        self._leaving: dict[asyncio.Task[None], Follower] = {}
        """Views that are let go, and are being closed."""
        self._standing = Standing()
        self._settled: set[int] = set()
        """Views that have been tidied up since they were last written to."""
        self._moving: dict[int, Move] = {}
        """Moves under way, by the views that they make."""
        self._rebuilds: dict[tuple[int, ViewKind], list[float]] = {}
        self._lender = Lender(parts.socket, self._store_of)
        self._frozen = FrozenStores(parts, self._lender.listen)

    @property
    def held(self) -> list[int]:
        """Views that their move does not want to be written to now."""
        return [key for key, move in self._moving.items() if move.held]

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [*self._tasks.values(), *self.stages.tasks]

    async def close(self) -> None:
        """After the tasks have ended."""
        await self._lender.close()
        for follower in (*self.followers.values(), *self._leaving.values()):
            await follower.target.close()
        await self._standing.close_all()
        await self._frozen.close_all()

    # --- which there are ---------------------------------------------------------------------------------------------

    async def look_after(self) -> None:
        """The loop: which views there should be, and that each is fed."""
        while True:
            await self._outages.outlast(self._look, "looking after views")
            await comes(self.wakened, self._parts.poll_s)
            self.wakened.clear()

    async def _look(self) -> None:
        rows, self._moving = await asyncio.to_thread(self._read_with_moves)
        heads = {collection.id: collection.head for collection, _ in rows}
        wanted: dict[int, tuple[Collection, ViewRow]] = {}
        await self._frozen.hold(rows, besides=self._given_up)
        for collection, views in rows:
            await self._first.ensure(collection, views)
            await self._mind_language(collection, views)
            for row in collections.fed(views):
                if row.id in self._moving and self._moving[row.id].held:
                    continue
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
        for key, follower in self.followers.items():
            follower.rows_per_s = self._moving[key].request.rate if key in self._moving else 0.0
        self._heads = heads
        self._nudge(heads)

    def frozen(self, view: int) -> Store | None:
        """The store of a frozen view."""
        return self._frozen.store(view)

    @property
    def at_rest(self) -> bool:
        """Every view has been tidied up, and stands where its log ends."""
        return self.followers.keys() <= self._settled and all(
            follower.position >= self._heads.get(follower.collection_id, 0) for follower in self.followers.values()
        )

    def read(self) -> list[tuple[Collection, list[ViewRow]]]:
        """Every collection with its views, of whatever state."""
        return self._read_with_moves()[0]

    def _read_with_moves(self) -> tuple[list[tuple[Collection, list[ViewRow]]], dict[int, Move]]:
        """Those, and the moves under way by the views that they make, as they are at one moment."""
        with self._catalog.read() as connection:
            every = collections.views(connection)
            rows = [
                (collection, [row for row in every if row.view.collection_id == collection.id])
                for collection in collections.every(connection)
            ]
            going = moves.listing(connection, under_way=True, limit=None)
            return rows, {key: move for move in going for key in move.targets}

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
            await self._beside(collection, live.id, "", None, uri)

    def _nudge(self, heads: Mapping[int, int]) -> None:
        for follower in self.followers.values():
            if heads.get(follower.collection_id, 0) > follower.position:
                self._event(follower.row.id).set()
        self.stages.nudge(heads)

    def _event(self, key: int) -> asyncio.Event:
        return self._wakes.setdefault(key, asyncio.Event())

    async def _follow(self, collection: Collection, row: ViewRow) -> None:
        """Feed one view until it is let go; try again, ever more slowly, while its database does not answer."""
        patience = Patience()
        while True:
            target = None
            try:
                stage = await self.stages.of(collection, row)
                target = self._parts.open_target(collection, row)
                follower = Follower(
                    self._catalog,
                    collection,
                    row,
                    target,
                    stage,
                    fence=self._fence,
                    on_position=lambda: self._pass_on(collection.id),
                )
                follower.rows_per_s = self._moving[row.id].request.rate if row.id in self._moving else 0.0
                await follower.open()
                self.followers[row.id] = follower
                await self._standing.close(row.id)
                if isinstance(target, StoreTarget) and target.store.describe().single_process:
                    await self._lender.listen()
                patience.opened()
                await self._feed(collection, follower)
            except ViewDamaged as error:
                self._replacing.add(row.id)
                await self._forget(row.id, target)
                await asyncio.sleep(self._rebuild_delay(collection.id, row.view.kind))
                await self.replace(collection, row, error.message)
                return
            except Fenced as error:
                self._on_fenced(error)
                raise
            except Exception as error:  # also a defect, of ours or of a library: the view says so and tries again
                reason = said(error)
                logger.warning("view %s stands still: %s", row.id, logged(error))
                await self._set_aside(row.id, target, readable=isinstance(error, DiskFull))
                found = await asyncio.to_thread(self._view_row, row.id)
                if found is None:
                    return
                row = found  # it may have been built, and become live, since it was opened
                # Also a server that does not answer, or refuses: it may be the wrong one.
                elsewhere = isinstance(error, ConfigError | MissingExtra | ViewError)
                if elsewhere and await self._named_wrongly(collection, row):
                    await self.replace(collection, row, reason)
                    return
                await self._note_error(row.id, reason)
                await patience.wait(error)
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
                await follower.pace()
                at_rest = False
                self._settled.discard(follower.row.id)
                since_maintained += 1
                if since_maintained >= 20:
                    await follower.maintain()
                    since_maintained = 0
                continue
            if follower.row.view.state is ViewState.BUILDING:
                if follower.row.id not in self._moving:  # a move compares every row
                    # Its data may be what this machine had built when it was the owner before.
                    await follower.check_count()
                await self._promote(collection, follower)
            if since_maintained:
                await follower.maintain()
                since_maintained = 0
            if follower.row.id not in self._moving:
                await follower.count_again()
            if not await comes(event, AT_REST_S):
                if not at_rest:
                    await follower.settle(count=follower.row.id not in self._moving)  # a move compares every row
                at_rest = True
                self._settled.add(follower.row.id)

    async def _promote(self, collection: Collection, follower: Follower) -> None:
        """A view that has been built and has caught up becomes the live one, if it was built to."""
        switched = await asyncio.to_thread(
            promote, self._catalog, self._fence, collection, follower.row, follower.position
        )
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
        await self._beside(collection, row.id, reason, await self._today(collection, row))

    async def rebuild(self, collection: Collection, row: ViewRow) -> ViewRow | None:
        """Build another view beside one that is fed meanwhile, to take its place. None if there is one already."""
        return await self._beside(collection, row.id, "", await self._today(collection, row))

    async def _today(self, collection: Collection, row: ViewRow) -> Where | None:
        """Where a collection's first view goes today: one that was never live may have been named wrongly, and goes
        there when it is built anew. None for a view that goes where it is."""
        if row.view.state is not ViewState.BUILDING or row.replaces is not None or row.id in self._moving:
            return None
        return await self._first.place_today(collection, row)

    async def _named_wrongly(self, collection: Collection, row: ViewRow) -> bool:
        """Whether what stands in a new view's way is a setting that has been mended since."""
        today = await self._today(collection, row)
        return today is not None and today[0] != row.view.uri

    async def _beside(
        self, collection: Collection, key: int, reason: str, first: Where | None, uri: str | None = None
    ) -> ViewRow | None:
        made = await asyncio.to_thread(build_beside, self._catalog, self._fence, collection, key, reason, first, uri)
        self.wakened.set()
        return made

    async def give_up(self, view: int) -> None:
        """Let go of a view for good: its data is about to be dropped, and whoever has read of it before comes late."""
        self._given_up.add(view)
        await self.let_go(view)
        await self._frozen.close(view)
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
        await self._standing.close(view)
        if follower is not None:
            closing = asyncio.create_task(follower.close(), name=f"close-{view}")
            self._leaving[closing] = follower
            closing.add_done_callback(self._leaving.pop)
            await asyncio.wait([closing], timeout=CLOSING_S)

    def _store_of(self, view: int) -> Store | None:
        follower = self.followers.get(view)
        if follower is not None and isinstance(follower.target, StoreTarget):
            return follower.target.store
        return self._standing.store(view) or self._frozen.store(view)

    async def _forget(self, view: int, target: Target | None) -> None:
        await self._standing.close(view)
        self.followers.pop(view, None)
        self._settled.discard(view)
        if target is not None:
            await target.close()

    async def _set_aside(self, view: int, target: Target | None, *, readable: bool) -> None:
        """Of a view that stands still, until it is opened anew. `readable`: only writing to it failed, and where its
        disk is full some databases cannot be opened again; so what was open is searched meanwhile."""
        was_open = view in self.followers
        if readable and was_open and target is not None:
            self.followers.pop(view)
            self._settled.discard(view)
            self._standing.put(view, target)
        elif readable:  # it was not even opened: what stood aside before goes on doing so
            if target is not None:
                await target.close()
        else:
            await self._forget(view, target)

    async def _note_error(self, view: int, what: str) -> None:
        def work() -> None:
            with self._catalog.write(fence=self._fence) as connection:
                collections.set_view(connection, view, error=what)

        try:
            await asyncio.to_thread(work)
        except WhimbrelError as error:  # the catalog is what is out; the log has both
            logger.warning("could not record the state of view %s: %s", view, error.message)

    def _view_row(self, view: int) -> ViewRow | None:
        with self._catalog.read() as connection:
            try:
                return collections.view(connection, view)
            except NotFound:
                return None

    def _pass_on(self, collection_id: int) -> None:
        """A stage or a view has come further: those that wait for it look again."""
        for follower in self.followers.values():
            if follower.collection_id == collection_id:
                self._event(follower.row.id).set()

    async def _stage_stands_still(self, stage: EmbeddingStage, what: str) -> None:
        for follower in list(self.followers.values()):
            if follower.stage is stage:
                await self._note_error(follower.row.id, what)

    async def have_passed(self, collection_id: int, position: int) -> bool:
        """True when every fed view of the collection has passed `position`."""

        def work() -> bool:
            with self._catalog.read() as connection:
                views = collections.fed(collections.views(connection, collection_id))
                return all(row.view.position >= position and row.view.state is not ViewState.BUILDING for row in views)

        return await asyncio.to_thread(work)
