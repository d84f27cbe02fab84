"""Steps on a device that works on its own: `begin` enqueues one and returns, `end` reads what it gave.

Between the two the host never waits, so the next step can be planned and enqueued while one runs; what a step
samples stays on the device for the rows that follow it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gpu.table import Ops
from tokenspeed.backend.device_guessing import DeviceGuesser, Guesses, kept_words
from tokenspeed.backend.graphs import Graphs
from tokenspeed.backend.marks import Mark, mark_on
from tokenspeed.backend.packing import Columns, columns_of, most_words
from tokenspeed.backend.passes import GraphOptions, Pass, Passes, Start
from tokenspeed.backend.results import SOURCE_FAILED, result_of, with_pooled
from tokenspeed.core.plan import NOTHING, Draw, Row, RowResult, StepPlan, StepResult
from tokenspeed.core.request import Sampling, TokenLogprob
from tokenspeed.model.cuda.drawing import sampled_of
from tokenspeed.model.cuda.network import Bounds, Network
from tokenspeed.model.cuda.staging import Returned
from tokenspeed.model.sampler import Sampled

WARMED = (16, 256, 2048)  # tokens of prompts
NONE: frozenset[int] = frozenset()
# A named tuple's own constructor takes twice as long, and this is done for every row of every step.
_row_result = partial(tuple.__new__, RowResult)
IN_FLIGHT = 2  # steps at most: the one that runs and the one behind it
DRAFT_GRAPHS = 0.25  # of the memory for graphs, where there is a draft model


class DraftNetwork(NamedTuple):
    """The draft model: its pool has a block for each of the model's, under the same number."""

    network: Network
    ops: Ops
    max_context: int
    most_drafts: int  # of a row in a step


@dataclass(slots=True)
class Begun:
    """A step that the device has, and what will be read of it.

    It `waits` where its draws are not enqueued yet: a grammar needs what the step before gives.
    """

    plan: StepPlan
    started: Mark
    ended: Mark
    before: Mark | None  # the end of the step before
    faults: dict[int, str]  # by place in the plan
    made: Pass
    guesses: Guesses | None
    drawn: NDArray[np.int32] | None = None  # [2, logits, as many as were computed]: tokens, statuses

    @property
    def waits(self) -> bool:
        return self.drawn is None


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
        draft: DraftNetwork | None = None,
    ) -> None:
        """`graph_bytes` of the device's memory for captured graphs; 0: none are captured. Of steps that
        prefill those are that have up to `graph_tokens`. Those that decode end with the draw, if
        `captures_draw`."""
        bounds, device = network.bounds, network.device
        self._network = network
        self._vocab = network.spec.vocab_size
        # What the last step drew: a token for each logit it computed, then their statuses. The same of a pass
        # of the draft model, and behind that the drafts of a step.
        words = [2 * bounds.tokens, *([] if draft is None else _draft_words(draft))]
        drawn = torch.zeros(sum(words), dtype=torch.int32, device=device)
        turns, shared = threading.Lock(), 0.0 if draft is None else DRAFT_GRAPHS
        self._start = Start()
        self.passes = Passes(
            network,
            ops,
            drawn,
            self._start,
            in_flight=IN_FLIGHT,
            graphs=GraphOptions(int((1.0 - shared) * graph_bytes), graph_tokens, turns),
            captures_draw=captures_draw,
        )
        self._guesser: DeviceGuesser | None = None
        if draft is not None:
            passes = Passes(
                draft.network,
                draft.ops,
                drawn,
                self._start,
                first=words[0],
                in_flight=IN_FLIGHT + draft.most_drafts,
                graphs=GraphOptions(int(shared * graph_bytes), 0, turns),
                captures_draw=captures_draw,
            )
            first = words[0] + words[1]
            self._guesser = DeviceGuesser(
                passes, drawn[first:], first=first, max_context=draft.max_context, in_flight=IN_FLIGHT
            )
        self._returned = Returned(self.passes.own, buffers=IN_FLIGHT + 1)
        self._marks = [(mark_on(device), mark_on(device)) for _ in range(IN_FLIGHT + 2)]
        self._turn = 0
        self._last_end: Mark | None = None
        self._in_flight = 0
        self._logit_of: dict[int, int] = {}  # row of the last plan begun -> the logit it draws from
        self._failed = NONE  # rows of the last plan ended that gave an error

    @property
    def graphs(self) -> list[Graphs]:
        """All that are captured."""
        passes = [self.passes] if self._guesser is None else [self.passes, self._guesser.passes]
        return [each.graphs for each in passes if each.graphs is not None]

    @torch.inference_mode()
    def begin(self, plan: StepPlan) -> Begun:
        """Enqueue a step; its rows are not empty. Raises `ValueError` for one that cannot be computed."""
        if self._in_flight >= IN_FLIGHT:
            raise RuntimeError(f"{self._in_flight} steps are in flight already; end one first")
        rows: Sequence[Row] = plan.rows
        columns = columns_of(rows)
        self._check_size(columns)
        started, ended = self._marks[self._turn]
        self._turn = (self._turn + 1) % len(self._marks)
        self._start.expect(started)
        sources, self._logit_of = self._logit_of, {}
        faults: dict[int, str] = {}
        if not all(map(sources.__contains__, columns.source)):  # else each takes what the step before draws
            rows = tuple(self._ready(place, row, sources, faults) for place, row in enumerate(rows))
            columns = columns_of(rows)
        guesses: Guesses | None = None
        if self._guesser is not None and (any(columns.guess) or any(columns.behind)):
            rows, guesses = self._guesser.guess(rows)
            columns = columns_of(rows)
        made = self._enqueue(rows, columns, sources, guesses)
        self._logit_of = _logits_of(made)
        before, self._last_end = self._last_end, ended
        begun = Begun(plan, started, ended, before, faults, made, guesses)
        if made.rest is None:
            self._send_back(begun)
        if guesses is not None and self._guesser is not None and made.few:
            self._guesser.run_ahead(rows, guesses, made, self.passes.own)
        self._in_flight += 1
        return begun

    @torch.inference_mode()
    def finish(self, begun: Begun, before: StepResult | None) -> None:
        """Enqueue the draws of a step that waits, once it is known what the one before gave (or nothing)."""
        rows = () if before is None else before.rows
        tokens = [row.tokens[-1] if row.tokens else None for row in rows]
        missing = max((row.source for row in begun.plan.rows), default=-1) + 1 - len(tokens)
        self.passes.finish(begun.made, tokens + [None] * missing)
        self._send_back(begun)

    def _send_back(self, begun: Begun) -> None:
        """Enqueue what the host will read, behind the draws."""
        made = begun.made
        if made.masked is not None:
            begun.faults |= {made.order.places[at]: fault for at, fault in made.masked.faults.items()}
        begun.drawn = self._returned.fetch(2 * made.logits).reshape(2, made.logits)
        begun.ended.set()

    def end(self, begun: Begun) -> StepResult:
        """What the step gave, after `begun.ended.wait()`."""
        self._in_flight -= 1
        made = begun.made
        if begun.drawn is None:
            raise RuntimeError(f"step {begun.plan.number} was not finished")
        tokens, statuses = begun.drawn[:, : len(made.draws)].tolist()
        asked = made.ranked or made.scored or made.pooled is not None
        if made.counts == [1] * len(tokens) and not (asked or any(statuses)):
            results = _plain_results(made, tokens)
        else:
            results = _results(begun, tokens, statuses)
        if self._failed:
            for place, row in enumerate(begun.plan.rows):
                if row.source in self._failed:
                    begun.faults[place] = SOURCE_FAILED
        for place, fault in begun.faults.items():
            results[place] = RowResult(error=fault)
        if begun.guesses is not None and self._guesser is not None:
            self._guesser.settle(begun.guesses, begun.plan.rows, results)
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
        """Run a step that decodes, some that prefill and one with drafts, so that libraries choose and load
        what they need.

        Before anybody has a block: it writes to the first ones.
        """
        greedy, size = Sampling(temperature=0.0), self._network.block_size
        bounds = self._network.bounds
        most = min(bounds.tokens, bounds.context, self._network.spare_block * size)
        blocks = tuple(range(-(-most // size)))
        rows = [
            Row(0, 0, (0,) * count, blocks, Draw(greedy, 0, count))
            for count in sorted({1, *(min(tokens, most) for tokens in WARMED)})
        ]
        drafts = (0,) * (min(bounds.few, most) - 1)
        for row in (*rows, rows[0]._replace(drafts=drafts)):
            begun = self.begin(StepPlan(0, (row,)))
            begun.ended.wait()
            self.end(begun)
        if self._guesser is not None:
            self._guesser.warm_up(most)
        self._last_end = None

    def check(self) -> None:
        """Wait for all that was enqueued. Raises `RuntimeError` where the device cannot work any more."""
        if self._network.device.type == "cuda":
            torch.cuda.synchronize(self._network.device)

    def _check_size(self, columns: Columns) -> None:
        """No kernel looks whether what it is told to write lies in the memory that there is."""
        bounds, rows = self._network.bounds, len(columns.tokens)
        tokens = sum(map(len, columns.tokens)) + sum(map(len, columns.drafts)) + sum(columns.guess)
        caught_up = sum(map(len, columns.behind)) + rows  # by the draft model
        if rows > bounds.rows or max(tokens, caught_up) > bounds.tokens:
            wanted = f"a step of {rows} rows and {max(tokens, caught_up)} tokens"
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
            nothing = (0,) * len(row.tokens)
            return row._replace(
                tokens=nothing, draw=None, drafts=(), targets=(), guess=0, behind=(), pooled=0
            )
        return row

    def _enqueue(
        self, rows: Sequence[Row], columns: Columns, sources: dict[int, int], guesses: Guesses | None
    ) -> Pass:
        """The model's own pass."""
        drafted = any(columns.drafts)
        asked = any(columns.targets) or any(columns.pooled)
        if not (drafted or asked) and max(map(len, columns.tokens)) == 1:
            return self.passes.decode(rows, columns, sources)
        guessed = () if guesses is None else guesses.guessed
        if drafted and self.passes.takes_few(columns):
            return self.passes.verify(rows, sources, guessed)
        return self.passes.mixed(rows, columns, sources, guessed)


def staging_bytes(bounds: Bounds, block_size: int) -> int:
    """What a stepper takes of the device's memory for one model."""
    words = most_words(bounds, -(-bounds.context // block_size)) + 2 * bounds.tokens
    return 4 * (words + kept_words(bounds.tokens, bounds.logits))


def _draft_words(draft: DraftNetwork) -> tuple[int, int]:
    """Of what a pass of the draft model draws, and of what is kept of that."""
    bounds = draft.network.bounds
    return 2 * bounds.tokens, kept_words(bounds.tokens, bounds.logits)


def _logits_of(made: Pass) -> dict[int, int]:
    """Of each row that rows of the next step may follow: the logit that it draws from."""
    order = made.order
    asked = made.scored or made.pooled is not None
    if len(order.rows) == order.singles and all(made.draws) and not asked:
        return dict(zip(order.places, made.firsts, strict=True))
    return {
        place: first
        for row, place, first in zip(order.rows, order.places, made.firsts, strict=True)
        if row.draw is not None and not row.drafts
    }


def _plain_results(made: Pass, tokens: list[int]) -> list[RowResult]:
    """Where every row has one logit, and nothing is wrong or asked but the token."""
    rest = (repeat(None), repeat(()), repeat(None), repeat(()), repeat(None))
    results = list(map(_row_result, zip(zip(tokens), *rest, strict=False)))  # the rest is endless
    if made.order.singles < len(tokens):  # else they are in the order of the plan
        results = [result for _, result in sorted(zip(made.order.places, results, strict=True))]
    if not all(made.draws):
        results = [result if draw else NOTHING for result, draw in zip(results, made.draws, strict=True)]
    return results


def _results(begun: Begun, tokens: list[int], statuses: list[int]) -> list[RowResult]:
    """What each row of the plan gave."""
    made, results = begun.made, [NOTHING] * len(begun.plan.rows)
    found = {} if begun.guesses is None else begun.guesses.found()
    sums = iter(() if made.pooled is None else made.pooled.numpy())
    target, order = 0, made.order
    for row, place, first, count in zip(order.rows, order.places, made.firsts, made.counts, strict=True):
        verified = []
        if row.draw is not None:
            verified = [_sampled(made, at, tokens[at], statuses[at]) for at in range(first, first + count)]
        scores = _scores(made, target, len(row.targets), row.score)
        target += len(row.targets)
        guessed = found.get(place, ())
        result = result_of(row._replace(drafts=guessed) if guessed else row, verified, scores)
        if row.pooled:
            result = with_pooled(result, next(sums))
        results[place] = result._replace(guessed=guessed) if guessed else result
    return results


def _sampled(made: Pass, logit: int, token: int, status: int) -> Sampled:
    draw = made.draws[logit]
    logprob: TokenLogprob | None = None
    if logit in made.ranked and draw is not None:
        ranked, row = made.ranked[logit]
        logprob = ranked.read(row, draw.sampling.logprobs or 0)
    return sampled_of(token, status, logprob)


def _scores(made: Pass, first: int, count: int, alternatives: int) -> list[TokenLogprob | None]:
    return [ranked.read(row, alternatives) for ranked, row in made.scored[first : first + count]]
