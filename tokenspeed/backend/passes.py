"""Passes of one network over rows: packed, enqueued by a captured graph where there is one, and drawn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpu.table import Ops
from tokenspeed.backend.graphs import Graphs
from tokenspeed.backend.marks import Mark
from tokenspeed.backend.masks import Masked, fill_masks, is_masked, words_of
from tokenspeed.backend.packing import Columns, Guessed, Packed, Packer
from tokenspeed.backend.results import draws_of
from tokenspeed.core.plan import Draw, Row
from tokenspeed.model.batching import pooled_tokens
from tokenspeed.model.cuda.drawing import (
    RANKED_AT_ONCE,
    Ranked,
    Raw,
    adjust,
    adjustments_of,
    to_device,
    to_host,
)
from tokenspeed.model.cuda.network import Network, Shape
from tokenspeed.model.cuda.staging import StepTensors, Turns

POOLED_AT_ONCE = 256  # tokens whose hidden states are summed together: bounds what that takes


class Order(NamedTuple):
    """The rows as the device has them: those of one token first, where that matters."""

    rows: Sequence[Row]
    places: Sequence[int]  # as they were given, of each of `rows`
    singles: int


@dataclass(slots=True)
class Pass:
    """Rows that the device computes, and what will be read of it."""

    order: Order
    draws: Sequence[Draw | None]  # one a logit
    firsts: Sequence[int]  # of each row of the order, its first logit
    counts: list[int]  # of logits, for each row of the order
    logits: int  # that are computed, those of padding included
    step: StepTensors  # its arrays on the device, until another pass of the same network is sent
    few: bool = False  # made by `verify`: a logit after every token
    masked: Masked | None = None
    masks: Tensor | None = None  # the same, as they are copied to the device
    rest: Callable[[], None] | None = None  # enqueues the draws, once the tokens that masks need are known
    ranked: dict[int, tuple[Ranked, int]] = field(default_factory=dict)  # by logit; its row there
    scored: list[tuple[Ranked, int]] = field(default_factory=list)  # for each target, in order
    pooled: Tensor | None = None  # float64 [rows that pool, hidden], on its way to the host


class Start:
    """Of a step: sets its mark when the device gets something to do, in whichever pass."""

    def __init__(self) -> None:
        self._mark: Mark | None = None

    def expect(self, mark: Mark) -> None:
        """A step begins."""
        self._mark = mark

    def now(self) -> None:
        if self._mark is not None:
            self._mark.set()
            self._mark = None


class GraphOptions(NamedTuple):
    """What may be captured: `size` bytes of graphs; of steps that prefill, those of up to `tokens`."""

    size: int
    tokens: int
    turns: threading.Lock  # of all that capture on this device


class Passes:
    """Enqueues passes of one network, whose draws go to `drawn` from `first` on: a token for each logit, then
    their statuses.

    `drawn` may hold more, which rows refer to as their sources. `in_flight`: passes whose packed rows the
    device may still read, while another is packed. All of it is for one thread.
    """

    def __init__(
        self,
        network: Network,
        ops: Ops,
        drawn: Tensor,
        start: Start,
        *,
        first: int = 0,
        in_flight: int,
        graphs: GraphOptions | None = None,
        captures_draw: bool = True,
    ) -> None:
        """Graphs of steps with a draw after every token hold these draws, if `captures_draw`."""
        self.network = network
        self.own = drawn[first : first + 2 * network.bounds.tokens]
        self.drawn, self.ops, self._start = drawn, ops, start
        self._packer = Packer(network, buffers=in_flight + 1)
        words = words_of(network.spec.vocab_size)
        self._mask_buffers = Turns(words, buffers=in_flight + 1, pinned=network.device.type == "cuda")
        self._captures_draw = captures_draw
        self.graphs: Graphs | None = None
        if graphs is not None and graphs.size:
            self.graphs = Graphs(
                replace(network.bounds, tokens=graphs.tokens),
                network.short_keys,
                self.work,
                network.warm,
                device=network.device,
                budget_bytes=graphs.size,
                turns=graphs.turns,
            )

    def takes_few(self, columns: Columns) -> bool:
        """Whether rows are short enough, and few enough, for `verify`; nothing is scored or pooled."""
        bounds = self.network.bounds
        both = zip(columns.tokens, columns.drafts, strict=True)
        lengths = [len(tokens) + len(drafts) for tokens, drafts in both]
        asked = any(columns.targets) or any(columns.pooled)
        return max(lengths) <= bounds.few and sum(lengths) <= bounds.logits and not asked

    def decode(self, rows: Sequence[Row], columns: Columns, sources: dict[int, int]) -> Pass:
        """Rows of one token each: a draw after every one."""
        draws, count = columns.draw, len(rows)
        keys = sum(columns.start) + count
        graph = None if self.graphs is None else self.graphs.decode(count, keys)
        shape = Shape(count, count, count) if graph is None else graph.shape
        step = self._send(self._packer.decode(columns, shape, sources))
        made = Pass(Order(rows, range(count), count), draws, range(count), [1] * count, shape.rows, step)
        if graph is None:
            self.work(shape)
        else:
            graph.replay()
        self._draw_or_wait(made, lambda: self._finish_draws(made, count))
        return made

    def verify(
        self,
        rows: Sequence[Row],
        sources: dict[int, int],
        guessed: Sequence[Guessed] = (),
        *,
        prepare: Callable[[StepTensors], None] = lambda step: None,
    ) -> Pass:
        """Rows of a few tokens, drafts included, for which `takes_few` holds: a draw after every token.

        `prepare` may enqueue changes of what was sent, before it is computed with.
        """
        lengths = [len(row.tokens) + len(row.drafts) for row in rows]
        tokens, count = sum(lengths), len(rows)
        graph = None if self.graphs is None else self.graphs.verify(tokens, count)
        shape = Shape(tokens, 0, count, few=True) if graph is None else graph.shape
        draws: list[Draw | None] = []
        firsts, counts = [], []
        for row in rows:
            draws += [None] * (len(row.tokens) - 1)
            firsts.append(len(draws))
            wanted = draws_of(row)
            counts.append(len(wanted))
            draws += wanted or [None] * (1 + len(row.drafts))
        packed, _ = self._packer.mixed(rows, 0, shape, draws, sources, guessed)
        step = self._send(packed)
        made = Pass(Order(rows, range(count), 0), draws, firsts, counts, shape.tokens, step, few=True)
        prepare(step)
        if graph is None:
            self.work(shape)
        else:
            graph.replay()
        self._finish_draws(made, tokens)
        return made

    def mixed(
        self, rows: Sequence[Row], columns: Columns, sources: dict[int, int], guessed: Sequence[Guessed] = ()
    ) -> Pass:
        """Rows of any number of tokens: logits where they are wanted, in parts that there is memory for."""
        order, network = ordered(rows, columns), self.network
        rows, singles = order.rows, order.singles
        draws = [draw for row in rows for draw in draws_of(row)]
        counts = [0 if row.draw is None else 1 + len(row.drafts) for row in rows]
        firsts = list(accumulate(counts, initial=0))[:-1]
        tokens = sum(len(row.tokens) + len(row.drafts) for row in rows)
        every = any(row.drafts or row.targets or row.pooled for row in rows)
        graphs = None if every else self.graphs
        graph = None if graphs is None else graphs.mixed(tokens, singles, len(rows) - singles)
        shape = Shape(tokens, singles, len(rows), every=every) if graph is None else graph.shape
        placed = {place: at for at, place in enumerate(order.places)} if guessed else {}
        guessed = [drafts._replace(row=placed[drafts.row]) for drafts in guessed]
        packed, scored = self._packer.mixed(rows, singles, shape, draws, sources, guessed)
        step = self._send(packed)
        made = Pass(order, draws, firsts, counts, len(draws), step)
        if graph is None:
            network.embed(step, shape, self.drawn)
            network.forward(step, shape)
        else:
            graph.replay()

        def rest() -> None:
            most = network.bounds.logits
            for first in range(0, len(draws), most):
                part = step.logit_rows[first : first + most]
                self._draw(made, first, network.compute_logits(part, len(part), shape))
            if len(scored):
                self._score(made, to_device(scored, network.device), shape)
            if any(columns.pooled):
                made.pooled = self._pool(rows)

        self._draw_or_wait(made, rest)
        return made

    def finish(self, made: Pass, tokens: Sequence[int | None]) -> None:
        """Enqueue the draws of a pass that waits: `tokens` are those that the rows of the plan before gave; a
        row that follows none of them draws from everything, for nothing."""
        rest, made.rest = made.rest, None
        if rest is not None:
            made.order = made.order._replace(rows=[_known(row, tokens) for row in made.order.rows])
            rest()

    def _draw_or_wait(self, made: Pass, rest: Callable[[], None]) -> None:
        """Enqueue the `rest` of a pass, unless a grammar needs tokens that are not on the host yet to say
        what may be drawn: they come while the device computes the pass."""
        if any(row.source >= 0 and is_masked(row) for row in made.order.rows):
            made.rest = rest
        else:
            rest()

    def work(self, shape: Shape) -> None:
        """What is captured: a step of that shape, up to its hidden states; where it draws after every token,
        up to their logits, and the draws from these as they are."""
        network, step = self.network, self._packer.tensors(shape)
        network.embed(step, shape, self.drawn)
        network.forward(step, shape)
        if shape.draws:
            logits = network.compute_logits(None, shape.tokens, shape)
            if self._captures_draw:
                self._sample(logits, step, 0, shape.tokens)

    def _send(self, packed: Packed) -> StepTensors:
        """Begin to enqueue."""
        self._start.now()
        self._packer.send(packed)
        return packed.step

    def _finish_draws(self, made: Pass, count: int) -> None:
        """Draw from the first `count` logits, unless that is done."""
        if not (self._captures_draw and self._packer.plain):
            self._draw(made, 0, self.network.logits[:count])

    def _score(self, made: Pass, wanted: Tensor, shape: Shape) -> None:
        """Enqueue the log-probabilities of what follows the tokens `wanted` in their prompts."""
        rows, network = made.order.rows, self.network
        targets = [target for row in rows for target in row.targets]
        alternatives = max((row.score for row in rows), default=0)
        most = min(network.bounds.logits, RANKED_AT_ONCE)
        for first in range(0, len(targets), most):
            part = wanted[first : first + most]
            count = len(part)
            raw = Raw(network.compute_logits(part, count, shape), range(count), alternatives)
            ranked = raw.ranked(to_device(np.array(targets[first : first + count], np.int32), network.device))
            made.scored += [(ranked, row) for row in range(count)]

    def _pool(self, rows: Sequence[Row]) -> Tensor:
        """Enqueue the sums of the hidden states that rows pool."""
        counts, network = [row.pooled for row in rows if row.pooled], self.network
        owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        tokens, rows_of = to_device(np.stack((pooled_tokens(rows), owners)), network.device)
        shape = (len(counts), network.spec.hidden_size)
        sums = torch.zeros(shape, dtype=torch.float64, device=network.device)
        most = min(network.bounds.logits, POOLED_AT_ONCE)
        for first in range(0, len(tokens), most):
            part = slice(first, first + most)
            sums.index_add_(0, rows_of[part], network.states(tokens[part]).double())
        return to_host(sums)

    def _draw(self, made: Pass, first: int, logits: Tensor) -> None:
        """Enqueue the draws from `logits`, those of the pass from `first` on."""
        count = len(logits)
        draws = made.draws[first : first + count]
        raws = [] if self._packer.plain else _raws(logits, draws)
        if not self._packer.plain and (given := adjustments_of(draws)) is not None:
            adjust(self.ops, logits, given, self._masks(made, first, count))
        self._sample(logits, made.step, first, made.logits)
        for raw, numbers in raws:
            ranked = raw.ranked(self.own[first : first + count])
            made.ranked |= {first + number: (ranked, row) for row, number in enumerate(numbers)}

    def _masks(self, made: Pass, first: int, count: int) -> Tensor | None:
        """Those of `count` logits from `first` on; they are filled while the device computes the logits."""
        if made.masked is None:
            rows = made.order.rows
            places = [place for place, row in enumerate(rows) if is_masked(row)]
            if not places:
                return None
            masks = self._mask_buffers.take(len(made.draws))
            made.masked = fill_masks(rows, places, made.firsts, masks.numpy())
            made.masks = masks
        return None if made.masks is None else made.masks[first : first + count]

    def _sample(self, logits: Tensor, step: StepTensors, first: int, total: int) -> None:
        """Enqueue the draws themselves, of a pass with `total` logits."""
        some = slice(first, first + len(logits))
        self.ops.sample(
            logits,
            step.temperature[some],
            step.top_k[some],
            step.top_p[some],
            step.min_p[some],
            step.seeds[some],
            step.draw_positions[some],
            self.own[some],
            self.own[total + first : total + first + len(logits)],
        )


def _known(row: Row, tokens: Sequence[int | None]) -> Row:
    """The row with its token, if it is one that the host did not have, where a grammar needs it."""
    if row.source < 0 or row.draw is None or not is_masked(row):
        return row
    token = tokens[row.source]
    return row._replace(draw=row.draw._replace(held=None)) if token is None else row._replace(tokens=(token,))


def ordered(rows: Sequence[Row], columns: Columns) -> Order:
    """Rows of one token first; else as they are."""
    if not any(columns.drafts) and max(map(len, columns.tokens)) == 1:
        return Order(rows, range(len(rows)), len(rows))
    singles = [place for place, row in enumerate(rows) if len(row.tokens) == 1 and not row.drafts]
    others = [place for place, row in enumerate(rows) if len(row.tokens) > 1 or row.drafts]
    places = singles + others
    return Order([rows[place] for place in places], places, len(singles))


def _raws(logits: Tensor, draws: Sequence[Draw | None]) -> list[tuple[Raw, list[int]]]:
    """The logits whose log-probabilities are asked for, kept in parts, with their numbers."""
    asked = [
        number for number, draw in enumerate(draws) if draw is not None and draw.sampling.logprobs is not None
    ]
    parts = [asked[first : first + RANKED_AT_ONCE] for first in range(0, len(asked), RANKED_AT_ONCE)]
    most = max((draw.sampling.logprobs or 0 for draw in draws if draw is not None), default=0)
    return [(Raw(logits, part, most), part) for part in parts]
