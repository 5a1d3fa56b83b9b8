"""Reads what the metrics are made of and serves it beside Ray's autoscaler metrics.

Every scrape reads anew: the ledger without writing to it, the board once. A source that can't be
read is missing from the answer, which says so; a scrape never fails and never stops the autoscaler.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.core import (
    Metric as PrometheusFamily,
)
from prometheus_client.registry import Collector, CollectorRegistry

from autoscaling.figures import Figures, LedgerView, Sample
from autoscaling.ledger_reader import LedgerReader
from autoscaling.metric_samples import list_samples
from autoscaling.metrics import METRICS, Metric
from cluster.config import ClusterSettings
from deployments.signals import Blackboard, GatewaySignals

_log = logging.getLogger(__name__)

_SIGNALS_AGE_S_MAX = 10.0

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class MetricSources:
    """Where a scrape looks. Each may raise anything; `now_s` returns wall time."""

    read_settings: Callable[[], ClusterSettings]
    read_ledger: Callable[[], LedgerView]
    read_decision: Callable[[], Mapping[str, Any] | None]
    read_signals: Callable[[], Sequence[GatewaySignals]]
    now_s: Callable[[], float] = time.time


class TidegateCollector(Collector):
    """Answers each scrape with every metric of the list."""

    def __init__(self, sources: MetricSources) -> None:
        self._sources = sources
        self._unreadable: set[str] = set()
        # Each scrape has a thread of its own, and sources are read by one at a time.
        self._lock = threading.Lock()

    def describe(self) -> Iterable[PrometheusFamily]:
        """Return the names alone: registering must not read anything."""
        return [_open_family(metric) for metric in METRICS]

    def collect(self) -> Iterator[PrometheusFamily]:
        """Yield every metric with what is known now."""
        families = {metric.name: _open_family(metric) for metric in METRICS}
        with self._lock:
            figures = self._look()
        for sample in list_samples(figures):
            _add(families[sample.metric.name], sample)
        yield from families.values()

    def _look(self) -> Figures:
        now_s = self._sources.now_s()
        signals = self._try("signals", self._sources.read_signals)
        if signals is not None:
            signals = [one for one in signals if now_s - one.published_s <= _SIGNALS_AGE_S_MAX]
        return Figures(
            now_s=now_s,
            settings=self._try("cluster file", self._sources.read_settings),
            ledger=self._try("ledger", self._sources.read_ledger),
            decision=self._try("decision", self._sources.read_decision),
            signals=signals,
        )

    def _try(self, name: str, read: Callable[[], _Found]) -> _Found | None:
        """Return what was read, None if it can't be; the log says so once, not at each scrape."""
        try:
            found = read()
        except Exception as exc:  # noqa: BLE001 - whatever fails here must not fail the scrape
            if name not in self._unreadable:
                _log.warning("metrics: the %s can't be read: %s", name, exc)
            self._unreadable.add(name)
            return None
        self._unreadable.discard(name)
        return found


def serve_metrics(
    registry: CollectorRegistry, *, board: Blackboard, read_settings: Callable[[], ClusterSettings]
) -> None:
    """Add our metrics to a registry that is being served."""
    sources = MetricSources(
        read_settings=read_settings,
        read_ledger=LedgerReader(read_settings).read,
        read_decision=board.get_decision,
        read_signals=board.list_signals,
    )
    registry.register(TidegateCollector(sources))


def _open_family(metric: Metric) -> PrometheusFamily:
    if metric.kind == "counter":
        return CounterMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    if metric.kind == "summary":
        return SummaryMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    return GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)


def _add(family: PrometheusFamily, sample: Sample) -> None:
    if isinstance(family, SummaryMetricFamily):
        family.add_metric(sample.labels, count_value=sample.count, sum_value=sample.value)
    elif isinstance(family, CounterMetricFamily | GaugeMetricFamily):
        family.add_metric(sample.labels, sample.value)
