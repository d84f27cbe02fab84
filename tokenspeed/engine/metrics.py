"""What the engine counts, and how Prometheus reads it.

A histogram of the client library takes a lock and microseconds for every observation, and every token is
one; these are plain lists, written by the engine's loop alone, and turned into metric families on a scrape.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tokenspeed.core import sequence as core
from tokenspeed.core.plan import StepPlan, StepResult
from tokenspeed.core.request import Event, Finished, TokenDelta
from tokenspeed.core.scheduler import Scheduler

SECONDS = (  # 1 ms .. 60 s, finer where a person feels it
    *(0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2),
    *(0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0),
)
RATES = (1, 2, 5, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 500, 1000, 2000, 5000)  # tokens/s


class Histogram:
    """Counts of observations by bucket; `bounds` are the buckets' upper ends."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        buckets = []
        total = 0
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=self.sum)


class _Progress:
    """When a choice gave its first and its latest token."""

    __slots__ = ("first", "latest")

    def __init__(self, now: float) -> None:
        self.first = now
        self.latest = now


class EngineMetrics(Collector):
    """Written by the engine, read by a Prometheus registry that it is registered with."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._progress: dict[int, _Progress] = {}  # by sequence, from its first token to its end
        self._requests = 0
        self._choices_finished: Counter[str] = Counter()
        self._generated_tokens = 0
        self._steps = 0
        self._failed_steps = 0
        self._computed_tokens = 0
        self.first_token = Histogram(SECONDS)
        self.queue = Histogram(SECONDS)
        self.gap = Histogram(SECONDS)
        self.whole = Histogram(SECONDS)
        self.decode_rate = Histogram(RATES)
        self.step = Histogram(SECONDS)

    # -- written by the engine ----------------------------------------------------------------------

    def request_submitted(self) -> None:
        self._requests += 1

    def step_done(self, plan: StepPlan, result: StepResult) -> None:
        self._steps += 1
        self._computed_tokens += sum([len(row.tokens) for row in plan.rows])
        self.step.observe(result.seconds)

    def step_failed(self) -> None:
        self._failed_steps += 1

    def event(self, sequence: core.Sequence, event: Event, now: float) -> None:
        if type(event) is TokenDelta:
            self._generated_tokens += len(event.tokens)
            progress = self._progress.get(sequence.id)
            if progress is None:
                self._progress[sequence.id] = _Progress(now)
                self.first_token.observe(now - sequence.request.arrival)
                self.queue.observe(sequence.started - sequence.request.arrival)
            else:
                self.gap.observe(now - progress.latest)
                progress.latest = now
        elif type(event) is Finished:
            self._choices_finished[event.reason] += 1
            self.whole.observe(now - sequence.request.arrival)
            progress = self._progress.pop(sequence.id, None)
            if progress is not None and progress.latest > progress.first:
                self.decode_rate.observe((sequence.generated - 1) / (progress.latest - progress.first))

    # -- read by Prometheus -------------------------------------------------------------------------

    def collect(self) -> Iterable[Metric]:
        yield from self._histograms()
        yield from self._gauges()
        yield from self._counters()

    def describe(self) -> Iterable[Metric]:
        return self.collect()

    def _histograms(self) -> Iterable[Metric]:
        for name, documentation, histogram in (
            ("time_to_first_token_seconds", "From arrival to the first token", self.first_token),
            ("queue_time_seconds", "From arrival to the first step that works on it", self.queue),
            ("inter_token_latency_seconds", "Gap between two tokens of a choice", self.gap),
            ("request_duration_seconds", "From arrival to the end of a choice", self.whole),
            ("decode_tokens_per_second", "Of each choice, after its first token", self.decode_rate),
            ("step_duration_seconds", "Of a step on the device", self.step),
        ):
            yield histogram.family(f"tokenspeed_{name}", documentation)

    def _gauges(self) -> Iterable[Metric]:
        pool = self._scheduler.tables.pool
        for name, documentation, value in (
            ("sequences_running", "Sequences that hold KV blocks", self._scheduler.running),
            ("sequences_waiting", "Sequences in the queue", self._scheduler.waiting),
            ("kv_blocks", "KV blocks there are", pool.total),
            ("kv_blocks_held", "KV blocks held by sequences", pool.held),
            ("kv_blocks_remembered", "KV blocks kept for a shared prefix, held by nobody", pool.remembered),
            ("kv_utilisation", "Share of KV blocks held by sequences, 0 to 1", pool.held / pool.total),
        ):
            yield GaugeMetricFamily(f"tokenspeed_{name}", documentation, value=value)

    def _counters(self) -> Iterable[Metric]:
        for name, documentation, value in (
            ("requests", "Requests taken", self._requests),
            ("prompt_tokens", "Prompt tokens of started sequences", self._scheduler.prompt_tokens),
            ("prefix_hit_tokens", "Of those, tokens found computed", self._scheduler.cached_tokens),
            ("generated_tokens", "Tokens sampled and delivered", self._generated_tokens),
            ("computed_tokens", "Tokens computed in steps, prefill and decode", self._computed_tokens),
            ("preemptions", "Sequences that lost their blocks to an elder one", self._scheduler.preemptions),
            ("steps", "Steps done", self._steps),
            ("steps_failed", "Steps that ended their requests with an error", self._failed_steps),
        ):
            yield CounterMetricFamily(f"tokenspeed_{name}", documentation, value=value)
        finished = CounterMetricFamily(
            "tokenspeed_choices_finished", "Choices ended, by reason", labels=["reason"]
        )
        for reason, count in sorted(self._choices_finished.items()):
            finished.add_metric([reason], count)
        yield finished
