"""Metrics of a process that serves models, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from whimbrel.domain import EmbedKind
from whimbrel.server.version import version

SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})


class Metrics:
    def __init__(self, waiting: Callable[[], float]) -> None:
        """`waiting` says how many texts wait now."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Gauge("whimbrel_build_info", "The version that runs.", ["version"], registry=registry).labels(version()).set(1)
        self._requests = Counter(
            "whimbrel_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._request_s = Histogram(
            "whimbrel_request_seconds", "Time to the end of an answer.", ["route"], buckets=SECONDS, registry=registry
        )
        self._batch = Histogram(
            "whimbrel_models_batch_texts",
            "Texts that went to the embedder together, of one request or of several.",
            ["kind"],
            buckets=TEXTS,
            registry=registry,
        )
        Gauge("whimbrel_models_waiting_texts", "Texts that wait for the model.", registry=registry).set_function(
            waiting
        )

    def answered_request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method if method in METHODS else "OTHER", route, str(status or "aborted")).inc()
        self._request_s.labels(route).observe(seconds)

    def batch(self, kind: EmbedKind, texts: int) -> None:
        self._batch.labels(kind.value).observe(texts)

    def text(self, accept: str) -> tuple[bytes, str]:
        """What a scraper gets, and its content type, by its `Accept` header."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
