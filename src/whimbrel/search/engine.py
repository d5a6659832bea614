"""Searching: embed the query while the lexicon runs, search both views, fuse, threshold, hydrate, rerank.

What is out or behind is said in `degraded`, never hidden. Every hit is read from the catalog by its id, so a view that
lags cannot serve what is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from whimbrel.catalog import collections, rows
from whimbrel.catalog.collections import Collection, ViewRow
from whimbrel.catalog.documents import view_metadata
from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.rows import Hydrated
from whimbrel.domain import EmbedKind, Hit, Matches, Mode, SearchResult, ViewKind, ViewState
from whimbrel.errors import (
    BadFilter,
    BadQuery,
    ModelQueueFull,
    SpaceMismatch,
    UserError,
    ViewDamaged,
    ViewError,
    WaitTimeout,
    WhimbrelError,
)
from whimbrel.filters import Filter, matches, operators, parse
from whimbrel.guards.calls import stood_in
from whimbrel.lexicon.language import language_of
from whimbrel.models.embedders.base import Embedder
from whimbrel.owner.pace import TRAFFIC
from whimbrel.search.fusion import Candidate, fuse, merge
from whimbrel.search.presence import Presence
from whimbrel.search.readers import Readers
from whimbrel.search.reranking import Reranking
from whimbrel.search.turns import Turns
from whimbrel.search.variants import MOST, Variants
from whimbrel.stores.base import StoreInfo

logger = logging.getLogger("whimbrel.search")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    top_k: int
    max_top_k: int
    max_query_chars: int
    candidates: int
    timeout_s: float
    queries: int = 1


AskOtherwise = Callable[[str, int, str], Awaitable[Variants]]
"""(question, how many, language): other ways to ask it. Never raises for a model that is out."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    query: str
    collection: str = "default"
    top_k: int | None = None
    mode: Mode = Mode.HYBRID
    filter: Any = None
    """In the surface grammar; see `whimbrel.filters`."""
    threshold: float = 0.0
    """Hits that score less are left out."""
    min_position: int = 0
    """Wait until every view that is searched has passed this position."""
    queries: int | None = None
    """Queries that the search is made of, the question itself among them; without it, as configured."""


@dataclass(slots=True)
class _Run:
    """One search under way."""

    collection: Collection
    store: ViewRow | None
    lexicon: ViewRow | None
    where: Filter | None
    degraded: list[str]
    timings: dict[str, float]
    words: int = 0
    """How many of the query's the lexicon searches for."""
    read: float = 1.0
    """How far the embedder's vocabulary has words for the query."""
    unknown: int = 0
    """Rows that a view has found and the catalog does not have."""
    others: Sequence[str] = ()
    """Queries that ask the same."""


class SearchEngine:
    def __init__(
        self,
        catalog: Catalog,
        readers: Readers,
        embedder_for: Callable[[int], Embedder],
        limits: Limits,
        *,
        may_judge: Callable[[], bool] = lambda: True,
        reranking: Reranking | None = None,
        ask_otherwise: AskOtherwise | None = None,
    ) -> None:
        """`may_judge`: whether a view whose data cannot be read here is damaged: not where the data lies elsewhere."""
        self.catalog = catalog
        self.readers = readers
        self.limits = limits
        self._embedder_for = embedder_for
        self._may_judge = may_judge
        self._reranking = reranking
        self._ask_otherwise = ask_otherwise
        self._turns = Turns(limits.timeout_s)
        self._embedders: dict[int, Embedder] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._presence = Presence(catalog, self._warm_view)

    async def close(self) -> None:
        """Let go of every view."""
        await self._presence.end()
        await self.readers.close_all()

    def abandon(self) -> None:
        """Stop what goes on by itself, from whatever thread; views stay open on the loop that opened them."""
        self._presence.abandon()

    async def search(self, request: SearchRequest) -> SearchResult:
        """Raises `BadQuery`, `BadFilter`, `CollectionNotFound`; `Busy`; `ViewError` when no view could answer."""
        k = self._check(request)
        where = parse(request.filter)
        self._presence.begin()
        with TRAFFIC.searching():
            return await self._search(request, where, k)

    async def _search(self, request: SearchRequest, where: Filter | None, k: int) -> SearchResult:
        began = time.perf_counter()
        run = await self._begin(request, where)
        await self._vary(request, run)
        depth = k if self._reranking is None else max(k, self._reranking.candidates)
        told = stood_in.set([])
        try:
            async with self._turns.take():
                hits = await self._find(request, run, depth)
            run.degraded += stood_in.get() or []
        finally:
            stood_in.reset(told)
        if run.unknown and run.store is not None and run.store.view.state is ViewState.FROZEN:
            run.degraded.append(f"store: {run.unknown} rows were found that are not in the catalog, and left out")
        if self._reranking is not None and hits:
            hits = await self._rerank(self._reranking, request.query, run, hits)
        run.timings["total"] = _ms(began)
        searched = [row.view.position for row in (run.store, run.lexicon) if row is not None]
        return SearchResult(hits[:k], min(searched, default=0), list(dict.fromkeys(run.degraded)), run.timings)

    async def _rerank(self, reranking: Reranking, query: str, run: _Run, hits: Sequence[Hit]) -> list[Hit]:
        ordered, out = await _timed(run.timings, "rerank", reranking(query, hits))
        if out:
            run.degraded.append(out)
        return ordered

    async def _vary(self, request: SearchRequest, run: _Run) -> None:
        count = self.limits.queries if request.queries is None else request.queries
        if count <= 1 or self._ask_otherwise is None:
            return
        language = language_of(run.lexicon.view.uri if run.lexicon is not None else "", run.collection.language)
        found = await _timed(run.timings, "variants", self._ask_otherwise(request.query, count - 1, language))
        run.others = [query for query in found.queries if len(query) <= self.limits.max_query_chars]
        if found.degraded:
            run.degraded.append(found.degraded)

    async def _find(self, request: SearchRequest, run: _Run, k: int) -> list[Hit]:
        wanted = max(self.limits.candidates, 2 * k)
        while True:
            candidates, found = await self._candidates(request, run, wanted)
            hits = await self._hydrate(run, candidates, k, request.threshold)
            # Rows that a lagging view still holds and the catalog has no more take places: look further down.
            if len(hits) >= k or found < wanted or request.threshold > 0 or wanted >= 16 * self.limits.max_top_k:
                return hits
            wanted *= 4

    async def _candidates(self, request: SearchRequest, run: _Run, wanted: int) -> tuple[list[Candidate], int]:
        """Best first, by all queries at once; and how many rows a view gave at most. Raises when none was answered."""
        if not run.others:
            return await self._searched(request, run, wanted)
        runs = [run, *(replace(run, degraded=[], timings={}) for _ in run.others)]
        queries = [request.query, *run.others]
        searches = [
            self._searched(replace(request, query=query), one, wanted) for query, one in zip(queries, runs, strict=True)
        ]
        ended = await asyncio.gather(*searches, return_exceptions=True)
        failed = [error for error in ended if isinstance(error, BaseException)]
        answered = [found for found in ended if not isinstance(found, BaseException)]
        for error in failed:
            if not answered or isinstance(error, UserError) or not isinstance(error, WhimbrelError):
                raise error
        for number, one in enumerate(runs[1:], 2):
            run.degraded += [f"query {number}: {said}" for said in one.degraded if said not in run.degraded]
        return merge([candidates for candidates, _ in answered]), max(found for _, found in answered)

    async def _searched(self, request: SearchRequest, run: _Run, wanted: int) -> tuple[list[Candidate], int]:
        dense, lexical = await self._both(request, run, wanted)
        found = max((len(matches.ids) for matches in (dense, lexical) if matches is not None), default=0)
        return fuse(request.mode, dense, lexical, run.words, run.read), found

    async def embed_texts(self, collection: str, texts: Sequence[str], kind: EmbedKind) -> npt.NDArray[np.float32]:
        """Vectors in the space of a collection's live store view."""

        def space() -> int | None:
            with self.catalog.read() as connection:
                store, _ = collections.live_views(connection, collections.find(connection, collection))
                return store.view.space_id if store else None

        space_id = await asyncio.to_thread(space)
        if space_id is None:
            raise ViewDamaged("The collection has no vector view yet.", "Wait until the owner has built it.")
        return await (await self._embedder(space_id)).embed(texts, kind)

    async def warm(self) -> None:
        """Open every live view and the embedder, so that the first search is like the others."""
        names = await asyncio.to_thread(self._names)
        for name in names:
            request = SearchRequest("warm up", collection=name, top_k=1)
            try:
                await self.search(request)
            except ViewError:
                continue  # it is being built; the search that comes will say so

    async def _warm_view(self, row: ViewRow, language: str) -> None:
        if row.view.kind is ViewKind.LEXICON:
            lexicon = await self.readers.lexicon(row, language)
            await asyncio.to_thread(lexicon.search, "warm up", 1, None)
            return
        assert row.view.space_id is not None
        store = await self.readers.store(row)
        try:
            embedder = await self._embedder(row.view.space_id)
            vector = (await embedder.embed(["warm up"], EmbedKind.QUERY))[0]
        except SpaceMismatch:
            if not await asyncio.to_thread(self._lives_in, row):
                raise
            vector = np.ones(store.describe().dimensions, np.float32)  # no model here makes any, today as well
        await store.search(vector, 1)

    def _lives_in(self, row: ViewRow) -> bool:
        """Whether the view that is searched today is of the same space."""
        with self.catalog.read() as connection:
            views = collections.views(connection, row.view.collection_id)
        states = (ViewState.LIVE, ViewState.FROZEN)
        return any(one.view.space_id == row.view.space_id and one.view.state in states for one in views)

    def _names(self) -> list[str]:
        with self.catalog.read() as connection:
            return [collection.name for collection in collections.every(connection)]

    def _check(self, request: SearchRequest) -> int:
        k = self.limits.top_k if request.top_k is None else request.top_k
        if not request.query.strip():
            raise BadQuery("The query is empty.", "Send a question or some words.")
        if len(request.query) > self.limits.max_query_chars:
            raise BadQuery(
                f"The query has {len(request.query):,} characters; at most {self.limits.max_query_chars:,} are read.",
                "Shorten it, or raise `search.max_query_chars`.",
            )
        if any("\ud800" <= letter <= "\udfff" for letter in request.query):
            raise BadQuery("The query holds half a character (a lone surrogate).", "Decode its bytes as UTF-8 first.")
        if not 1 <= k <= self.limits.max_top_k:
            raise BadQuery(
                f"top_k is {k}; it must be 1 to {self.limits.max_top_k}.", f"Ask for 1 to {self.limits.max_top_k} hits."
            )
        if request.queries is not None and not 1 <= request.queries <= MOST:
            raise BadQuery(f"queries is {request.queries}; it must be 1 to {MOST}.", f"Ask for 1 to {MOST}.")
        if not 0 <= request.threshold <= 1:
            raise BadQuery("The threshold must lie between 0 and 1, as scores do.", "Leave it out to see all hits.")
        return k

    async def _begin(self, request: SearchRequest, where: Filter | None) -> _Run:
        began = time.perf_counter()
        deadline = time.monotonic() + self.limits.timeout_s
        while True:
            collection, store, lexicon = await asyncio.to_thread(self._read, request.collection)
            wanted = [row for row, other in ((store, Mode.LEXICAL), (lexicon, Mode.DENSE)) if request.mode is not other]
            store = store if request.mode is not Mode.LEXICAL else None
            lexicon = lexicon if request.mode is not Mode.DENSE else None
            if all(row is not None and row.view.position >= request.min_position for row in wanted):
                break
            if request.min_position <= 0:
                break
            if request.min_position > collection.head:
                raise BadQuery(
                    f"min_position is {request.min_position}, and the collection's log ends at {collection.head}.",
                    "Use the position that a write answered with.",
                )
            if time.monotonic() > deadline:
                raise WaitTimeout(
                    f"The views have not reached position {request.min_position} in {self.limits.timeout_s:.0f} s.",
                    "The write is safe. Search without min_position, or look at `whimbrel status`.",
                )
            await asyncio.sleep(0.05)
        run = _Run(collection, store, lexicon, where, [], {"catalog": _ms(began)})
        for name, row in (("store", store), ("lexicon", lexicon)):
            self._say_lag(run, name, row, wanted=request.mode)
        return run

    def _read(self, name: str) -> tuple[Collection, ViewRow | None, ViewRow | None]:
        with self.catalog.read() as connection:
            collection = collections.find(connection, name)
            return collection, *collections.live_views(connection, collection)

    def _say_lag(self, run: _Run, name: str, row: ViewRow | None, *, wanted: Mode) -> None:
        used = {"store": Mode.LEXICAL, "lexicon": Mode.DENSE}[name] is not wanted
        if row is None and used and run.collection.head > 0:
            run.degraded.append(f"{name}: no live view; it is being built")
        elif row is not None and row.view.state is ViewState.FROZEN:
            run.degraded += _frozen(row, run.collection.head)
        elif row is not None and row.view.position < run.collection.head:
            behind = run.collection.head - row.view.position
            why = f" ({row.view.error})" if row.view.error else ""
            run.degraded.append(f"{name}: {behind} changes behind{why}")
        elif row is not None and row.view.error and row.view.state is ViewState.LIVE:
            run.degraded.append(f"{name}: {row.view.error}")

    async def _both(self, request: SearchRequest, run: _Run, wanted: int) -> tuple[Matches | None, Matches | None]:
        """Both halves at once, bounded in time. Raises only when neither could answer."""
        halves = [
            asyncio.create_task(
                self._half(run, "store", run.store, lambda row: self._dense(request, run, row, wanted))
            ),
            asyncio.create_task(
                self._half(run, "lexicon", run.lexicon, lambda row: self._lexical(request, run, row, wanted))
            ),
        ]
        try:
            dense, lexical = await asyncio.gather(*halves)
        finally:
            for half in halves:
                half.cancel()  # where the other one has shown that the request is wrong
        failures = [found for found in (dense, lexical) if isinstance(found, WhimbrelError)]
        answered = [found for found in (dense, lexical) if isinstance(found, Matches)]
        if failures and not answered:
            raise failures[0]
        if not answered and run.collection.head > 0:
            raise ViewDamaged(
                f"No view of {run.collection.name!r} can answer yet: they are being built.",
                "Nothing is lost. Try again shortly; `whimbrel status` shows how far they are.",
            )
        return _matches(dense), _matches(lexical)

    async def _half(
        self, run: _Run, name: str, row: ViewRow | None, search: Callable[[ViewRow], Awaitable[Matches]]
    ) -> Matches | WhimbrelError | None:
        if row is None:
            return None
        try:
            return await asyncio.wait_for(search(row), self.limits.timeout_s)
        except TimeoutError:
            error: WhimbrelError = ViewError(f"no answer in {self.limits.timeout_s:.0f} s", "Try again.")
        except ViewDamaged as damaged:
            error = damaged
            await self.readers.close(row.id)
            if row.view.state is ViewState.LIVE and not row.suspect:
                self._in_background(asyncio.to_thread(self._suspect, row.id, damaged.message))
        except (UserError, ModelQueueFull):
            raise  # the request is wrong, or one too many: the other half would hide it
        except WhimbrelError as other:
            error = other
        except Exception as defect:  # of ours or of a library, in one half: the other one answers
            logger.exception("searching the %s of %s failed", name, run.collection.name)
            error = ViewError(f"{type(defect).__name__} inside it; the log has the details", "Please report it.")
        run.degraded.append(f"{name}: {error}")
        return error

    def _suspect(self, view: int, reason: str) -> None:
        """Tell the owner, which builds it again. A search does not wait for that: writing may take long just now."""
        try:
            if not self._may_judge():
                return
            with self.catalog.write() as connection:
                collections.set_view(connection, view, suspect=reason)
        except WhimbrelError as error:
            logger.warning("view %s seems damaged, and that could not be noted: %s", view, error.message)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _dense(self, request: SearchRequest, run: _Run, row: ViewRow, wanted: int) -> Matches:
        assert row.view.space_id is not None
        embedder = await self._embedder(row.view.space_id)
        store, vector = await asyncio.gather(
            self.readers.store(row), _timed(run.timings, "embed", embedder.embed([request.query], EmbedKind.QUERY))
        )
        run.read = embedder.reads(request.query)
        where, ids = run.where, None
        if where is not None and not store.answers(where):
            ids = await _timed(
                run.timings, "filter", asyncio.to_thread(self._passing, run, row, where, store.describe())
            )
            where = None
        return await _timed(run.timings, "store", store.search(vector[0], wanted, where, ids=ids))

    def _passing(self, run: _Run, row: ViewRow, where: Filter, store: StoreInfo) -> list[str]:
        """The ids of the chunks that pass, for a store that does not answer the filter itself."""
        with self.catalog.read() as connection:
            found = rows.passing_ids(connection, run.collection.id, row.view.chunking_id, where, limit=store.max_ids)
        if found is None:
            missing = ", ".join(sorted(operators(where) - store.filter_operators)) or "of this form"
            raise BadFilter(
                f"The store {store.name} does not answer filters with {missing} itself, and this one keeps more than "
                f"{store.max_ids:,} chunks.",
                "Add a condition that keeps fewer, or search by words (mode lexical).",
            )
        return found

    async def _lexical(self, request: SearchRequest, run: _Run, row: ViewRow, wanted: int) -> Matches:
        lexicon = await self.readers.lexicon(row, run.collection.language)
        run.words = lexicon.words(request.query)
        work = asyncio.to_thread(lexicon.search, request.query, wanted, run.where)
        return await _timed(run.timings, "lexicon", work)

    async def _embedder(self, space_id: int) -> Embedder:
        found = self._embedders.get(space_id)
        if found is None:
            found = self._embedders[space_id] = await asyncio.to_thread(self._embedder_for, space_id)
        return found

    async def _hydrate(self, run: _Run, candidates: list[Candidate], k: int, threshold: float) -> list[Hit]:
        began = time.perf_counter()
        good = [candidate for candidate in candidates if candidate.score >= threshold]
        chunking = next((row.view.chunking_id for row in (run.store, run.lexicon) if row is not None), 0)
        hits: list[Hit] = []
        unknown = 0
        for start in range(0, len(good), k):  # almost always the first k are there
            some = good[start : start + k]
            found = await asyncio.to_thread(self._load, run.collection.id, chunking, [c.chunk_id for c in some])
            unknown += len(some) - len(found)
            for candidate in some:
                chunk = found.get(candidate.chunk_id)
                if chunk is not None and len(hits) < k and _passes(run.where, chunk):
                    hits.append(_hit(len(hits) + 1, candidate.score, chunk))
            if len(hits) >= k:
                break
        run.timings["hydrate"] = _ms(began)
        run.unknown = unknown
        return hits

    def _load(self, collection_id: int, chunking: int, ids: list[str]) -> dict[str, Hydrated]:
        with self.catalog.read() as connection:
            return rows.hydrate(connection, collection_id, chunking, ids)


def _hit(rank: int, score: float, chunk: Hydrated) -> Hit:
    return Hit(
        rank=rank,
        score=round(score, 6),
        chunk_id=chunk.chunk_id,
        document_id=chunk.document_id,
        uri=chunk.uri,
        title=chunk.title,
        text=chunk.text,
        start=chunk.start,
        end=chunk.end,
        metadata=chunk.metadata,
        page=chunk.page,
    )


def _frozen(row: ViewRow, head: int) -> list[str]:
    """What a search of a database that was adopted does not see."""
    said = []
    if row.view.position < head:
        behind = head - row.view.position
        said.append(f"store: frozen; {behind} changes since it was adopted are found by words, until a move")
    if row.view.error:
        said.append(f"store: {row.view.error}")
    return said


def _passes(where: Filter | None, chunk: Hydrated) -> bool:
    """Whether the catalog agrees with the view that found it, which may lag behind a change of metadata."""
    return where is None or matches(where, view_metadata(chunk.document_id, chunk.uri, chunk.title, chunk.metadata))


def _matches(found: Matches | WhimbrelError | None) -> Matches | None:
    return found if isinstance(found, Matches) else None


async def _timed(timings: dict[str, float], name: str, work: Awaitable[T]) -> T:
    began = time.perf_counter()
    try:
        return await work
    finally:
        timings[name] = _ms(began)


def _ms(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 2)
