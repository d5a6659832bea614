"""The guards of one model, put together; and all of a home, with what they share."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whimbrel.catalog.engine import Catalog
from whimbrel.catalog.usage import OK
from whimbrel.config.settings import Guards as Settings
from whimbrel.errors import ModelSlow, WhimbrelError
from whimbrel.guards.alerts import Alerts
from whimbrel.guards.breaker import Board, Breaker, Rules
from whimbrel.guards.budget import Budgets
from whimbrel.guards.calls import Call, Clock, Kind, T, Taken, caller
from whimbrel.guards.ledger import Ledger
from whimbrel.guards.limits import parse_budgets, parse_prices, parse_rates, parse_shares
from whimbrel.guards.line import Line
from whimbrel.guards.meter import CANCELLED, Meter
from whimbrel.guards.prices import Prices
from whimbrel.guards.rate import Rate
from whimbrel.guards.retry import Retry
from whimbrel.guards.shared import InCatalog, Place, Shared
from whimbrel.guards.thresholds import Thresholds

if TYPE_CHECKING:
    from whimbrel.guards.embedder import GuardedEmbedder
    from whimbrel.guards.generator import GuardedGenerator
    from whimbrel.guards.reranker import GuardedReranker
    from whimbrel.models.embedders.base import Embedder
    from whimbrel.models.generators.base import Generator
    from whimbrel.models.rerankers.base import Reranker

logger = logging.getLogger("whimbrel.guards")

IN_PROCESS = frozenset({"minilm", "onnx", "sentence-transformers"})
"""Providers that are this process itself."""
BEFORE_THE_END = 0.9
"""Of the time that a reranker has, for one attempt."""
_WHAT = {"embed": "make vectors", "rerank": "judge passages", "generate": "write"}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one call is worth waiting for."""

    timeout_s: float | None
    """Of an attempt; None where what is called has its own."""
    deadline_s: float
    """After which it is not asked again."""


class Guard:
    """Of one model, for any call of it."""

    def __init__(self, kind: Kind, model: str, shared: Guards) -> None:
        self.kind = kind
        self.model = model
        self._shared = shared
        self.in_process = model.partition(":")[0] in IN_PROCESS
        # One server may have an embedder and a reranker, of which one may be out.
        self._breaker = Breaker(f"{model} (rerank)" if kind == "rerank" else model, shared.board)
        self._rates = shared.rates_of(model)
        self._retries: dict[float, Retry] = {}
        self._said_unpriced = False

    async def call(self, call: Call[T], taken: Taken, patience: Patience, *, bulk: bool = False) -> T:
        """Through all of them. `taken` says what it is expected to take, and may be corrected by the call."""
        async with self.around(taken, bulk=bulk):
            return await self.attempts(call, taken, patience)

    @asynccontextmanager
    async def around(self, taken: Taken, *, bulk: bool = False) -> AsyncGenerator[None]:
        """Meter, budget, concurrency: until the call has ended."""
        shared = self._shared
        began = shared.clock.monotonic()
        outcome = OK
        held: Any = ()
        try:
            if shared.budgets.limits and not self.in_process:
                held = await shared.budgets.promise(self.model, caller.get(), self._estimate(taken))
            async with shared.lines[self.kind].place(bulk=bulk):
                yield
        except WhimbrelError as error:
            outcome = error.code
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome = CANCELLED
            raise
        except BaseException:
            outcome = "unexpected"
            raise
        finally:
            if outcome != OK and not taken.begun:
                taken.input_tokens = taken.output_tokens = 0  # what is not answered is not charged
            nothing = self.in_process or not (taken.input_tokens or taken.output_tokens)
            usd = 0.0 if nothing else shared.prices.usd(self.model, taken.input_tokens, taken.output_tokens)
            if held:
                shared.budgets.settle(held, (usd, taken.input_tokens + taken.output_tokens))
            seconds = shared.clock.monotonic() - began
            shared.meter.saw(self.kind, self.model, outcome, seconds, taken, usd, paid=not self.in_process)
            shared.thresholds.start()

    async def attempts(self, call: Call[T], taken: Taken, patience: Patience) -> T:
        """Rate, retry, breaker, timeout: until there is a first answer."""
        if self.in_process:
            return await call()
        for what, rate in self._rates.items():
            await rate.take(1 if what == "requests" else taken.input_tokens + taken.output_tokens)
        retry = self._retries.get(patience.deadline_s)
        if retry is None:
            retry = Retry(self._shared.settings.attempts, patience.deadline_s, self._shared.clock)
            self._retries[patience.deadline_s] = retry
        return await retry(lambda: self._breaker(lambda: self._timely(call, patience.timeout_s)))

    async def _timely(self, call: Call[T], timeout_s: float | None) -> T:
        if timeout_s is None:
            return await call()
        try:
            async with asyncio.timeout(timeout_s):
                return await call()
        except TimeoutError as error:
            raise ModelSlow(
                f"{self.model} had not answered after {timeout_s:g} s.", "It is tried again by itself."
            ) from error

    def _is_limited_in_usd(self) -> bool:
        limits = self._shared.budgets.limits
        return any(limit.unit == "usd" and limit.holds_for(self.model, caller.get()) for limit in limits)

    def _estimate(self, taken: Taken) -> tuple[float | None, int]:
        usd = self._shared.prices.usd(self.model, taken.input_tokens, taken.output_tokens)
        if usd is None and not self._said_unpriced and self._is_limited_in_usd():
            self._said_unpriced = True
            logger.warning("the price of %s is not known: no budget in USD counts it (`guards.prices`)", self.model)
        return usd, taken.input_tokens + taken.output_tokens


class Guards:
    """Those of all models that a home uses. Close it before its catalog."""

    def __init__(self, settings: Settings | None = None, catalog: Catalog | None = None, clock: Clock | None = None):
        """Without a catalog no ledger is kept, and without Redis either nothing is shared with other processes. Raises
        `ConfigError`, and `MissingExtra`."""
        self.settings = settings or Settings()
        self.clock = clock or Clock()
        self._rates = parse_rates(self.settings.rates)
        self._alerts = Alerts(self.settings.webhook)
        self.prices = Prices(parse_prices(self.settings.prices))
        self.budgets = Budgets(
            parse_budgets(self.settings.budgets),
            catalog,
            alert_at=parse_shares(self.settings.alert_at),
            on_alert=lambda alert: self._alerts.send(alert.as_dict()),
            clock=self.clock,
        )
        self.ledger = Ledger(catalog, before=self.budgets.told) if catalog is not None else None
        self.meter = Meter(self.ledger, self.clock)
        set_ = self.settings
        self.thresholds = Thresholds(
            self.meter,
            error_rate=set_.alert_error_rate,
            response_s=set_.alert_response_s,
            on_alert=lambda one: self._alerts.send({**one.as_dict(), "over": one.over, "message": one.said}),
            clock=self.clock,
        )
        self.shared = Shared(_place(set_, catalog), self.clock)
        rules = Rules(set_.breaker_failures, set_.breaker_window_s, set_.breaker_pause_s)
        self.board = Board(self.shared, rules, self.clock)
        at_once: dict[Kind, int] = {
            "embed": set_.max_concurrent_embeddings,
            "rerank": set_.max_concurrent_rerankings,
            "generate": set_.max_concurrent_generations,
        }
        self.lines = {kind: Line(_WHAT[kind], most, set_.max_waiting) for kind, most in at_once.items()}
        self._guards: dict[tuple[Kind, str], Guard] = {}
        self._lock = threading.Lock()

    def of(self, kind: Kind, model: str) -> Guard:
        """`model`: `provider:model`, without credentials: it is in logs, errors and the ledger."""
        with self._lock:
            found = self._guards.get((kind, model))
            if found is None:
                found = self._guards[kind, model] = Guard(kind, model, self)
            return found

    def embedder(self, inner: Embedder, name: str, *, deadline_s: float | None = None) -> GuardedEmbedder:
        """`deadline_s`: who waits for the vector of a query waits no longer."""
        from whimbrel.guards.embedder import GuardedEmbedder

        settings = self.settings
        longest = min(settings.retry_deadline_s, deadline_s or settings.retry_deadline_s)
        query = Patience(min(settings.query_timeout_s, longest), longest)
        documents = Patience(settings.timeout_s, settings.retry_deadline_s)
        return GuardedEmbedder(inner, self.of("embed", name), query=query, documents=documents)

    def reranker(self, inner: Reranker, *, deadline_s: float | None = None) -> GuardedReranker:
        """`deadline_s`: what is not judged by then is given up. An attempt ends a little before: so it is known of one
        that never answers that it is out, and it is not waited for in every search."""
        from whimbrel.guards.reranker import GuardedReranker

        settings = self.settings
        longest = min(settings.retry_deadline_s, deadline_s or settings.retry_deadline_s)
        patience = Patience(min(settings.query_timeout_s, BEFORE_THE_END * longest), longest)
        return GuardedReranker(inner, self.of("rerank", inner.name), patience)

    def generator(self, inner: Generator) -> GuardedGenerator:
        """Its own timeouts are kept by itself: to its first part, and between two."""
        from whimbrel.guards.generator import GuardedGenerator

        patience = Patience(None, self.settings.retry_deadline_s)
        return GuardedGenerator(inner, self.of("generate", inner.name), patience)

    def rates_of(self, model: str) -> dict[str, Rate]:
        said = self._rates.get(model, {})
        return {what: Rate(model, what, each, self.shared, self.clock) for what, each in said.items()}

    def state(self) -> dict[str, Any]:
        """Breakers that are open, where they are shared, thresholds that this process's calls are past, and budgets."""
        return {
            "paused": [{"model": row.name, "reason": row.reason, "failures": row.failures} for row in self.paused()],
            "shared": self.shared.state(),
            "alerts": [one.as_dict() for one in self.thresholds.now()],
            "budgets": self.budgets.state(),
        }

    def paused(self) -> list[Any]:
        return self.board.open_ones()

    def close(self) -> None:
        self.thresholds.close()
        self.shared.close()
        try:
            if self.ledger is not None:
                self.ledger.close()
            self.budgets.close()
        except WhimbrelError as error:
            logger.warning("what models took is not all written down: %s", error.message)
        self._alerts.close()


def _place(settings: Settings, catalog: Catalog | None) -> Place | None:
    """Where breakers and rates are shared."""
    if settings.redis is not None and settings.redis.get_secret_value().strip():
        from whimbrel.guards.in_redis import InRedis

        return InRedis(settings.redis)
    return InCatalog(catalog) if catalog is not None else None
