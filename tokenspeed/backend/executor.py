"""One step of the model, from plan to result, on the thread that owns the device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from tokenspeed.backend.guessing import Guesser
from tokenspeed.backend.masks import NOTHING_MASKED, Masked, fill_masks, words_of
from tokenspeed.backend.redraws import Drawn, may_redraw
from tokenspeed.backend.results import SOURCE_FAILED, draws_of, result_of, with_pooled
from tokenspeed.core.plan import Row, RowResult, StepPlan, StepResult
from tokenspeed.core.request import TokenLogprob, Vector
from tokenspeed.model.batch import Batch, Decoder
from tokenspeed.model.batching import Batcher, pooled_tokens
from tokenspeed.model.sampler import sample, score


class Executor:
    """Runs plans one after the other; remembers what the last one sampled, for the rows that follow it."""

    def __init__(
        self, decoder: Decoder, *, block_size: int, vocab_size: int, guesser: Guesser | None = None
    ) -> None:
        self._decoder = decoder
        self._batcher = Batcher(block_size)
        self._vocab_size = vocab_size
        self._guesser = guesser
        self._sampled: dict[int, int] = {}  # row of the last plan -> the last token it sampled
        self._masking = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._ended: float | None = None  # when the last step did, on the clock of `perf_counter`

    def execute(self, plan: StepPlan) -> StepResult:
        """The result of one step. Raises what the decoder raises; the next plan then finds no sources."""
        started = time.perf_counter()
        idle = 0.0 if self._ended is None else started - self._ended
        try:
            results = self._results(plan.rows)
        finally:
            self._ended = time.perf_counter()
        return StepResult(tuple(results), self._ended - started, idle)

    def close(self) -> None:
        """After the last step."""
        self._masking.shutdown()

    def _results(self, planned: Sequence[Row]) -> list[RowResult]:
        sampled, self._sampled = self._sampled, {}
        if not planned:
            return []
        faults: dict[int, str] = {}
        rows = [self._ready(number, row, sampled, faults) for number, row in enumerate(planned)]
        with torch.inference_mode():
            if self._guesser is not None:
                rows = self._guesser.guess(rows)
            results = self._compute(rows)
        for number, fault in faults.items():
            results[number] = RowResult(error=fault)
        self._sampled = {number: result.tokens[-1] for number, result in enumerate(results) if result.tokens}
        return results

    def _ready(self, number: int, row: Row, sampled: dict[int, int], faults: dict[int, str]) -> Row:
        """The row with its tokens on the host. One that cannot be computed is noted in `faults` and runs on
        token 0, for nothing, in blocks that nobody reads any more."""
        if row.source >= 0:
            token = sampled.get(row.source)
            if token is None:  # the step before failed, and what it was to catch up with is not there either
                faults[number] = SOURCE_FAILED
                row = row._replace(behind=())
            return _followed(row, token or 0)
        named = row.tokens + row.targets + row.drafts + row.behind
        if not 0 <= min(named) <= max(named) < self._vocab_size:
            faults[number] = f"a token is beyond the vocabulary of {self._vocab_size}"
            tokens = (0,) * len(row.tokens)
            return row._replace(tokens=tokens, draw=None, drafts=(), targets=(), guess=0, behind=(), pooled=0)
        return row

    def _compute(self, rows: Sequence[Row]) -> list[RowResult]:
        layout = self._batcher.layout(rows)
        draws = [draw for row in rows for draw in draws_of(row)]
        firsts = [0, *accumulate(0 if row.draw is None else 1 + len(row.drafts) for row in rows)]
        early, late = _held(rows)
        filling = self._fill_masks(rows, early, firsts)
        logits, pooled = self._forward(layout.batch, rows)
        masked = NOTHING_MASKED if filling is None else filling.result()
        held = {number: masked.masks[number] for number in masked.numbers}
        drawn = sample(logits[: layout.drawn], draws, held)
        faults = masked.faults | Drawn(rows, firsts, logits, draws, drawn).redraw(late)
        scored = iter(_scores(logits[layout.drawn :], rows))
        sums = iter(pooled)
        results = []
        for row, (first, end) in zip(rows, pairwise(firsts), strict=True):
            result = result_of(row, drawn[first:end], [next(scored) for _ in row.targets])
            if row.pooled:
                result = with_pooled(result, next(sums))
            results.append(result._replace(guessed=row.drafts) if row.guess else result)
        for number, fault in faults.items():
            results[number] = RowResult(error=fault)
        return results

    def _fill_masks(
        self, rows: Sequence[Row], places: Sequence[int], firsts: Sequence[int]
    ) -> Future[Masked] | None:
        """Begin to fill the masks that draws need, while the decoder runs."""
        if not places:
            return None
        masks = np.empty((firsts[-1], words_of(self._vocab_size)), np.int32)
        return self._masking.submit(fill_masks, rows, places, firsts, masks)

    def _forward(self, batch: Batch, rows: Sequence[Row]) -> tuple[Tensor, list[Vector]]:
        """The logits, and the sum of hidden states of each row that pools some."""
        if not any(row.pooled for row in rows):
            return self._decoder.forward(batch), []
        logits, states = self._decoder.forward_states(batch, pooled_tokens(rows))
        return logits, _sums(states, rows)


def _held(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """The places of held rows: of those that draw under masks, and of those that ask afterwards."""
    early: list[int] = []
    late: list[int] = []
    for place, row in enumerate(rows):
        if row.draw is not None and row.draw.held is not None:
            (late if may_redraw(row.draw) else early).append(place)
    return early, late


def _followed(row: Row, token: int) -> Row:
    """The row with `token` in the place of the one that was not on the host when it was planned."""
    draw = row.draw
    if draw is not None and draw.generated:
        draw = draw._replace(generated=(*draw.generated[:-1], token))
    return row._replace(tokens=(token,), draw=draw)


def _sums(states: Tensor, rows: Sequence[Row]) -> list[Vector]:
    """Of the hidden states [tokens, hidden] that rows pool, the sum for each of these rows."""
    ends = np.cumsum([row.pooled for row in rows if row.pooled])
    parts = np.split(states.numpy(force=True), ends[:-1])
    return [part.sum(axis=0, dtype=np.float64) for part in parts]


def _scores(logits: Tensor, rows: Sequence[Row]) -> list[TokenLogprob | None]:
    """One for each target of all rows, in order."""
    scores: list[TokenLogprob | None] = []
    for row in rows:
        if row.targets:
            first = len(scores)
            scores += score(logits[first : first + len(row.targets)], row.targets, row.score)
    return scores
