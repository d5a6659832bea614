"""The composition root: settings in, a `Whimbrel` with all parts wired out. What a program imports.

    with Whimbrel(home="~/notes-index") as whimbrel:
        whimbrel.ingest(["~/notes"])
        for hit in whimbrel.search("how do I back up?").hits:
            print(hit.score, hit.uri, hit.text)

Any number of processes may use one home. What changes views is done by its owner: this process, if nobody is.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from whimbrel.adopt.job import Adopter
from whimbrel.adopt.sameness import Watch
from whimbrel.catalog import jobs, leases, migrate
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.config import Settings, load_settings
from whimbrel.domain import Answer, AnswerEvent, Job, Mode, SearchResult, ViewKind
from whimbrel.errors import AlreadyOwned, BadQuery
from whimbrel.home import Home, host_name
from whimbrel.ingest.jobs import Reading
from whimbrel.ingest.pipeline import Guard
from whimbrel.ingest.recut import Recut
from whimbrel.lexicon.language import language_of
from whimbrel.lexicon.tantivy import TantivyLexicon
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.serving import ServingEmbedder
from whimbrel.models.rerankers.base import Reranker
from whimbrel.move.cutting import Cutter
from whimbrel.move.driver import Mover
from whimbrel.owner import lock
from whimbrel.owner.erase import Eraser
from whimbrel.owner.forgetting import forget_chunkings
from whimbrel.owner.lending import borrowed, store_of
from whimbrel.owner.owner import Owner
from whimbrel.owner.parts import Parts
from whimbrel.owner.runner import JobContext, run
from whimbrel.owner.targets import LexiconTarget, StoreTarget, Target
from whimbrel.owner.tasks import delete_collection, drop_view, rebuild_view, verify_view
from whimbrel.search.engine import Limits, SearchEngine, SearchRequest
from whimbrel.search.quality import Quality
from whimbrel.search.readers import Readers
from whimbrel.service import Service
from whimbrel.service.usage import used
from whimbrel.stores.base import Reach, Store
from whimbrel.stores.resolve import parse_uri
from whimbrel.wiring.cutting import Cuttings
from whimbrel.wiring.first_views import FirstViews
from whimbrel.wiring.models import Models

if TYPE_CHECKING:
    from whimbrel.answer.asking import Asked, Asking

T = TypeVar("T")

PASSAGES = 8
"""Chunks that an answer is made from."""


class Whimbrel(Service):
    """One home, open. Thread-safe; close it, or use it in a `with` block."""

    def __init__(self, home: str | Path | None = None, *, settings: Settings | None = None, **overrides: Any) -> None:
        """`overrides` are settings by name, sections joined by dots in a mapping: `**{"search.top_k": 5}`.

        Raises `ConfigError`, `HomeError`, `NewerHome`, `CatalogUnavailable`.
        """
        path = Path(home).expanduser() if home is not None else None
        self.settings = settings or load_settings(home=path, overrides=overrides)
        parse_uri(self.settings.store)  # before it is written into a collection's first view
        self.home = Home(self.settings.home)
        self.home.prepare()
        catalog = Catalog(self.settings.catalog)
        migrate.ensure_schema(catalog, copies=self.home.copies)
        super().__init__(catalog, self.settings, self.home)
        self.models = Models(self.settings, catalog, self.home.cache)
        self.cache = self.models.cache
        self.guards = self.models.guards
        self.cuttings = Cuttings(self.settings, catalog, self.models.embedders)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_lock = threading.Lock()
        search = self.settings.search
        limits = Limits(
            search.top_k, search.max_top_k, search.max_query_chars, search.candidates, search.timeout_s, search.queries
        )
        readers = Readers(self._store, self._lexicon)
        self.engine = SearchEngine(
            catalog,
            readers,
            self.models.embedders.searching,
            limits,
            may_judge=self._views_are_here,
            reranking=self.models.rerankers.stage,
            ask_otherwise=self.models.ask_otherwise,
        )
        reach, stores = Reach(*self.settings.stores.reach), self.settings.configured_stores()
        self.watch = Watch(catalog, self.home.path, self.home.adopted, reach, stores)

    # --- searching ---------------------------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        collection: str = "default",
        *,
        top_k: int | None = None,
        mode: Mode | str = Mode.HYBRID,
        filter: Any = None,
        threshold: float = 0.0,
        min_position: int = 0,
        queries: int | None = None,
    ) -> SearchResult:
        """The best chunks for a query. What the options mean stands at `whimbrel.search.engine.SearchRequest`."""
        request = SearchRequest(query, collection, top_k, _mode(mode), filter, threshold, min_position, queries)
        return self._run(self.engine.search(request))

    async def asearch(
        self,
        query: str,
        collection: str = "default",
        *,
        top_k: int | None = None,
        mode: Mode | str = Mode.HYBRID,
        filter: Any = None,
        threshold: float = 0.0,
        min_position: int = 0,
        queries: int | None = None,
    ) -> SearchResult:
        """As `search`, on the caller's event loop."""
        request = SearchRequest(query, collection, top_k, _mode(mode), filter, threshold, min_position, queries)
        return await self.engine.search(request)

    # --- asking ------------------------------------------------------------------------------------------------------

    def ask(self, question: str, collection: str = "default", **options: Any) -> Answer:
        """Answer from the collection, with citations whose quotes are exactly the documents' text.

        The options are those of `aask_stream`.
        """
        return self._run(self.aask(question, collection, **options))

    async def aask(self, question: str, collection: str = "default", **options: Any) -> Answer:
        """As `ask`, on the caller's event loop."""
        return await self.asking.answer(_asked(question, collection, **options))

    def ask_stream(self, question: str, collection: str = "default", **options: Any) -> Generator[AnswerEvent]:
        """As `aask_stream`, without an event loop. To stop before the end, close it: `contextlib.closing`."""
        events = self.aask_stream(question, collection, **options)
        try:
            while (event := self._run(_next(events))) is not None:
                yield event
        finally:
            self._run(events.aclose())

    def aask_stream(self, question: str, collection: str = "default", **options: Any) -> AsyncGenerator[AnswerEvent]:
        """An answer as it is made: `Passages`, then `TextDelta`s where a model writes, then the checked `Answer`.

        The `Answer` counts: where a model fails in the middle of writing, it is made of the documents' own sentences,
        and its `degraded` says why. To stop before the end, close it: `contextlib.aclosing`.

        `top_k` passages are read, 8 unless given; `mode`, `filter` and `threshold` are those of `search`. `model`
        answers instead of the configured one: `provider:model`, or `extractive`. `fresh`: not an answer that was given
        before to the same question in the same state of the collection. `conversation_id`: the question
        follows those of a conversation, and is stored with its answer; `new` begins one, whose id the answer names.

        Raises as `search` does; `ConfigError` for a provider that there is not; `ConversationNotFound`, `Conflict`;
        and, where `model` is given, `ModelUnusable` (no key, a wrong one, no such model) and `MissingExtra`.
        """
        return self.asking.events(_asked(question, collection, **options))

    @cached_property
    def asking(self) -> Asking:
        from whimbrel.answer.asking import Asking

        return Asking(self.catalog, self.engine, self.settings, self.cache, self.models.generator)

    # --- models ------------------------------------------------------------------------------------------------------

    def usage(self, since: str | None = None, by: str = "model") -> dict[str, Any]:
        """What models beyond this machine took, by `model`, `key` or `day` (UTC); the budgets, and models that are not
        asked now. `since`: `24h`, `7d`, a date; without it, since the first of the month. Raises `InvalidRequest`."""
        return used(self.catalog, self.guards, since, by)

    def status(self) -> dict[str, Any]:
        """Collections, documents by state, views with their lag, jobs that are not done; models that are not asked now
        and budgets."""
        return {**super().status(), "models": self.guards.state()}

    # --- owning ------------------------------------------------------------------------------------------------------

    def own(self) -> bool:
        """Become the owner, if nobody is. True when this process owns the home now."""
        if self.owner is not None and self.owner.running:
            return True
        try:
            ownership = lock.acquire(self.home, self.catalog, lease_s=self.settings.owner.lease_s)
        except AlreadyOwned:
            return False
        self.owner = Owner(self._parts(), ownership)
        self.owner.start()
        return True

    def run_here(self, job: Job) -> None:
        lease = self.owner_lease()
        if lease is None or lease.info.get("host") == host_name() or job.kind not in jobs.READING:
            return
        with self.catalog.write() as connection:
            claimed = jobs.claim(connection, [job.kind], host_name(), job.id)
        if claimed is None:
            return
        parts = self._parts()

        async def work() -> None:
            try:
                await run(JobContext(*claimed, self.catalog, None, None), parts.handlers[job.kind])
            finally:
                await self.cuttings.close_pool()

        asyncio.run(work())

    def owner_lease(self) -> leases.Lease | None:
        """The lease of the owner, whoever that is; None if there is none alive."""
        return lock.lease_of(self.home, self.catalog)

    def _views_are_here(self) -> bool:
        """Whether the views' files lie in this home: on Postgres the owner may be another home, with its own."""
        if self.catalog.is_sqlite:
            return True
        lease = self.owner_lease()
        here = (host_name(), str(self.home.path))
        return lease is None or (lease.info.get("host"), lease.info.get("home")) == here

    def _parts(self) -> Parts:
        settings = self.settings
        reading = Reading(
            pool=self.cuttings.pool,
            cutting_of=self.cuttings.of,
            guard=Guard(settings.ingest.gone_guard_share, settings.ingest.gone_guard_min),
            in_flight=4 * settings.ingest.workers,
            secrets=self,
        )
        return Parts(
            catalog=self.catalog,
            open_target=self._target,
            embedder_for=self.embedder_for,
            default_view=FirstViews(settings, self.catalog, self.models.embedders, self.cuttings),
            socket=self.home.owner_socket,
            handlers={
                "ingest": reading.ingest,
                "add": reading.add,
                "purge": Eraser(settings.owner.erasure_grace_s, self.cache.erase),
                "verify_view": verify_view,
                "rebuild_view": rebuild_view,
                "drop_view": drop_view,
                "delete_collection": self._delete_collection,
                "adopt": Adopter(
                    self.home.path, self.home.adopted, Reach(*settings.stores.reach), settings.configured_stores
                ),
                "forget_chunkings": forget_chunkings,
                "import": _import,
                "move": Mover(
                    self.embedder_for,
                    Cutter(Recut(self.cuttings.pool, self.cuttings.of)),
                    self._quality(),
                    self.reporter,
                ),
            },
            on_stop=self.cuttings.close_pool,
            watch=self._look_about,
            poll_s=settings.owner.poll_s,
            lease_s=settings.owner.lease_s,
            batch=settings.embed.batch,
        )

    async def _delete_collection(self, context: JobContext) -> Mapping[str, Any]:
        done = await delete_collection(context)
        await asyncio.to_thread(self.cache.forget_answers, int(context.job.args["collection_id"]))
        return done

    async def _look_about(self, fence: int) -> None:
        await self.drop_leftovers()
        await self.watch.look(fence)

    def _quality(self) -> Quality:
        search = self.settings.search
        return Quality(
            self.catalog,
            self._store,
            self._lexicon,
            self.embedder_for,
            candidates=search.candidates,
            max_query_chars=search.max_query_chars,
        )

    # --- parts -------------------------------------------------------------------------------------------------------

    def embedder(self, spec: str | None = None) -> Embedder:
        """The embedder of a `provider:model`, or of the settings with what stands in for it; behind its guards, opened
        once. Raises `ConfigError`."""
        return self.models.embedders.of(spec)

    def embedder_for(self, space_id: int) -> ServingEmbedder:
        """The embedder of a space of the catalog: its own model, or what was declared compatible with it, as the
        catalog says at each call. Raises `SpaceMismatch` when the model is not what it was."""
        return self.models.embedders.of_space(space_id)

    def reranker(self) -> Reranker:
        """The configured reranker; opened once. Raises `ConfigError`, also where none is configured; `ModelError`."""
        return self.models.rerankers.opened()

    def _look_again(self, space_id: int) -> None:
        self.models.embedders.look_again(space_id)

    def _checked_chunking(self, spec: str) -> str:
        return self.cuttings.checked(spec)

    def _target(self, collection: Collection, row: ViewRow) -> Target:
        if row.view.kind is ViewKind.LEXICON:
            return LexiconTarget(self.home.lexicons / row.view.name, language_of(row.view.uri, collection.language))
        return StoreTarget(self._store(row, read_only=False))

    def _store(self, row: ViewRow, *, read_only: bool = True) -> Store:
        store = store_of(row, self.catalog, self.settings, self.home, read_only=read_only)
        return borrowed(store, row.id, self.home, self.catalog, is_owner=self._owns) if read_only else store

    def _owns(self) -> bool:
        return self.owner is not None and self.owner.running

    def _lexicon(self, row: ViewRow, language: str) -> TantivyLexicon:
        return TantivyLexicon.open(self.home.lexicons / row.view.name, language=language_of(row.view.uri, language))

    # --- its life ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self.owner is not None:
            self.owner.stop()
            self.owner = None
        if self._loop is not None:
            self._run(self.models.generators.close())
            self._run(self.engine.close())
        self.engine.abandon()
        if self.models.is_open:
            self._run(self.models.close())  # not on a loop that may be running here
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None
        self.models.end()
        self.catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on this object's own event loop: what was opened on a loop stays with it."""
        with self._loop_lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="whimbrel", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _import(context: JobContext) -> Mapping[str, Any]:
    from whimbrel.owner.importing import import_collection

    return await import_collection(context)


def _asked(
    question: str,
    collection: str,
    *,
    top_k: int | None = None,
    mode: Mode | str = Mode.HYBRID,
    filter: Any = None,
    threshold: float = 0.0,
    min_position: int = 0,
    queries: int | None = None,
    model: str | None = None,
    conversation_id: str | None = None,
    fresh: bool = False,
) -> Asked:
    from whimbrel.answer.asking import Asked

    passages = PASSAGES if top_k is None else top_k
    request = SearchRequest(question, collection, passages, _mode(mode), filter, threshold, min_position, queries)
    return Asked(request, model, conversation_id, fresh)


async def _next(events: AsyncGenerator[AnswerEvent]) -> AnswerEvent | None:
    return await anext(events, None)


def _mode(mode: Mode | str) -> Mode:
    try:
        return Mode(mode)
    except ValueError:
        known = ", ".join(Mode)
        raise BadQuery(f"There is no mode {mode!r}.", f"Modes: {known}.") from None
