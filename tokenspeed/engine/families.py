"""Figures as the engine's loop writes them, and as Prometheus reads them.

A histogram of the client library takes a lock and microseconds for every observation, and every token is
one; these are plain lists, written by the engine's loop alone, and turned into metric families on a scrape.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

PREFIX = "tokenspeed_"
Label = tuple[str, ...]  # the values of a family's labels
T = TypeVar("T")


class Histogram:
    """Counts of observations by bucket; `bounds` are the buckets' upper ends."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.add(self.bucket(value), value)

    def bucket(self, value: float) -> int:
        """The index of the bucket that `value` falls into."""
        return bisect_left(self.bounds, value)

    def add(self, bucket: int, value: float) -> None:
        """Observe a value whose bucket is known."""
        self.counts[bucket] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Upper ends and cumulative counts, as Prometheus wants them."""
        buckets = []
        total = 0
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


def histograms(name: str, documentation: str, labels: Label, members: Mapping[Label, Histogram]) -> Metric:
    """A family of histograms, one for each value of `labels`."""
    family = HistogramMetricFamily(PREFIX + name, documentation, labels=labels)
    for label, histogram in sorted(members.items(), key=_label):
        family.add_metric(label, histogram.buckets(), histogram.sum)
    return family


def histogram(name: str, documentation: str, member: Histogram) -> Metric:
    return HistogramMetricFamily(PREFIX + name, documentation, buckets=member.buckets(), sum_value=member.sum)


def counters(name: str, documentation: str, labels: Label, values: Mapping[Label, float]) -> Metric:
    """A family of counters, one for each value of `labels`; `_total` is added to the name."""
    family = CounterMetricFamily(PREFIX + name, documentation, labels=labels)
    for label, value in sorted(values.items(), key=_label):
        family.add_metric(label, value)
    return family


def counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, documentation, value=value)


def gauges(name: str, documentation: str, labels: Label, values: Mapping[Label, float]) -> Metric:
    """A family of gauges, one for each value of `labels`."""
    family = GaugeMetricFamily(PREFIX + name, documentation, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, documentation, value=value)


def _label(member: tuple[Label, T]) -> Label:
    return member[0]
