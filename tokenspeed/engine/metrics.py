"""What the engine's loop counts: what requests felt, what steps took, and who held up whom.

What a request waited for is a difference of running totals, so that those who wait cost nothing meanwhile.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tokenspeed.core import sequence as core
from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import StepPlan
from tokenspeed.core.request import Finished, Request, TokenDelta
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.core.speculation import LOOKUP, MODEL
from tokenspeed.core.taking import Happening
from tokenspeed.engine.causes import after, prefilling
from tokenspeed.engine.families import (
    Histogram,
    Label,
    counter,
    counters,
    gauge,
    gauges,
    histogram,
    histograms,
)
from tokenspeed.engine.observer import Step
from tokenspeed.errors import RequestError

SECONDS = (  # 1 ms .. 60 s, finer where a person feels it
    *(0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2),
    *(0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0),
)
RATES = (1, 2, 5, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200, 300, 500, 1000, 2000, 5000)  # tokens/s
RATIOS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
LENGTHS = (512, 2048, 8192, 32768)  # prompt tokens: a class of requests for each, one for what is longer
DRAFTERS = (LOOKUP, MODEL)
PRIORITIES = 10  # beyond it, to either side, classes are counted as this one
COSTS = tuple(field.name for field in fields(Costs))
CLASS = ("prompt_tokens", "priority")  # the labels of a class
REFUSALS = (
    "overloaded",
    "key_overloaded",
    "deadline_unreachable",
    "context_length_exceeded",
)  # shown from the start


class _Class:
    """Requests of about one prompt length and of one priority."""

    __slots__ = ("blocked", "first_token", "gap", "queue")

    def __init__(self) -> None:
        self.first_token = Histogram(SECONDS)
        self.queue = Histogram(SECONDS)
        self.gap = Histogram(SECONDS)
        self.blocked = 0.0  # seconds


class _Wait:
    """A request without its first token yet, and what the totals of prefill were when it came."""

    __slots__ = ("own", "predicted", "prefilled", "submitted")

    def __init__(self, predicted: float, submitted: float, prefilled: float) -> None:
        self.predicted = predicted  # seconds from its arrival to its first token
        self.submitted = submitted
        self.prefilled = prefilled  # seconds of prefill, by all, before it came
        self.own = 0.0  # seconds of prefill


class _Progress:
    """When a choice gave its first and its latest token."""

    __slots__ = ("first", "gap", "latest")

    def __init__(self, now: float, gap: Histogram) -> None:
        self.first = now
        self.latest = now
        self.gap = gap


class EngineMetrics(Collector):
    """An observer of the engine, read by a Prometheus registry that it is registered with.

    `clock` is the engine's, in seconds: a scrape asks how long the longest wait is by now.
    """

    def __init__(self, scheduler: Scheduler, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._classes: dict[Label, _Class] = {}
        self._waits: dict[str, _Wait] = {}  # by request
        self._new: list[_Wait] = []  # those that came since the last step
        self._progress: dict[int, _Progress] = {}  # by sequence, from its first token to its end
        self._requests = 0
        self._choices_finished: Counter[str] = Counter()
        self._generated_tokens = 0
        self._failed_steps = 0
        self._computed_tokens = 0
        self._prefilled = 0.0  # seconds that prefill rows took
        self._decodes_blocked = 0.0  # seconds that they took, times the decode rows beside them
        self._refused = Counter(dict.fromkeys(REFUSALS, 0))
        self._whole = Histogram(SECONDS)
        self._decode_rate = Histogram(RATES)
        self._foretold = Histogram(RATIOS)
        self._steps = {kind: Histogram(SECONDS) for kind in ("decode", "prefill", "mixed")}

    # -- told by the engine -------------------------------------------------------------------------

    def submitted(self, request: Request, predicted: float, now: float) -> None:
        self._requests += 1
        wait = self._waits[request.id] = _Wait(predicted, now, self._prefilled)
        self._new.append(wait)

    def refused(self, request: Request, error: RequestError, now: float) -> None:
        self._refused[error.code or "invalid_request"] += 1

    def stepped(self, step: Step) -> None:
        rows = len(step.plan.rows)
        prefills = prefilling(step)
        prefilled = 0.0
        self._computed_tokens += rows
        for sequence, row, seconds in prefills:
            prefilled += seconds
            self._computed_tokens += len(row.tokens) - 1
            wait = self._waits.get(sequence.request.id)
            if wait is not None:
                wait.own += seconds
        for wait in self._new:  # of the step that ran when they came, what was over does not count
            wait.prefilled += prefilled * (1.0 - after(step.began, step.ended, wait.submitted))
        self._new.clear()
        self._prefilled += prefilled
        self._decodes_blocked += prefilled * (rows - len(prefills))
        kind = "decode" if not prefills else "mixed" if len(prefills) < rows else "prefill"
        self._steps[kind].observe(step.result.seconds)

    def step_failed(self, plan: StepPlan, now: float) -> None:
        self._failed_steps += 1

    def delivered(self, happenings: Sequence[Happening], now: float) -> None:
        progress = self._progress
        tokens = 0
        latest, bucket = now, 0  # most tokens of a step follow the same one before it
        for sequence, event in happenings:
            if type(event) is TokenDelta:
                tokens += len(event.tokens)
                seen = progress.get(sequence.id)
                if seen is None:
                    self._first_token(sequence, now)
                    continue
                if seen.latest != latest:
                    latest = seen.latest
                    bucket = seen.gap.bucket(now - latest)
                seen.gap.add(bucket, now - latest)
                seen.latest = now
            elif type(event) is Finished:
                self._finished(sequence, event, now)
        self._generated_tokens += tokens

    def _first_token(self, sequence: core.Sequence, now: float) -> None:
        request = sequence.request
        felt = self._class(request)
        self._progress[sequence.id] = _Progress(now, felt.gap)
        felt.first_token.observe(now - request.arrival)
        felt.queue.observe(sequence.started - request.arrival)
        wait = self._end_wait(request)
        if wait is not None:
            self._foretold.observe((now - request.arrival) / max(wait.predicted, 1e-6))

    def _finished(self, sequence: core.Sequence, event: Finished, now: float) -> None:
        self._choices_finished[event.reason] += 1
        self._whole.observe(now - sequence.request.arrival)
        progress = self._progress.pop(sequence.id, None)
        if progress is not None and progress.latest > progress.first:
            self._decode_rate.observe((sequence.generated - 1) / (progress.latest - progress.first))
        elif progress is None:  # it waited in vain
            self._end_wait(sequence.request)

    def _end_wait(self, request: Request) -> _Wait | None:
        """Count what a request waited for, the first time that one of its choices has a token or ends."""
        wait = self._waits.pop(request.id, None)
        if wait is not None:
            self._class(request).blocked += max(0.0, self._prefilled - wait.prefilled - wait.own)
        return wait

    def _class(self, request: Request) -> _Class:
        length = bisect_left(LENGTHS, len(request.prompt))
        priority = max(-PRIORITIES, min(PRIORITIES, request.priority))
        label = (str(LENGTHS[length]) if length < len(LENGTHS) else "inf", str(priority))
        found = self._classes.get(label)
        if found is None:
            found = self._classes[label] = _Class()
        return found

    # -- read by Prometheus -------------------------------------------------------------------------

    def collect(self) -> Iterable[Metric]:
        yield from self._of_classes()
        yield from self._of_requests()
        yield from self._of_steps()
        yield from self._of_costs()
        yield from self._of_speculation()
        yield from self._of_blocks()

    def describe(self) -> Iterable[Metric]:
        return self.collect()

    def _of_classes(self) -> Iterable[Metric]:
        classes = self._classes.items()
        yield histograms(
            "time_to_first_token_seconds",
            "From arrival to the first token of a choice",
            CLASS,
            {label: felt.first_token for label, felt in classes},
        )
        yield histograms(
            "queue_time_seconds",
            "From arrival to the first step that works on a choice",
            CLASS,
            {label: felt.queue for label, felt in classes},
        )
        yield histograms(
            "inter_token_latency_seconds",
            "Gap between two tokens of a choice",
            CLASS,
            {label: felt.gap for label, felt in classes},
        )
        yield counters(
            "prefill_blocked_seconds",
            "Seconds of steps that the prefill of others took while requests waited for their first token; "
            "counted when that wait ends",
            CLASS,
            {label: felt.blocked for label, felt in classes},
        )

    def _of_requests(self) -> Iterable[Metric]:
        scheduler = self._scheduler
        yield counter("requests", "Requests taken", self._requests)
        yield counters(
            "requests_refused",
            "Requests not taken, by the code that their clients got",
            ("code",),
            {(code,): float(count) for code, count in self._refused.items()},
        )
        yield gauge("sequences_running", "Sequences that hold KV blocks", scheduler.running)
        yield gauge("sequences_waiting", "Sequences in the queue", scheduler.waiting)
        yield gauge(
            "longest_wait_seconds",
            "How long the request that waits longest for its first token has waited; 0 if none does",
            scheduler.longest_wait(self._clock()),
        )
        yield histogram(
            "time_to_first_token_over_predicted_ratio",
            "Time to the first token of a request over the time predicted at its admission; 1 is exact",
            self._foretold,
        )
        yield histogram("request_duration_seconds", "From arrival to the end of a choice", self._whole)
        yield histogram(
            "decode_tokens_per_second", "Of each choice, after its first token", self._decode_rate
        )
        yield counter("generated_tokens", "Tokens sampled and delivered", self._generated_tokens)
        yield counters(
            "choices_finished",
            "Choices ended, by reason",
            ("reason",),
            {(reason,): count for reason, count in self._choices_finished.items()},
        )

    def _of_steps(self) -> Iterable[Metric]:
        steps = self._steps.items()
        kinds = "by whether all rows decode, all prefill, or they are mixed"
        yield counters("steps", f"Steps done, {kinds}", ("kind",), {(kind,): s.count for kind, s in steps})
        yield counter("steps_failed", "Steps that ended their requests with an error", self._failed_steps)
        yield histograms(
            "step_duration_seconds",
            f"Of a step on the device, {kinds}",
            ("kind",),
            {(kind,): seconds for kind, seconds in steps},
        )
        yield counter(
            "computed_tokens", "Tokens computed in steps, prefill and decode", self._computed_tokens
        )
        yield counter("prefill_seconds", "Seconds of steps that prefill rows took", self._prefilled)
        yield counter(
            "decode_blocked_seconds",
            "Seconds by which prefill rows made steps longer, summed over the decode rows beside them",
            self._decodes_blocked,
        )
        yield counter(
            "prefill_yields",
            "Times that a prefill in progress was cut short in a step for one that came later",
            self._scheduler.yields,
        )

    def _of_costs(self) -> Iterable[Metric]:
        model = self._scheduler.costs
        yield gauge(
            "step_prediction_error_ratio",
            "Typical relative error of the seconds that the cost model predicts for a step",
            model.typical_error,
        )
        yield gauges(
            "step_cost_seconds",
            "What a step costs, as learned: at all (base), and for each row, prefilled token, "
            "key that such a token attends (attended), key that a decode row attends (read), draft that is "
            "verified, verifying at all (verify), pass of the draft model (round), token in it (guess)",
            ("of",),
            {(name,): getattr(model.costs, name) for name in COSTS},
        )

    def _of_speculation(self) -> Iterable[Metric]:
        counts = self._scheduler.speculation.counts
        yield counters(
            "drafted_tokens",
            "Drafts that were verified, by what found them",
            ("drafter",),
            {(drafter,): float(counts.drafted[drafter]) for drafter in DRAFTERS},
        )
        yield counters(
            "accepted_tokens",
            "Of those, the ones that became tokens of an answer",
            ("drafter",),
            {(drafter,): float(counts.accepted[drafter]) for drafter in DRAFTERS},
        )
        positions = [str(position) for position in range(max(counts.drafted_at, default=0) + 1)]
        for name, told, by in (
            ("drafted_position_tokens", "Drafts that were verified", counts.drafted_at),
            ("accepted_position_tokens", "Drafts that became tokens", counts.accepted_at),
        ):
            yield counters(
                name,
                f"{told}, by how many drafts stood before them",
                ("position",),
                {(position,): float(by[int(position)]) for position in positions},
            )
        yield counter("speculation_spent_seconds", "By which drafts made steps longer", counts.spent)
        yield counter(
            "speculation_saved_seconds",
            "That accepted drafts would have taken as single tokens",
            counts.saved,
        )
        yield counter(
            "speculation_failures", "Drafters that were switched off because they failed", counts.failures
        )

    def _of_blocks(self) -> Iterable[Metric]:
        scheduler = self._scheduler
        pool = scheduler.tables.pool
        yield counter("prompt_tokens", "Prompt tokens of started sequences", scheduler.prompt_tokens)
        yield counter("prefix_hit_tokens", "Of those, tokens found computed", scheduler.cached_tokens)
        yield counter(
            "preemptions", "Sequences that lost their blocks to an elder one", scheduler.preemptions
        )
        yield gauge("kv_blocks", "KV blocks there are", pool.total)
        yield gauge("kv_blocks_held", "KV blocks held by sequences", pool.held)
        yield gauge(
            "kv_blocks_remembered", "KV blocks kept for a shared prefix, held by nobody", pool.remembered
        )
        yield gauge("kv_utilisation", "Share of KV blocks held by sequences, 0 to 1", pool.held / pool.total)
