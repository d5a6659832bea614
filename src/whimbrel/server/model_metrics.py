"""Metrics of the calls of models, as this process's guards have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from whimbrel.guards.meter import BUCKETS_S

if TYPE_CHECKING:
    from whimbrel.guards.guard import Guards


class ModelCollector(Collector):
    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self._meter = guards.meter

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        labels = ["kind", "model"]
        count = UnknownMetricFamily("api_request_count", "Calls of models.", labels=[*labels, "outcome"])
        time = HistogramMetricFamily("api_response_time", "Seconds of a call of a model.", labels=labels)
        errors = GaugeMetricFamily("api_error_rate", "Share that failed, of five minutes.", labels=labels)
        cost = GaugeMetricFamily("cost_per_request", "USD, on average, of calls with a known price.", labels=labels)
        usd = CounterMetricFamily("whimbrel_model_usd", "USD of calls with a known price.", labels=labels)
        unpriced = CounterMetricFamily("whimbrel_model_unpriced", "Calls of unknown price.", labels=labels)
        stood_in = CounterMetricFamily("whimbrel_model_stood_in", "Answers instead of another model.", labels=labels)
        for key, figures in self._meter.figures().items():
            for outcome, calls in list(figures.outcomes.items()):
                count.add_metric([*key, outcome], calls)
            upto, below = [], 0
            for bound, calls in zip((*map(str, BUCKETS_S), "+Inf"), figures.buckets, strict=True):
                below += calls
                upto.append((bound, below))
            time.add_metric(key, upto, figures.seconds)
            errors.add_metric(key, self._meter.error_rate(figures))
            if priced := figures.calls - figures.unpriced:
                cost.add_metric(key, figures.usd / priced)
            usd.add_metric(key, figures.usd)
            unpriced.add_metric(key, figures.unpriced)
            stood_in.add_metric(key, figures.stood_in)
        alerts = GaugeMetricFamily("whimbrel_model_alert", "Past a threshold now.", labels=[*labels, "alert"])
        for crossing in self._guards.thresholds.now():
            alerts.add_metric([crossing.kind, crossing.model, crossing.what], 1)
        yield from (count, time, errors, cost, usd, unpriced, stood_in, alerts)
        shared = int(not self._guards.shared.out)
        yield GaugeMetricFamily("whimbrel_guards_shared", "0 while the place of breakers is out.", value=shared)
        yield GaugeMetricFamily("memory_usage", "Bytes of memory that this process has.", value=_memory())


def _memory() -> int:
    """Resident bytes; 0 where the system does not tell."""
    import os
    from pathlib import Path

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
