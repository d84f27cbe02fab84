"""Whether a request is taken: its size, the caps, and the first token that can be promised it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf
from typing import NamedTuple

from tokenspeed.core.accounts import Account
from tokenspeed.core.costs import CostModel, Costs, Work
from tokenspeed.core.forecast import Outlook, first_token
from tokenspeed.core.plan import Capacity
from tokenspeed.core.policy import POLICIES, Budget, SchedulerOptions, step_budget
from tokenspeed.core.queues import Queues, place
from tokenspeed.core.request import Request
from tokenspeed.core.sequence import Sequence
from tokenspeed.core.tables import BlockTables
from tokenspeed.errors import ContextLengthError, DeadlineError, OverloadedError, RequestError

TYPICAL_ANSWER = 128.0  # tokens, until some have ended
ANSWERS = 32  # whose lengths the typical one follows
NO_CAPS = Account()


class Forecast(NamedTuple):
    """Seconds to a first token: as things are, and on an idle server."""

    seconds: float
    alone: float


class Admission:
    """Looks at what the scheduler knows, and changes none of it."""

    def __init__(
        self,
        capacity: Capacity,
        options: SchedulerOptions,
        accounts: Mapping[str, Account],
        queues: Queues,
        tables: BlockTables,
        costs: CostModel,
    ) -> None:
        self._capacity = capacity
        self._options = options
        self._accounts = accounts
        self._queues = queues
        self._tables = tables
        self._costs = costs
        self._shares = POLICIES[options.policy].shares
        self._answer = TYPICAL_ANSWER

    def answered(self, tokens: int) -> None:
        """An answer ended after so many tokens: by itself, at its limit, or because its client had enough."""
        self._answer += (tokens - self._answer) / ANSWERS

    def slots(self, account: str) -> int:
        """How many more sequences of an account may run now."""
        free = self._options.max_running - len(self._queues.running)
        cap = self._accounts.get(account, NO_CAPS).max_running
        return min(free, cap - self._queues.running_of(account)) if cap else free

    # -- checks -------------------------------------------------------------------------------------

    def check(self, request: Request) -> None:
        """Raise `RequestError` for what can never be served, `OverloadedError` where a queue is full."""
        if not request.prompt:
            raise RequestError("the prompt has no tokens", param="prompt")
        longest = len(request.prompt) + request.max_tokens
        room = min(self._capacity.max_context, self._capacity.blocks * self._capacity.block_size)
        if longest > room:
            raise ContextLengthError(
                f"{len(request.prompt)} prompt tokens and {request.max_tokens} to generate make {longest}; "
                f"a sequence has at most {room} here",
                param="max_tokens",
            )
        self._check_queue(request)
        self._check_caps(request)

    def _check_queue(self, request: Request) -> None:
        queues, options = self._queues, self._options
        waiting = queues.unfinished - len(queues.running)
        slots = max(0, options.max_running - len(queues.running))
        if waiting + request.n > options.max_waiting + slots:
            raise OverloadedError(
                f"{waiting} sequences wait already; send the request again later",
                retry_after=self._until_released(queues.running.values()),
            )

    def _check_caps(self, request: Request) -> None:
        queues, account = self._queues, request.account
        caps = self._accounts.get(account, NO_CAPS)
        if not caps.max_waiting:
            return
        waiting = queues.waiting_of(account)
        if waiting + request.n > caps.max_waiting + max(0, self.slots(account)):
            own = [s for s in queues.running.values() if s.request.account == account]
            raise OverloadedError(
                f"{waiting} sequences of the key {account!r} wait already, its max_waiting is "
                f"{caps.max_waiting}; send the request again later",
                retry_after=self._until_released(own),
                code="key_overloaded",
            )

    # -- forecasts ----------------------------------------------------------------------------------

    def predict(self, sequence: Sequence, over: Collection[str], busy: float) -> Forecast:
        """The first token of a ranked sequence, on a device that is `busy` for so many seconds."""
        costs = self._costs.costs
        prefills = [s for s in self._queues.running.values() if s.pending > 1]
        start = len(sequence.tokens) - sequence.left
        own = costs.prefill(start, sequence.left)
        decodes, budget = self._steps(len(self._queues.running) - len(prefills), own)
        mine = place(sequence, over)
        queued = self._queues.waiting.before(sequence, over)
        served = [s for s in prefills if place(s, over) < mine]
        behind = len(queued) + len(served) < len(self._queues.waiting) + len(prefills)
        ahead = sum(_prefill(s, costs) for s in (*served, *queued))
        step = decodes + budget.seconds if prefills else decodes  # until somebody ends
        blocked = self._blocked(sequence, queued, prefills, step)
        outlook = Outlook(busy, blocked, decodes, budget, ahead, own, behind=behind, hurried=self._shares)
        return Forecast(first_token(outlook), costs.base + own)

    def _steps(self, running: int, own: float) -> tuple[float, Budget]:
        """What steps cost without prefills, and have for them, while so many sequences decode."""
        costs, options, shares = self._costs.costs, self._options, self._shares
        read = sum(len(s.tokens) for s in self._queues.running.values() if s.pending <= 1)
        decodes = costs.seconds(Work(running, read=read))
        budget = step_budget(options, costs, decodes=decodes, rows=running, alone=False, shares=shares)
        if not running and own > budget.seconds:
            budget = step_budget(options, costs, decodes=decodes, rows=0, alone=True, shares=shares)
        if budget.seconds < inf:
            return decodes, budget
        certain = costs.prefill(0, budget.certain_tokens) if budget.certain_tokens else 0.0
        return decodes, budget._replace(seconds=costs.prefill(0, budget.tokens), certain_seconds=certain)

    def _blocked(
        self, sequence: Sequence, queued: list[Sequence], prefills: list[Sequence], step: float
    ) -> float:
        """Seconds until there are slots and blocks for it and for those that are `queued` before it."""
        tables = self._tables
        slots = 1 + len(queued) - self.slots(sequence.request.account)
        blocks = sum(tables.to_hold(s.left) for s in (sequence, *queued)) - tables.pool.available
        blocks += sum(tables.wanted(s) for s in prefills)
        if slots <= 0 and blocks <= 0:
            return 0.0
        running = self._queues.running.values()
        seconds = 0.0
        for seconds, held in sorted((self._lasts(s, step), len(s.blocks)) for s in running):
            slots, blocks = slots - 1, blocks - held
            if slots <= 0 and blocks <= 0:
                return seconds
        rounds = 1 + max(0, slots) / max(1, len(running))
        return seconds * rounds

    def _until_released(self, running: Collection[Sequence]) -> float:
        """Seconds until the first of these ends, which lets somebody start."""
        prefills = sum(s.pending > 1 for s in self._queues.running.values())
        decodes, budget = self._steps(len(self._queues.running) - prefills, 0.0)
        step = decodes + budget.seconds if prefills else decodes
        return max(step, min((self._lasts(s, step) for s in running), default=0.0))

    def _lasts(self, sequence: Sequence, step: float) -> float:
        """Seconds until a running sequence has ended, if its answer is as long as others."""
        expected = max(self._answer - sequence.generated, 0.25 * self._answer)
        tokens = min(expected, sequence.limit - len(sequence.tokens))
        prefill = _prefill(sequence, self._costs.costs) if sequence.pending > 1 else 0.0
        return prefill + tokens * step


def check_deadline(request: Request, forecast: Forecast, now: float) -> None:
    """Raise `DeadlineError` if the first token would be too late, `RequestError` if it always is."""
    if request.deadline is None:
        return
    late = now + forecast.seconds - request.deadline
    if late <= 0.0:
        return
    allowed = request.deadline - request.arrival
    wanted = f"the first token is wanted in {allowed * 1e3:.0f} ms"
    if forecast.alone > allowed:
        raise RequestError(
            f"{wanted}, and takes {forecast.alone * 1e3:.0f} ms even on an idle server; allow more",
            param="deadline",
            code="deadline_unreachable",
        )
    raise DeadlineError(
        f"{wanted}, and predicted {late * 1e3:.0f} ms later than that; send the request again later",
        retry_after=late,
    )


def _prefill(sequence: Sequence, costs: Costs) -> float:
    """Seconds of prefill that a sequence still needs, running or waiting."""
    if sequence.blocks:
        return costs.prefill(sequence.planned, sequence.pending)
    return costs.prefill(len(sequence.tokens) - sequence.left, sequence.left)
