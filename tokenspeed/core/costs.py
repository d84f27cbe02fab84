"""What a step costs: predicted from its rows, and learned from the steps that were measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from math import exp, inf, sqrt
from typing import NamedTuple

from tokenspeed.core.plan import Row


class Work(NamedTuple):
    """What drives the cost of a step. A row of one token is a decode, a longer one prefills."""

    rows: int = 0
    tokens: int = 0  # that prefill
    attended: int = 0  # keys that those tokens attend, summed over the tokens
    read: int = 0  # keys that decode rows attend
    drafts: int = 0  # tokens behind those of decode rows that are verified
    verifies: int = 0  # 1 where there are any
    rounds: int = 0  # passes of the draft model, one after the other
    guesses: int = 0  # tokens that it draws in them
    late: int = 0  # tokens that it has lacked, and computes like a prompt

    def plus(self, start: int, count: int) -> Work:
        """With one more row: `count` tokens from position `start` on."""
        if count == 1:
            return self._replace(rows=self.rows + 1, read=self.read + start + 1)
        attended = self.attended + attended_by(start, count)
        return self._replace(rows=self.rows + 1, tokens=self.tokens + count, attended=attended)

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Work:
        work = cls()
        for row in rows:
            work = work.plus(row.start, len(row.tokens))
            if row.drafts or row.guess or row.behind:
                work = work.with_drafts(len(row.drafts), row.guess, len(row.behind))
        return work

    def with_drafts(self, drafts: int, guesses: int = 0, behind: int = 0) -> Work:
        """With so many drafts behind a row that is counted already, or as many that the draft model guesses,
        after it has computed `behind` tokens; to do that alone it passes once."""
        return self._replace(
            read=self.read + drafts + guesses,
            drafts=self.drafts + drafts + guesses,
            verifies=1 if drafts or guesses else self.verifies,
            rounds=max(self.rounds, guesses, 1 if behind else 0),
            guesses=self.guesses + guesses,
            # Where all drafts held, it has not computed the last one, which takes next to nothing beside the
            # row's token.
            late=self.late + (max(0, behind - 1) if guesses else behind),
        )


def attended_by(start: int, count: int) -> int:
    """Keys that `count` tokens from position `start` on attend: each itself and all before it."""
    return count * start + count * (count + 1) // 2


@dataclass(frozen=True, slots=True)
class Costs:
    """Coefficients in seconds: of a step at all, each row, each prefill token, each key attended or read,
    each draft that is verified and verifying at all, each pass of the draft model, each token that it draws
    there and each that it has lacked."""

    base: float
    row: float
    token: float
    attended: float
    read: float
    draft: float = 0.0
    verify: float = 0.0
    round: float = 0.0
    guess: float = 0.0
    late: float = 0.0

    def seconds(self, work: Work) -> float:
        """Of a whole step."""
        return (
            self.base
            + self.row * work.rows
            + self.token * work.tokens
            + self.attended * work.attended
            + self.read * work.read
            + self.draft * work.drafts
            + self.verify * work.verifies
            + self.round * work.rounds
            + self.guess * work.guesses
            + self.late * work.late
        )

    def prefill(self, start: int, count: int) -> float:
        """What `count` more tokens of one prompt, from position `start` on, add to a step."""
        return self.row + self.token * count + self.attended * attended_by(start, count)

    def decode(self, context: int) -> float:
        """What a decode row that attends `context` keys adds to a step."""
        return self.row + self.read * context

    def tokens_within(self, seconds: float, start: int) -> float:
        """How many tokens of a prompt from `start` on fit into so much of a step; solves `prefill`."""
        room = seconds - self.row
        if room <= 0.0:
            return 0.0
        linear = self.token + self.attended * (start + 0.5)
        if linear <= 0.0 or room == inf:
            return inf
        # a/2 n^2 + linear n = room, in the form that loses no digits where a is tiny
        return 2.0 * room / (linear + sqrt(linear * linear + 2.0 * self.attended * room))


# A guess before the first measured step: a model of some hundred million parameters on a CPU.
TYPICAL = Costs(
    base=5e-3,
    row=2e-4,
    token=8e-4,
    attended=1e-7,
    read=1e-7,
    draft=8e-4,
    verify=2e-4,
    round=1e-3,
    guess=2e-4,
    late=2e-4,
)

MEMORY = 256  # steps of either kind after which a measurement counts 1/e
PRIOR_STEPS = 2.0  # how many measured steps with a part of the cost the prior's proportion of it is worth
LEAST = 0.02  # of the prior, scaled to what was measured: no cost is ever taken for nothing
FEW = 5  # steps before which none is far off
HEAVIEST = 1e6  # weight of a step
OUTLIER = 3.0  # typical errors beyond which a step counts less, the further off the less
EAGER = 32  # steps after which the coefficients are refitted less often
REFIT_EVERY = 8
# Steps after which they are refitted less often still: that takes as long as planning a short step.
SETTLED = 512
REFIT_SETTLED_EVERY = 32
SWEEPS = 24
PACE_STEP = 0.03  # how fast the prediction follows a device that slows down or speeds up as a whole
SIZE = len(fields(Costs))
_Matrix = list[list[float]]


class _Samples:
    """Sums over the measured steps of one kind, the older the lighter."""

    def __init__(self) -> None:
        self._products: _Matrix = [[0.0] * SIZE for _ in range(SIZE)]
        self._targets = [0.0] * SIZE
        self._weight = 1.0  # of the latest step: it grows, so that older ones need not be made lighter

    def add(self, parts: list[float], target: float, weight: float) -> None:
        """A step that took `target`, of which the prior expects `parts`."""
        self._weight *= 1.0 / (1.0 - 1.0 / MEMORY)
        if self._weight > HEAVIEST:
            self._products, self._targets = self.sums()
            self._weight = 1.0
        given = [(i, part) for i, part in enumerate(parts) if part]
        for i, part in given:
            weighted = weight * self._weight * part
            self._targets[i] += weighted * target
            row = self._products[i]
            for j, other in given:
                row[j] += weighted * other

    def sums(self) -> tuple[_Matrix, list[float]]:
        """Of products of parts, and of parts and targets, where the latest step has its own weight."""
        share = 1.0 / self._weight
        return [[share * x for x in row] for row in self._products], [share * x for x in self._targets]


class CostModel:
    """Predicts a step's seconds; each measured step corrects it. Nothing is kept beyond the process.

    The coefficients are the prior's times factors that are fitted by least squares of relative errors, kept
    positive, and drawn towards one common factor as long as the steps do not tell them apart. Steps that
    only decode, that deal with drafts and that prefill are forgotten separately, so an hour of decoding does
    not unlearn what a prefill costs. A step far off counts little. On top, one factor follows the device's
    pace.
    """

    def __init__(self, prior: Costs = TYPICAL) -> None:
        self._prior = astuple(prior)
        self._factors = [1.0] * SIZE
        self._seen = [0] * SIZE  # measured steps that had each part
        self._decodes, self._drafts, self._prefills = _Samples(), _Samples(), _Samples()
        self._pace = 1.0
        self.typical_error = 0.5  # of a prediction, relative: a running median
        self.steps = 0  # measured so far
        self.costs = prior

    def observe(self, work: Work, seconds: float) -> None:
        """Learn from a step that took so long."""
        if not 0.0 < seconds < inf:
            return  # a clock that cannot be right
        parts = [p * x for p, x in zip(self._prior, (1, *work), strict=True)]
        fitted = sum([f * p for f, p in zip(self._factors, parts, strict=True)])
        error = seconds / (fitted * self._pace) - 1.0
        weight = 1.0
        if self.steps >= FEW:  # before that there is nothing to be far off from
            weight = min(1.0, OUTLIER * self.typical_error / max(abs(error), 1e-9))
            self._follow(error)
        self.steps += 1
        self._seen = [count + (part > 0.0) for count, part in zip(self._seen, parts, strict=True)]
        scale = max(seconds, fitted)  # relative errors, and a step that hung is not the measure of the rest
        drafts = work.verifies or work.rounds
        samples = self._prefills if work.tokens else self._drafts if drafts else self._decodes
        samples.add([part / scale for part in parts], seconds / scale, weight)
        every = 1 if self.steps <= EAGER else REFIT_EVERY if self.steps <= SETTLED else REFIT_SETTLED_EVERY
        if self.steps % every == 0:
            self._fit()
        self.costs = Costs(*[f * p * self._pace for f, p in zip(self._factors, self._prior, strict=True)])

    def _follow(self, error: float) -> None:
        """Let the typical error and the pace drift towards what was just seen; no step moves them far."""
        self.typical_error *= 1.05 if abs(error) > self.typical_error else 1 / 1.05
        self.typical_error = min(1.0, max(0.01, self.typical_error))
        self._pace *= exp(PACE_STEP * max(-1.0, min(1.0, error / self.typical_error)))

    def _fit(self) -> None:
        """Minimise the weighted squares by coordinate descent, which keeps every factor positive."""
        kinds = [kind.sums() for kind in (self._decodes, self._drafts, self._prefills)]
        targets = [sum(parts) for parts in zip(*(of for _, of in kinds), strict=True)]
        products = [
            [sum(parts) for parts in zip(*rows, strict=True)]
            for rows in zip(*(matrix for matrix, _ in kinds), strict=True)
        ]
        common = sum(targets) / max(sum(map(sum, products)), 1e-30)  # the best single factor for all
        factors, seen = self._factors, [i for i in range(SIZE) if products[i][i]]
        for i in range(SIZE):
            if i not in seen:
                factors[i] = common
        rows = [(i, [(j, products[i][j]) for j in seen if j != i], products[i][i]) for i in seen]
        doubts = [PRIOR_STEPS / max(count, 1) for count in self._seen]
        sums = [sum(row) for row in products]
        for _ in range(SWEEPS):
            for i, row, own in rows:
                others = sum([product * factors[j] for j, product in row])
                ridge = doubts[i] * sums[i] + 1e-9
                best = (targets[i] - others + ridge * common) / (own + ridge)
                factors[i] = max(LEAST * common, best)
