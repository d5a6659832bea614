"""Metrics for Prometheus, in a registry of their own.

No label takes a value that callers choose: routes are templates, collections beyond a number are summed up. What is
counted in the catalog is read at most every 15 seconds, whoever scrapes how often.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from whimbrel.catalog.cache import Cache
from whimbrel.catalog.figures import CollectionFigures
from whimbrel.domain import Answer, Mode, SearchResult
from whimbrel.guards.guard import Guards
from whimbrel.server.model_metrics import ModelCollector
from whimbrel.server.version import version

NAMED = 100
"""Collections with figures of their own; the others are summed up."""
OTHERS = "(others)"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


@dataclass(frozen=True, slots=True)
class HomeFigures:
    """What is read for a scrape."""

    collections: Sequence[CollectionFigures]
    jobs: Mapping[str, int]
    embedded_upto: Mapping[int, int]
    """By collection's key; empty where another process is the owner."""
    owner: bool
    cache: Mapping[str, tuple[int, int]]
    """Entries and bytes by kind."""


class Metrics:
    def __init__(self, cache: Cache, guards: Guards) -> None:
        """`guards`: of the models that this process calls."""
        self.registry = registry = CollectorRegistry()
        self.home: HomeFigures | None = None
        """The last that was read."""
        ProcessCollector(registry=registry)
        Gauge("whimbrel_build_info", "The version that runs.", ["version"], registry=registry).labels(version()).set(1)
        self._requests = Counter(
            "whimbrel_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._request_s = Histogram(
            "whimbrel_request_seconds", "Time to the end of an answer.", ["route"], buckets=REQUEST_S, registry=registry
        )
        self._searches = Counter(
            "whimbrel_searches", "Searches, and whether a part was out.", ["mode", "degraded"], registry=registry
        )
        self._stage_s = Histogram(
            "whimbrel_search_stage_seconds", "Time in a search's stages.", ["stage"], buckets=STAGE_S, registry=registry
        )
        self._answers = Counter("whimbrel_answers", "Answers.", ["model", "abstained", "degraded"], registry=registry)
        self._sentences = Counter(
            "whimbrel_answer_sentences", "Sentences of answers, as they were checked.", ["supported"], registry=registry
        )
        registry.register(_CacheCollector(self, cache))
        registry.register(_HomeCollector(self))
        registry.register(ModelCollector(guards))

    def answered_request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method if method in METHODS else "OTHER", route, str(status or "aborted")).inc()
        self._request_s.labels(route).observe(seconds)

    def searched(self, found: SearchResult, mode: Mode) -> None:
        self._searches.labels(mode.value, _flag(found.degraded)).inc()
        for stage, milliseconds in found.timings_ms.items():
            self._stage_s.labels(stage).observe(milliseconds / 1000)

    def answered(self, found: Answer) -> None:
        self._answers.labels(found.model, _flag(found.abstained), _flag(found.degraded)).inc()
        for sentence in found.sentences:
            self._sentences.labels(sentence.supported).inc()

    def text(self, accept: str) -> tuple[bytes, str]:
        """What a scraper gets, and its content type, by its `Accept` header."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class _CacheCollector(Collector):
    def __init__(self, metrics: Metrics, cache: Cache) -> None:
        self._metrics = metrics
        self._cache = cache

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        lookups = CounterMetricFamily(
            "whimbrel_cache_lookups", "What models had computed before, and was there or not.", labels=["cache", "hit"]
        )
        for (kind, hit), count in self._cache.lookups().items():
            lookups.add_metric([kind, _flag(hit)], count)
        yield lookups
        yield CounterMetricFamily(
            "whimbrel_cache_errors", "Reads and writes of the cache that failed.", value=self._cache.errors
        )
        sizes = self._metrics.home.cache if self._metrics.home is not None else {}
        counts = Tally[tuple[str, ...]]({(kind,): count for kind, (count, _) in sizes.items()})
        taken = Tally[tuple[str, ...]]({(kind,): size for kind, (_, size) in sizes.items()})
        yield _by("whimbrel_cache_entries", "What is kept of models' work, by all processes.", ["cache"], counts)
        yield _by("whimbrel_cache_bytes", "Its size.", ["cache"], taken)


class _HomeCollector(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        return []  # asked for when it is registered: nothing is known then

    def collect(self) -> Iterator[Metric]:
        found = self._metrics.home
        if found is None:
            return
        named, others = found.collections[:NAMED], found.collections[NAMED:]
        yield _single("whimbrel_owner", "Whether this process owns the home.", int(found.owner))
        yield _by("whimbrel_jobs", "Jobs of the last 30 days.", ["state"], {(k,): v for k, v in found.jobs.items()})
        documents: Tally[tuple[str, ...]] = Tally()
        queue: Tally[tuple[str, ...]] = Tally()
        lags: dict[tuple[str, ...], int] = defaultdict(int)
        views: Tally[tuple[str, ...]] = Tally()
        for name, figures in [(one.collection.name, one) for one in named] + [(OTHERS, one) for one in others]:
            documents.update({(name, state): count for state, count in figures.documents.items()})
            head = figures.collection.head
            if figures.collection.id in found.embedded_upto:
                queue[(name,)] += max(head - found.embedded_upto[figures.collection.id], 0)
            for row in figures.views:
                key = (name, row.view.kind.value, row.view.state.value)
                lags[key] = max(lags[key], head - row.view.position)
                views[(row.view.kind.value, row.view.state.value, _flag(row.view.error))] += 1
        yield _by("whimbrel_documents", "Documents by state.", ["collection", "state"], documents)
        yield _by("whimbrel_embedding_queue_changes", "Changes not embedded yet.", ["collection"], queue)
        yield _by("whimbrel_view_lag_changes", "Changes behind the log.", ["collection", "kind", "state"], lags)
        yield _by("whimbrel_views", "Views, and whether they have an error.", ["kind", "state", "error"], views)


def _single(name: str, said: str, value: float) -> Metric:
    return GaugeMetricFamily(name, said, value=value)


def _by(name: str, said: str, labels: Sequence[str], values: Mapping[tuple[str, ...], int]) -> Metric:
    family = GaugeMetricFamily(name, said, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _flag(value: object) -> str:
    return "true" if value else "false"
