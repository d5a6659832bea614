"""What the routes share: the open home, threads for its blocking calls, and what is known of its state."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

from fastapi import Request

from whimbrel.catalog import collections, figures
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.domain import Answer, EmbedKind, ViewKind
from whimbrel.errors import WhimbrelError, place
from whimbrel.server.cached import Cached
from whimbrel.server.health import Health
from whimbrel.server.metrics import HomeFigures, Metrics
from whimbrel.server.providers import Provider

if TYPE_CHECKING:
    from whimbrel.app import Whimbrel

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("whimbrel.server")

FIGURES_S = 15.0
FIRST_FIGURES_S = 5.0

THREADS = 8
"""For calls that read or write rows. Searches use the event loop's own threads, so neither waits for the other."""


class Served:
    def __init__(self, whimbrel: Whimbrel) -> None:
        self.whimbrel = whimbrel
        self.owner_elsewhere = False
        """Whether another process owned the home when it was last looked at."""
        self.metrics = Metrics(whimbrel.cache, whimbrel.guards)
        self.health = Health(self)
        self.provider = Provider(whimbrel)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="api")
        self._figures = Cached(self._read_figures, FIGURES_S)
        self._open: set[int] = set()
        self._warming: asyncio.Task[None] | None = None
        self._warmed = False
        self._problem = ""
        self._problems: dict[int, str] = {}

    async def call(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Run what blocks in a thread, with this request's context."""
        context = contextvars.copy_context()
        bound = functools.partial(context.run, functools.partial(work, *args, **options))
        return await asyncio.get_running_loop().run_in_executor(self._threads, bound)

    @property
    def owner(self) -> bool | Literal["elsewhere"]:
        owner = self.whimbrel.owner
        if owner is not None and owner.running:
            return True
        return "elsewhere" if self.owner_elsewhere else False

    def answered(self, answer: Answer) -> None:
        """Take note of an answer that was given."""
        self.metrics.answered(answer)
        self.provider.saw(answer)

    # --- figures -----------------------------------------------------------------------------------------------------

    async def scraped(self, accept: str) -> tuple[bytes, str]:
        """Metrics as they were last read, and their content type."""
        seen = await self._figures.get(FIRST_FIGURES_S)
        self.metrics.home = seen.value
        return self.metrics.text(accept)

    async def _read_figures(self) -> HomeFigures:
        return await self.call(self._figures_now)

    def _figures_now(self) -> HomeFigures:
        owner = self.whimbrel.owner
        with self.whimbrel.catalog.read() as connection:
            return HomeFigures(
                figures.collection_figures(connection),
                figures.job_counts(connection),
                owner.embedded_upto() if owner is not None else {},
                self.owner is True,
                self.whimbrel.cache.sizes(),
            )

    # --- readiness ---------------------------------------------------------------------------------------------------

    async def not_ready(self) -> list[str]:
        """Why a search would have to wait or be refused; empty when it would not. Views that are being built do not
        count: the collection is searched without them. Begins to open what is not open yet."""
        try:
            wanted = await self.call(self.live)
        except WhimbrelError as error:
            return [f"catalog: {error.message}"]
        missing = [(collection, row) for collection, row in wanted if row.id not in self._open]
        reasons = [self._problem.partition("\n")[0]] if self._problem else []
        if not self._warmed:
            reasons.append("the model and the views are being opened")
        for collection, row in missing if self._warmed else []:
            what = f"view {row.id} ({row.view.kind} of {collection.name!r})"
            reasons.append(f"{what}: {self._problems.get(row.id, 'it is being opened')}")
        if reasons:
            self.warm()
        return reasons

    def warm(self) -> asyncio.Task[None]:
        """Open every live view and load the model, in the background; so that the first search is like the others."""
        if self._warming is None or self._warming.done():
            self._warming = asyncio.create_task(self._try_to_warm(), name="warm")
        return self._warming

    async def _try_to_warm(self) -> None:
        self._problem = ""
        try:
            await self._warm()
        except WhimbrelError as error:
            self._problem = error.message
        except Exception as error:  # whatever it is, requests are answered; /ready and the log say that it was
            self._problem = f"unexpected {place(error)}"
        if self._problem:
            logger.warning("could not warm up: %s", self._problem)
        self._warmed = True

    async def _warm(self) -> None:
        await self.call(lambda: self.whimbrel.asking)  # imported here, not under the first question
        await self._load_model()
        live = await self.call(self.live)
        self._open &= {row.id for _, row in live}
        for collection, row in live:
            if row.id in self._open:
                continue
            try:
                await self._open_view(collection, row)
            except WhimbrelError as error:
                self._problems[row.id] = error.message
                continue
            self._problems.pop(row.id, None)
            self._open.add(row.id)
        await self.whimbrel.engine.warm()

    async def _open_view(self, collection: Collection, row: ViewRow) -> None:
        readers = self.whimbrel.engine.readers
        if row.view.kind is ViewKind.LEXICON:
            await readers.lexicon(row, collection.language)
        else:
            await (await readers.store(row)).count()

    async def _load_model(self) -> None:
        """Also where nothing is indexed yet: the first text that comes would wait for it."""
        embedder = await self.call(self.whimbrel.embedder)
        await embedder.embed(["warm up"], EmbedKind.QUERY)

    def is_open(self, view: int) -> bool:
        return view in self._open

    def trouble(self, row: ViewRow) -> str:
        """What is wrong with a view, as this process or the owner last saw it; empty when nothing is known."""
        return self._problems.get(row.id, "") or row.view.error

    def live(self) -> list[tuple[Collection, ViewRow]]:
        with self.whimbrel.catalog.read() as connection:
            return [
                (collection, row)
                for collection in collections.every(connection)
                if not collection.deleting
                for row in collections.live_views(connection, collection)
                if row is not None
            ]

    async def close(self) -> None:
        """Close what was opened on this loop."""
        await self.whimbrel.models.generators.close()
        await self._figures.close()
        await self.health.close()
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        await self.whimbrel.engine.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def served(request: Request) -> Served:
    found = request.app.state.served
    assert isinstance(found, Served)
    return found
