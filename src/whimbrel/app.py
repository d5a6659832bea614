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
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from whimbrel.adopt.job import Adopter
from whimbrel.adopt.sameness import Watch
from whimbrel.answer.asking import Asked, Asking
from whimbrel.catalog import adoptions, collections, compatible, jobs, leases, migrate, vectors
from whimbrel.catalog.adoptions import AdoptionState
from whimbrel.catalog.cache import Cache
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.engine import Catalog
from whimbrel.config import Settings, load_settings
from whimbrel.config.values import listed, without_credentials
from whimbrel.domain import Answer, AnswerEvent, Job, Mode, SearchResult, Space, ViewKind
from whimbrel.errors import AlreadyOwned, BadQuery, SpaceMismatch
from whimbrel.guards.embedder import GuardedEmbedder
from whimbrel.guards.guard import Guards
from whimbrel.guards.stand_in import CatalogTrust, StandInEmbedder
from whimbrel.home import Home, host_name
from whimbrel.ingest.chunk import Chunking, check_readable
from whimbrel.ingest.extract import Limits as ReadLimits
from whimbrel.ingest.jobs import Reading
from whimbrel.ingest.pipeline import Cutting, Guard
from whimbrel.ingest.reader import Options
from whimbrel.ingest.recut import Recut
from whimbrel.ingest.workers import ExtractionPool, Measured
from whimbrel.lexicon.language import DEFAULT, language_of, uri_of
from whimbrel.lexicon.tantivy import TantivyLexicon
from whimbrel.models.embedders.base import Embedder
from whimbrel.models.embedders.configured import ConfiguredSpace
from whimbrel.models.embedders.remote import RemoteEmbedder
from whimbrel.models.embedders.resolve import resolve_embedder
from whimbrel.models.embedders.serving import ServingEmbedder
from whimbrel.models.embedders.unknown import UNKNOWN, UnknownEmbedder
from whimbrel.models.rerankers.base import Reranker
from whimbrel.models.rerankers.resolve import check_provider, resolve_reranker
from whimbrel.move.cutting import Cutter
from whimbrel.move.driver import Mover
from whimbrel.owner import lock
from whimbrel.owner.erase import Eraser
from whimbrel.owner.forgetting import forget_chunkings
from whimbrel.owner.importing import import_collection
from whimbrel.owner.languages import first_language
from whimbrel.owner.lending import borrowed, store_of
from whimbrel.owner.owner import Owner
from whimbrel.owner.parts import Parts
from whimbrel.owner.runner import JobContext, run
from whimbrel.owner.targets import LexiconTarget, StoreTarget, Target
from whimbrel.owner.tasks import delete_collection, drop_view, rebuild_view, verify_view
from whimbrel.search.cached import CachedEmbedder, CachedReranker, remembering
from whimbrel.search.engine import Limits, SearchEngine, SearchRequest
from whimbrel.search.quality import Quality
from whimbrel.search.readers import Readers
from whimbrel.search.reranking import Reranking
from whimbrel.search.variants import Variants, variants
from whimbrel.service import Service
from whimbrel.service.usage import used
from whimbrel.stores.base import Reach, Store
from whimbrel.stores.resolve import parse_uri

T = TypeVar("T")

PASSAGES = 8
"""Chunks that an answer is made from."""
SEARCH_SHARE = 0.8
"""Of the time that a search may take, for the vector of its query with all attempts: words are searched beside it."""


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
        kept = self.settings.cache
        self.cache = Cache(
            catalog, self.home.cache, max_bytes=kept.max_bytes, ttl_s=kept.ttl_s, answers_s=kept.answers_s
        )
        super().__init__(catalog, self.settings, self.home)
        self.guards = Guards(self.settings.guards, catalog)
        self._embedders: dict[str, Embedder] = {}
        self._embedders_lock = threading.Lock()
        self._reranker_lock = threading.Lock()
        self._reranker: Reranker | None = None
        self._configured = ConfiguredSpace(self.settings.embedder, self.embedder)
        self._recorded: set[int] = set()
        """Spaces that are said in the catalog to be served by the configured embedder."""
        self._pool: ExtractionPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_lock = threading.Lock()
        search = self.settings.search
        limits = Limits(
            search.top_k, search.max_top_k, search.max_query_chars, search.candidates, search.timeout_s, search.queries
        )
        readers = Readers(self._store, self._lexicon)
        self.reranking = self._reranking()
        self.engine = SearchEngine(
            catalog,
            readers,
            self._searching_embedder,
            limits,
            may_judge=self._views_are_here,
            reranking=self.reranking,
            ask_otherwise=self._ask_otherwise,
        )
        self.asking = Asking(catalog, self.engine, self.settings, self.cache, self.guards)
        self.watch = Watch(
            catalog,
            self.home.path,
            self.home.adopted,
            Reach(*self.settings.stores.reach),
            self.settings.configured_stores(),
        )

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
                await self._close_pool()

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
            pool=self._extraction_pool,
            cutting_of=self._cutting,
            guard=Guard(settings.ingest.gone_guard_share, settings.ingest.gone_guard_min),
            in_flight=4 * settings.ingest.workers,
            secrets=self,
        )
        return Parts(
            catalog=self.catalog,
            open_target=self._target,
            embedder_for=self.embedder_for,
            default_view=self._default_view,
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
                "import": import_collection,
                "move": Mover(
                    self.embedder_for,
                    Cutter(Recut(self._extraction_pool, self._cutting)),
                    self._quality(),
                    self.reporter,
                ),
            },
            on_stop=self._close_pool,
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
        spec = spec or self.settings.embedder
        with self._embedders_lock:
            if spec not in self._embedders:
                self._embedders[spec] = self._opened(spec)
            return self._embedders[spec]

    def _opened(self, spec: str) -> Embedder:
        first = self._guarded(spec)
        others = listed(self.settings.embedder_fallback) if spec == self.settings.embedder else []
        return StandInEmbedder(first, [*map(self._guarded, others)], CatalogTrust(self.catalog)) if others else first

    def _guarded(self, spec: str) -> GuardedEmbedder:
        inner = resolve_embedder(spec, threads=self.settings.embed.threads)
        name = inner.name if isinstance(inner, RemoteEmbedder) else spec.partition("?")[0]
        return self.guards.embedder(inner, name, deadline_s=SEARCH_SHARE * self.settings.search.timeout_s)

    def embedder_for(self, space_id: int) -> ServingEmbedder:
        """The embedder of a space of the catalog: its own model, or what was declared compatible with it, as the
        catalog says at each call. Raises `SpaceMismatch` when the model is not what it was."""
        with self._spaces_lock:
            known = self._spaces.get(space_id)
        if known is not None:
            return known
        with self.catalog.read() as connection:
            space, _ = vectors.read_space(connection, space_id)
        made = ServingEmbedder(space, lambda: self._serving(space_id))
        made.current()
        with self._spaces_lock:
            return self._spaces.setdefault(space_id, made)

    def _searching_embedder(self, space_id: int) -> Embedder:
        serving = self.embedder_for(space_id)
        return CachedEmbedder(serving, self.cache, lambda: serving.served_by)

    def _serving(self, space_id: int) -> Embedder:
        with self.catalog.read() as connection:
            space, spec = vectors.read_space(connection, space_id)
            declared = compatible.serving(connection, space_id)
        if declared is not None:
            return self._embedder_of(declared.space, declared.embedder)
        if spec == UNKNOWN:
            return UnknownEmbedder(space, self.embedder())
        if spec != self._configured.spec and self._configured.is_of(space.key):
            spec = self._served_by_configured(space_id)
        return self._embedder_of(space, spec)

    def _served_by_configured(self, space_id: int) -> str:
        """The same model elsewhere: what is configured now serves the space. Recorded, so that the next start knows it
        while a server is out; once, for another host may be configured otherwise."""
        with self._spaces_lock:
            first = space_id not in self._recorded
            self._recorded.add(space_id)
        if first:
            with self.catalog.write() as connection:
                vectors.record_embedder(connection, space_id, self._configured.spec)
        return self._configured.spec

    def _embedder_of(self, space: Space, spec: str) -> Embedder:
        embedder = self.embedder(spec)
        inner = embedder.inner if isinstance(embedder, GuardedEmbedder | StandInEmbedder) else embedder
        if isinstance(inner, RemoteEmbedder):
            inner.expect(space)  # its server may be out; it is held to the space when it answers
        if embedder.space.key != space.key:
            raise SpaceMismatch(
                f"The collection's vectors are of {space.model} ({space.revision[:12]}, {space.dimensions} dimensions, "
                f"{space.numeric}); {spec!r} is now {embedder.space.model} ({embedder.space.revision[:12]}, "
                f"{embedder.space.dimensions}, {embedder.space.numeric}). They were not compared, and nothing was "
                "written.",
                "Install the model that made them, or keep the collection searchable by words (mode lexical). If it is "
                "the same model in another form: `whimbrel move start --embedder MODEL --compatible` measures that.",
            )
        return embedder

    def _reranking(self) -> Reranking | None:
        spec, limits = self.settings.reranker, self.settings.rerank
        if spec is None or spec == "none":
            return None
        check_provider(spec)
        return Reranking(self.reranker, candidates=limits.candidates, budget_s=limits.budget_ms / 1_000)

    def reranker(self) -> Reranker:
        """The configured reranker; opened once. Raises `ConfigError`, also where none is configured; `ModelError`."""
        with self._reranker_lock:
            if self._reranker is None:
                made = resolve_reranker(self.settings.reranker or "", threads=self.settings.embed.threads)
                guarded = self.guards.reranker(made, deadline_s=self.settings.rerank.budget_ms / 1_000)
                self._reranker = CachedReranker(guarded, self.cache)
            return self._reranker

    async def _ask_otherwise(self, question: str, count: int, language: str) -> Variants:
        generator = self.asking.generator()
        timeout_s, remember = self.settings.search.timeout_s, remembering(self.cache)
        return await variants(question, count, language, generator, timeout_s=timeout_s, remember=remember)

    def _default_view(self, collection: Collection, kind: ViewKind) -> tuple[str, int | None, int] | None:
        language = first_language(self.catalog, collection) if kind is ViewKind.LEXICON else DEFAULT
        if language is None or (kind is ViewKind.LEXICON and self._is_adopting(collection)):
            return None
        parse_uri(self.settings.store)
        spec = self._chunking().spec
        embedder = self.embedder() if kind is ViewKind.STORE else None
        with self.catalog.write() as connection:
            chunking = collections.collection_chunking(connection, collection.id)
            if chunking is None:
                chunking = collections.chunking_id(connection, spec)
            space = None
            if embedder is not None:
                space = vectors.space_id(connection, embedder.space, self.settings.embedder)
        uri = without_credentials(self.settings.store) if kind is ViewKind.STORE else uri_of(language)
        return uri, space, chunking

    def _is_adopting(self, collection: Collection) -> bool:
        """Its rows are still being taken in: a lexicon that is built meanwhile would take turns with them."""
        with self.catalog.read() as connection:
            found = adoptions.find(connection, collection.id)
        return found is not None and found.state is AdoptionState.ADOPTING

    def _checked_chunking(self, spec: str) -> str:
        chunking = Chunking.parse(spec)
        check_readable(chunking, self.embedder().space)
        return chunking.spec

    def _chunking(self) -> Chunking:
        return Chunking(tokens=self.settings.chunking.tokens, overlap=self.settings.chunking.overlap)

    def _cutting(self, collection: Collection) -> Cutting:
        """As the collection's chunks were cut before, whatever the configuration says now."""
        with self.catalog.write() as connection:
            keys = collections.collection_chunkings(connection, collection.id)
            keys = keys or [collections.chunking_id(connection, self._chunking().spec)]
            specs = [collections.chunking_spec(connection, key) for key in keys]
            current = collections.by_id(connection, collection.id) or collection
            spaces = [collections.counting_space(connection, current, key) for key in keys]
        ingest = self.settings.ingest
        return Cutting(
            ways={key: self._measured(spec, space) for key, spec, space in zip(keys, specs, spaces, strict=True)},
            limits=ReadLimits(ingest.max_file_bytes, ingest.max_unpacked_bytes),
            options=Options(ingest.parsed_passwords(), ingest.ocr_languages),
        )

    def _measured(self, spec: str, space: int | None) -> Measured:
        embedder = self.embedder() if space is None else self.embedder_for(space)
        chunking = Chunking.parse(spec)
        check_readable(chunking, embedder.space)
        return Measured(chunking, embedder.tokenizer)

    def _extraction_pool(self) -> ExtractionPool:
        if self._pool is None:
            ingest = self.settings.ingest
            self._pool = ExtractionPool(
                workers=ingest.workers, timeout_s=ingest.timeout_s, memory_bytes=ingest.memory_bytes
            )
        return self._pool

    async def _close_pool(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.close()

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
            self._run(self.asking.close())
            self._run(self.engine.close())
        self.engine.abandon()
        for embedder in self._embedders.values():
            self._run(embedder.close())  # not on a loop that may be running here
        if self.reranking is not None:
            self.reranking.close()
        if self._reranker is not None:
            self._run(self._reranker.close())
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None
        self._embedders.clear()
        self.cache.close()
        self.guards.close()
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
