"""Steps on a device that works on its own: `begin` enqueues one and returns, `end` reads what it gave.

Between the two the host never waits, so the next step can be planned and enqueued while one runs; what a step
samples stays on the device for the rows that follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, repeat
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpu.table import Ops
from tokenspeed.backend.graphs import Graphs
from tokenspeed.backend.marks import Mark, mark_on
from tokenspeed.backend.packing import Columns, Packed, Packer, columns_of, most_words
from tokenspeed.backend.results import SOURCE_FAILED, draws_of, result_of
from tokenspeed.core.plan import NOTHING, Draw, Row, RowResult, StepPlan, StepResult
from tokenspeed.core.request import Sampling, TokenLogprob
from tokenspeed.model.cuda.drawing import (
    RANKED_AT_ONCE,
    Ranked,
    Raw,
    adjust,
    adjustments_of,
    sampled_of,
    to_device,
)
from tokenspeed.model.cuda.network import Bounds, Network, Shape
from tokenspeed.model.cuda.staging import Returned, StepTensors
from tokenspeed.model.sampler import Sampled

WARMED = (16, 256, 2048)  # tokens of prompts
NONE: frozenset[int] = frozenset()
EMPTY = np.zeros((2, 0), np.int32)
# A named tuple's own constructor takes twice as long, and this is done for every row of every step.
_row_result = partial(tuple.__new__, RowResult)
IN_FLIGHT = 2  # steps at most: the one that runs and the one behind it


class _Order(NamedTuple):
    """The rows as the device has them: those of one token first."""

    rows: Sequence[Row]
    places: Sequence[int]  # in the plan, of each of `rows`
    singles: int


@dataclass(slots=True)
class Begun:
    """A step that the device has, and what will be read of it."""

    plan: StepPlan
    order: _Order
    draws: Sequence[Draw | None]  # one a logit
    counts: list[int]  # of logits, for each row of the order
    drawn: NDArray[np.int32]  # [2, logits, as many as were computed]: tokens, statuses
    started: Mark
    ended: Mark
    before: Mark | None  # the end of the step before
    faults: dict[int, str] = field(default_factory=dict)  # by place in the plan
    ranked: dict[int, tuple[Ranked, int]] = field(default_factory=dict)  # by logit; its row there
    scored: list[tuple[Ranked, int]] = field(default_factory=list)  # for each target, in order


class Stepper:
    """Runs plans in the order in which they are begun, at most `IN_FLIGHT` at once.

    All of it is for one thread, but for `Begun.ended.wait()`.
    """

    def __init__(
        self,
        network: Network,
        ops: Ops,
        *,
        graph_bytes: int = 0,
        graph_tokens: int = 0,
        captures_draw: bool = True,
    ) -> None:
        """`graph_bytes` of the device's memory for captured graphs; 0: none are captured. Of steps that
        prefill those are that have up to `graph_tokens`. Those that decode end with the draw, if
        `captures_draw`."""
        bounds = network.bounds
        self._network, self._ops = network, ops
        self._vocab = network.spec.vocab_size
        self._packer = Packer(network, buffers=IN_FLIGHT + 1)
        self._captures_draw = captures_draw
        # What the last step drew: a token for each logit it computed, then their statuses.
        self._drawn = torch.zeros(2 * bounds.tokens, dtype=torch.int32, device=network.device)
        self._returned = Returned(self._drawn, buffers=IN_FLIGHT + 1)
        self._marks = [(mark_on(network.device), mark_on(network.device)) for _ in range(IN_FLIGHT + 2)]
        self._turn = 0
        self._last_end: Mark | None = None
        self._in_flight = 0
        self._logit_of: dict[int, int] = {}  # row of the last plan begun -> the logit it draws from
        self._failed = NONE  # rows of the last plan ended that gave an error
        self.graphs: Graphs | None = None
        if graph_bytes:
            device = network.device
            self.graphs = Graphs(
                bounds.rows,
                graph_tokens,
                network.short_keys,
                self._work,
                network.warm,
                device=device,
                budget_bytes=graph_bytes,
            )

    @torch.inference_mode()
    def begin(self, plan: StepPlan) -> Begun:
        """Enqueue a step; its rows are not empty. Raises `ValueError` for one that cannot be computed."""
        if self._in_flight >= IN_FLIGHT:
            raise RuntimeError(f"{self._in_flight} steps are in flight already; end one first")
        rows, columns = plan.rows, columns_of(plan.rows)
        self._check_size(columns)
        started, ended = self._marks[self._turn]
        self._turn = (self._turn + 1) % len(self._marks)
        sources, self._logit_of = self._logit_of, {}
        faults: dict[int, str] = {}
        if not all(map(sources.__contains__, columns.source)):  # else each takes what the step before draws
            rows = tuple(self._ready(place, row, sources, faults) for place, row in enumerate(rows))
            columns = columns_of(rows)
        order = _ordered(rows, columns)
        begun = Begun(plan, order, (), [], EMPTY, started, ended, self._last_end, faults)
        if order.singles == len(rows) and not any(columns.targets):
            logits = self._decode(begun, columns, sources)
        else:
            logits = self._mixed(begun, sources)
        begun.drawn = self._returned.fetch(2 * logits).reshape(2, logits)
        ended.set()
        self._last_end = ended
        self._in_flight += 1
        return begun

    def end(self, begun: Begun) -> StepResult:
        """What the step gave, after `begun.ended.wait()`."""
        self._in_flight -= 1
        tokens, statuses = begun.drawn[:, : len(begun.draws)].tolist()
        if begun.counts == [1] * len(tokens) and not (begun.ranked or begun.scored or any(statuses)):
            results = _plain_results(begun, tokens)
        else:
            results = _results(begun, tokens, statuses)
        if self._failed:
            for place, row in enumerate(begun.plan.rows):
                if row.source in self._failed:
                    begun.faults[place] = SOURCE_FAILED
        for place, fault in begun.faults.items():
            results[place] = RowResult(error=fault)
        faulty = bool(begun.faults) or any(statuses)
        self._failed = (
            frozenset(place for place, result in enumerate(results) if result.error) if faulty else NONE
        )
        return StepResult(tuple(results), begun.ended.since(begun.started), self._idle(begun))

    def drop(self, begun: Begun) -> None:
        """Forget a step whose end could not be waited for: it gave nothing, nor to the step behind it."""
        self._in_flight -= 1
        self._failed = frozenset(range(len(begun.plan.rows)))

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run a step that decodes and some that prefill, so that libraries choose and load what they need.

        Before anybody has a block: it writes to the first ones.
        """
        sampling, size = Sampling(temperature=0.0), self._network.block_size
        bounds = self._network.bounds
        most = min(bounds.tokens, bounds.context, self._network.spare_block * size)
        for count in sorted({1, *(min(tokens, most) for tokens in WARMED)}):
            row = Row(0, 0, (0,) * count, tuple(range(-(-count // size))), Draw(sampling, 0, count))
            begun = self.begin(StepPlan(0, (row,)))
            begun.ended.wait()
            self.end(begun)
        self._last_end = None

    def check(self) -> None:
        """Wait for all that was enqueued. Raises `RuntimeError` where the device cannot work any more."""
        if self._network.device.type == "cuda":
            torch.cuda.synchronize(self._network.device)

    def _check_size(self, columns: Columns) -> None:
        """No kernel looks whether what it is told to write lies in the memory that there is."""
        bounds, rows = self._network.bounds, len(columns.tokens)
        tokens = sum(map(len, columns.tokens)) + sum(map(len, columns.drafts))
        if rows > bounds.rows or tokens > bounds.tokens:
            wanted = f"a step of {rows} rows and {tokens} tokens"
            raise ValueError(f"{wanted} exceeds {bounds.rows} and {bounds.tokens}")

    def _idle(self, begun: Begun) -> float:
        return 0.0 if begun.before is None else max(0.0, begun.started.since(begun.before))

    def _ready(self, place: int, row: Row, sources: dict[int, int], faults: dict[int, str]) -> Row:
        """The row, or one that computes token 0 for nothing where it names what there is not."""
        if row.source >= 0:
            if row.source not in sources:
                faults[place] = SOURCE_FAILED
                return row._replace(source=-1)
            return row
        named = row.tokens + row.targets + row.drafts if row.targets or row.drafts else row.tokens
        if row.draw is not None and row.draw.sampling.logit_bias:
            named += tuple(token for token, _ in row.draw.sampling.logit_bias)
        if not 0 <= min(named) <= max(named) < self._vocab:
            faults[place] = f"a token is beyond the vocabulary of {self._vocab}"
            return row._replace(tokens=(0,) * len(row.tokens), draw=None, drafts=(), targets=())
        return row

    def _work(self, shape: Shape) -> None:
        """What is captured: a step of that shape, up to its hidden states; where all rows have one token, up
        to their logits, and the draws from these as they are."""
        network, step, rows = self._network, self._packer.tensors(shape), shape.rows
        network.embed(step, shape, self._drawn)
        network.forward(step, shape)
        if shape.singles == rows:
            logits = network.compute_logits(None, rows, shape)
            if self._captures_draw:
                self._sample(logits, step, 0, rows)

    def _send(self, begun: Begun, packed: Packed) -> StepTensors:
        """Begin to enqueue: until then the device had nothing to do."""
        begun.started.set()
        self._packer.send(packed)
        return packed.step

    def _decode(self, begun: Begun, columns: Columns, sources: dict[int, int]) -> int:
        """One token a row, by a captured graph where there is one: logits after every row, and after those
        that pad the step; their number."""
        draws, count = columns.draw, len(columns.draw)
        begun.draws, begun.counts = draws, [1] * count
        keys = sum(columns.start) + count
        graph = None if self.graphs is None else self.graphs.decode(count, keys)
        shape = Shape(count, count, count) if graph is None else graph.shape
        step = self._send(begun, self._packer.decode(columns, shape, sources))
        if graph is None:
            self._work(shape)
        else:
            graph.replay()
        if not (self._captures_draw and self._packer.plain):  # else it is done
            self._draw(begun, 0, self._network.logits[:count], step, shape.rows)
        places = begun.order.places
        self._logit_of = dict(zip(places, places, strict=True))
        if not all(draws):
            self._logit_of = {place: place for place in places if draws[place] is not None}
        return shape.rows

    def _mixed(self, begun: Begun, sources: dict[int, int]) -> int:
        """Rows of any number of tokens: logits where they are wanted, in parts that there is memory for;
        their number."""
        rows, network = begun.order.rows, self._network
        begun.draws = [draw for row in rows for draw in draws_of(row)]
        begun.counts = [0 if row.draw is None else 1 + len(row.drafts) for row in rows]
        tokens, singles = sum(len(row.tokens) + len(row.drafts) for row in rows), begun.order.singles
        every = any(row.drafts or row.targets for row in rows)
        graphs = None if every else self.graphs
        graph = None if graphs is None else graphs.mixed(tokens, singles, len(rows) - singles)
        shape = Shape(tokens, singles, len(rows), every=every) if graph is None else graph.shape
        packed, scored = self._packer.mixed(rows, singles, shape, begun.draws, sources)
        step = self._send(begun, packed)
        if graph is None:
            network.embed(step, shape, self._drawn)
            network.forward(step, shape)
        else:
            graph.replay()
        logits, most = len(begun.draws), network.bounds.logits
        for first in range(0, logits, most):
            part = step.logit_rows[first : first + most]
            self._draw(begun, first, network.compute_logits(part, len(part), shape), step, logits)
        if len(scored):
            self._score(begun, to_device(scored, network.device), shape)
        first_logits = accumulate(begun.counts, initial=0)
        self._logit_of = {
            place: logit
            for row, place, logit in zip(rows, begun.order.places, first_logits, strict=False)
            if row.draw is not None and not row.drafts
        }
        return logits

    def _score(self, begun: Begun, wanted: Tensor, shape: Shape) -> None:
        """Enqueue the log-probabilities of what follows the tokens `wanted` in their prompts."""
        rows, network = begun.order.rows, self._network
        targets = [target for row in rows for target in row.targets]
        alternatives = max((row.score for row in rows), default=0)
        most = min(network.bounds.logits, RANKED_AT_ONCE)
        for first in range(0, len(targets), most):
            part = wanted[first : first + most]
            count = len(part)
            raw = Raw(network.compute_logits(part, count, shape), range(count), alternatives)
            ranked = raw.ranked(to_device(np.array(targets[first : first + count], np.int32), network.device))
            begun.scored += [(ranked, row) for row in range(count)]

    def _draw(self, begun: Begun, first: int, logits: Tensor, step: StepTensors, total: int) -> None:
        """Enqueue the draws from `logits`, those of the step's `total` from `first` on."""
        count = len(logits)
        draws = begun.draws[first : first + count]
        raws = [] if self._packer.plain else _raws(logits, draws)
        if not self._packer.plain and (given := adjustments_of(draws)) is not None:
            adjust(self._ops, logits, given)
        self._sample(logits, step, first, total)
        for raw, numbers in raws:
            ranked = raw.ranked(self._drawn[first : first + count])
            begun.ranked |= {first + number: (ranked, row) for row, number in enumerate(numbers)}

    def _sample(self, logits: Tensor, step: StepTensors, first: int, total: int) -> None:
        """Enqueue the draws themselves."""
        some = slice(first, first + len(logits))
        self._ops.sample(
            logits,
            step.temperature[some],
            step.top_k[some],
            step.top_p[some],
            step.min_p[some],
            step.seeds[some],
            step.draw_positions[some],
            self._drawn[some],
            self._drawn[total + first : total + first + len(logits)],
        )


def staging_bytes(bounds: Bounds, block_size: int) -> int:
    """What a stepper takes of the device's memory."""
    return 4 * (most_words(bounds, -(-bounds.context // block_size)) + 2 * bounds.tokens)


def _ordered(rows: Sequence[Row], columns: Columns) -> _Order:
    """Rows of one token first; else as they are."""
    if not any(columns.drafts) and max(map(len, columns.tokens)) == 1:
        return _Order(rows, range(len(rows)), len(rows))
    singles = [place for place, row in enumerate(rows) if len(row.tokens) == 1 and not row.drafts]
    others = [place for place, row in enumerate(rows) if len(row.tokens) > 1 or row.drafts]
    places = singles + others
    return _Order([rows[place] for place in places], places, len(singles))


def _plain_results(begun: Begun, tokens: list[int]) -> list[RowResult]:
    """Where every row has one logit, and nothing is wrong or asked but the token."""
    results = list(map(_row_result, zip(zip(tokens), repeat(None), repeat(()), repeat(None), repeat(()))))
    if begun.order.singles < len(tokens):  # else they are in the order of the plan
        results = [result for _, result in sorted(zip(begun.order.places, results, strict=True))]
    if not all(begun.draws):
        results = [result if draw else NOTHING for result, draw in zip(results, begun.draws, strict=True)]
    return results


def _results(begun: Begun, tokens: list[int], statuses: list[int]) -> list[RowResult]:
    """What each row of the plan gave."""
    results = [NOTHING] * len(begun.plan.rows)
    logit, target = 0, 0
    for row, place, count in zip(begun.order.rows, begun.order.places, begun.counts, strict=True):
        verified = []
        if row.draw is not None:
            verified = [_sampled(begun, at, tokens[at], statuses[at]) for at in range(logit, logit + count)]
        logit += count
        scores = _scores(begun, target, len(row.targets), row.score)
        target += len(row.targets)
        results[place] = result_of(row, verified, scores)
    return results


def _sampled(begun: Begun, logit: int, token: int, status: int) -> Sampled:
    draw = begun.draws[logit]
    logprob: TokenLogprob | None = None
    if logit in begun.ranked and draw is not None:
        ranked, row = begun.ranked[logit]
        logprob = ranked.read(row, draw.sampling.logprobs or 0)
    return sampled_of(token, status, logprob)


def _scores(begun: Begun, first: int, count: int, alternatives: int) -> list[TokenLogprob | None]:
    return [ranked.read(row, alternatives) for ranked, row in begun.scored[first : first + count]]


def _raws(logits: Tensor, draws: Sequence[Draw | None]) -> list[tuple[Raw, list[int]]]:
    """The logits whose log-probabilities are asked for, kept in parts, with their numbers."""
    asked = [
        number for number, draw in enumerate(draws) if draw is not None and draw.sampling.logprobs is not None
    ]
    parts = [asked[first : first + RANKED_AT_ONCE] for first in range(0, len(asked), RANKED_AT_ONCE)]
    most = max((draw.sampling.logprobs or 0 for draw in draws if draw is not None), default=0)
    return [(Raw(logits, part, most), part) for part in parts]
