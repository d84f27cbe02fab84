"""Plans every step and applies its result: pure, synchronous, told the time. No I/O, no clock.

A step is `plan` -> (a backend executes it) -> `apply`; with run-ahead a second step is planned before the
first is applied. Blocks given back while a step in flight still writes to them are safe to hand out again:
steps execute in the order they were planned.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import inf
from types import MappingProxyType

from tokenspeed.core.accounts import Account, FairShares
from tokenspeed.core.admission import Admission, check_deadline
from tokenspeed.core.carrying import carry_drafts, let_catch_up, room_for_drafts, take_carried
from tokenspeed.core.costs import TYPICAL, CostModel, Costs, Work
from tokenspeed.core.plan import Capacity, StepPlan, StepResult
from tokenspeed.core.policy import POLICIES, Budget, SchedulerOptions, due, hurry, split, step_budget, yields
from tokenspeed.core.queues import Queues, by_age, place
from tokenspeed.core.request import Finished, FinishReason, Request
from tokenspeed.core.rows import Flight, Planning, may_run_ahead
from tokenspeed.core.sequence import Sequence
from tokenspeed.core.speculation import Speculation, SpeculationOptions
from tokenspeed.core.tables import BlockTables
from tokenspeed.core.taking import Ending, Happening, take_allowed, take_asked, take_drafts, take_token
from tokenspeed.errors import RequestError

NO_ACCOUNTS: Mapping[str, Account] = MappingProxyType({})


class Scheduler:
    """Continuous batching: running sequences decode first, prefills share the rest of the step by urgency.

    `costs` learns from every step that is applied. `preemptions`, `prompt_tokens`, `cached_tokens` and
    `yields` count since the start: the tokens over sequences when they first start, `yields` how often a
    prefill in progress was cut short in a step for one that is more urgent and came later.
    """

    def __init__(
        self,
        capacity: Capacity,
        options: SchedulerOptions,
        *,
        prefix_cache: bool = True,
        accounts: Mapping[str, Account] = NO_ACCOUNTS,
        prior: Costs = TYPICAL,
        speculation: Speculation | None = None,
    ) -> None:
        self.capacity = capacity
        self.options = options
        self.tables = BlockTables(capacity, prefix_cache=prefix_cache)
        self.costs = CostModel(prior)
        self.speculation = speculation or Speculation(SpeculationOptions(drafter="off"))
        self.preemptions = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.yields = 0
        self._policy = POLICIES[options.policy]
        self._queues = Queues()
        self._admission = Admission(capacity, options, accounts, self._queues, self.tables, self.costs)
        self._shares = FairShares(accounts)
        self._flight: dict[int, Flight] = {}  # by plan number
        self._busy_until = 0.0  # when the device will have done what is in flight, as predicted
        self._last_plan = 0
        self._last_sequence = 0

    @property
    def waiting(self) -> int:
        """Sequences that hold no blocks yet, or no more."""
        return self._queues.unfinished - len(self._queues.running)

    @property
    def running(self) -> int:
        return len(self._queues.running)

    def longest_wait(self, now: float) -> float:
        """Seconds that the request that waits longest for its first token has waited; 0 if none does."""
        everyone = (*self._queues.waiting, *self._queues.running.values())
        return max((now - s.request.arrival for s in everyone if not s.generated), default=0.0)

    # -- requests come and go -----------------------------------------------------------------------

    def submit(self, request: Request, now: float) -> float:
        """Queue a request; the seconds from `now` until its first token, as predicted.

        Raises `ContextLengthError`, `OverloadedError`, `DeadlineError` or `RequestError`, and then nothing
        has changed.
        """
        if self._queues.choices_of(request.id):
            raise RequestError(f"a request with the id {request.id!r} is running already", param="request_id")
        self._admission.check(request)
        place_in_age = due(request, self._policy.level(self.options))
        choices = [
            Sequence(self._last_sequence + 1 + choice, request, choice, place_in_age)
            for choice in range(request.n)
        ]
        self._rank(choices[0])
        busy = max(0.0, self._busy_until - now) if self._flight else 0.0
        forecast = self._admission.predict(choices[0], self._over(), busy)
        check_deadline(request, forecast, now)
        self._last_sequence += request.n
        self._queues.enter(choices)
        self._lead(choices)
        return forecast.seconds

    def cancel(self, request_id: str, choice: int | None = None) -> list[Happening]:
        """End a request, or one choice of it, now; its blocks come back at once. Unknown ids are no error."""
        going = [s for s in self._queues.choices_of(request_id) if choice is None or s.choice == choice]
        return [(sequence, self._finish(sequence, Ending(FinishReason.CANCELLED))) for sequence in going]

    def end(self, request_id: str, error: str) -> list[Happening]:
        """End what is left of a request with an error that is not its own."""
        going = self._queues.choices_of(request_id)
        ending = Ending(FinishReason.ERROR, error=error)
        return [(sequence, self._finish(sequence, ending)) for sequence in going]

    def check(self) -> None:
        """Raise AssertionError unless every count of blocks, sequences and tokens agrees."""
        self._queues.check()
        running = self._queues.running.values()
        self.tables.check(running)
        for s in running:
            assert s.computed <= s.planned <= len(s.tokens) + s.in_flight
            assert len(s.tokens) + s.in_flight <= s.limit
        assert not any(s.blocks or s.computed or s.caught for s in self._queues.waiting)

    # -- a step -------------------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to do until a result or a request comes."""
        if self._flight and self._waits():
            return None
        planning = Planning()
        prefills, read = self._plan_decodes(planning)
        work = Work(len(planning.rows), read=read)
        if self.speculation.active:
            room = room_for_drafts(self.options, work.rows, beside=bool(prefills or self._queues.waiting))
            carry = let_catch_up if self._flight else carry_drafts
            work = carry(planning, work, self.speculation, self.tables, self.costs.costs, room)
        if prefills or self._queues.waiting:
            for sequence, count in self._prefill_shares(prefills, work, now):
                fitting = self._grow(sequence, count, planning.planned)
                if fitting:
                    work = work.plus(sequence.planned, fitting)
                    planning.add(sequence, fitting)
        if not planning.rows:
            return None
        seconds = self.costs.costs.seconds(work)
        self.speculation.allow(seconds)
        self._last_plan += 1
        self._busy_until = (max(self._busy_until, now) if self._flight else now) + seconds
        self._flight[self._last_plan] = Flight(planning.owners, work)
        self._charge(planning, now)
        return StepPlan(self._last_plan, tuple(planning.rows), seconds, work.verifies > 0)

    def apply(self, plan: StepPlan, result: StepResult) -> list[Happening]:
        """Take a step's result in; the events are in the order of its rows."""
        events: list[Happening] = []
        size = self.capacity.block_size
        drafts_held, speculation = 0, self.speculation
        owners, work = self._flight.pop(plan.number)
        self.costs.observe(work, result.seconds)
        for row, given, (sequence, epoch) in zip(plan.rows, result.rows, owners, strict=True):
            if sequence.epoch != epoch:
                continue  # it ended, or was preempted, while the step ran
            sequence.computed += len(row.tokens)
            free = not sequence.held
            given = take_allowed(sequence, given)
            held = take_drafts(sequence, given) if len(given.tokens) > 1 else 0
            drafts_held += held
            if row.drafts or row.guess or row.behind:
                take_carried(sequence, row, given, held, speculation, self.tables)
            if (sequence.published + 1) * size <= sequence.computed:
                self.tables.publish(sequence)
            if sequence.siblings and sequence.computed >= sequence.prompt_length - 1:
                self._release_siblings(sequence)
            if row.targets or row.pooled or sequence.wants_scores:
                take_asked(sequence, row, given, events)
            if (ending := take_token(sequence, row, given, held, events)) is not None:
                events.append((sequence, self._finish(sequence, ending)))
            learns = sequence.speculates and (sequence.prospects is not None or speculation.takes_more)
            if learns and row.draw is not None and sequence.epoch == epoch:
                speculation.learn(sequence, row, given.guessed, held, held + 1)
            if free and sequence.in_flight and sequence.held:  # it has become so with this very token
                sequence.recall()
        if work.verifies or work.rounds:
            speculation.step(self.costs.costs, work, drafts_held, result.idle)
        return events

    def fail(self, plan: StepPlan, error: str) -> list[Happening]:
        """The step failed as a whole: every request in it ends with `error`, nobody else notices."""
        events: list[Happening] = []
        for sequence, epoch in self._flight.pop(plan.number).owners:
            if sequence.epoch == epoch:
                events += self.end(sequence.request.id, error)
        return events

    def sequences(self, plan: StepPlan) -> list[Sequence]:
        """Whose rows a plan in flight has, in their order."""
        return [sequence for sequence, _ in self._flight[plan.number].owners]

    def _plan_decodes(self, planning: Planning) -> tuple[list[Sequence], int]:
        """Rows of one token for all that decode; those that prefill, and the keys that the rows attend."""
        prefills: list[Sequence] = []
        read = 0
        size = self.capacity.block_size
        for sequence in sorted(self._queues.running.values(), key=by_age):  # the eldest find blocks first
            planned = sequence.planned
            pending = len(sequence.tokens) + sequence.in_flight - planned
            if pending > 1:
                prefills.append(sequence)
            elif (
                pending == 1
                and (not sequence.in_flight or may_run_ahead(sequence))
                and (planned < len(sequence.blocks) * size or self._grow(sequence, 1, planning.planned))
            ):
                planning.add(sequence, 1)
                read += planned + 1
        return prefills, read

    # -- who carries drafts -------------------------------------------------------------------------

    def _waits(self) -> bool:
        """Whether the next step needs what those in flight give."""
        if not self.speculation.active:
            return False
        if any(flight.verifies for flight in self._flight.values()):
            return True
        running = self._queues.running
        room = room_for_drafts(self.options, len(running), beside=len(self._queues.waiting) > 0)
        return self.speculation.waits(running.values(), self.costs.costs, room)

    # -- who prefills, and how much -----------------------------------------------------------------

    def _prefill_shares(
        self, prefills: list[Sequence], decodes: Work, now: float
    ) -> Iterable[tuple[Sequence, int]]:
        costs, running, over = self.costs.costs, self._queues.running, self._over()
        budget = self._budget(decodes, alone=False)
        prefills = [s for s in prefills if s.id in running]  # the others lost their blocks just now
        for sequence in prefills:
            self._rank(sequence)
        prefills += self._start_waiting(prefills, budget, over, now)
        prefills.sort(key=lambda sequence: place(sequence, over))
        if prefills and len(prefills) == len(running):  # nobody decodes, so nobody feels a longer step
            first = prefills[0]
            if costs.prefill(first.planned, first.pending) > budget.seconds:
                budget = self._budget(decodes, alone=True)
        shares = split(budget, prefills, costs)
        if self._policy.shares and budget.seconds < inf:
            spent, share = costs.seconds(decodes), self.options.eldest_share
            whole = spent + budget.seconds
            shares = hurry(shares, prefills, costs, decodes=spent, whole=whole, share=share)
        self.yields += yields(prefills, shares)
        return zip(prefills, shares, strict=True)

    def _budget(self, decodes: Work, *, alone: bool) -> Budget:
        costs = self.costs.costs
        spent, shares = costs.seconds(decodes), self._policy.shares
        return step_budget(
            self.options, costs, decodes=spent, rows=decodes.rows + decodes.drafts, alone=alone, shares=shares
        )

    def _start_waiting(
        self, prefills: list[Sequence], budget: Budget, over: Collection[str], now: float
    ) -> list[Sequence]:
        """Start the waiting sequences that this step has time, slots and blocks for, most urgent first."""
        if not self._may_start():
            return []
        started: list[Sequence] = []
        reserved = sum(self.tables.wanted(s) for s in prefills)
        overdue = self._overdue(prefills, budget, now)
        if overdue is not None:
            if not self._start(overdue, reserved, now):
                return []  # it has waited enough: nobody starts before it
            started.append(overdue)
            reserved += self.tables.wanted(overdue)
        ahead = 0.0  # seconds of prefill
        tokens = 0
        runners = sorted((*prefills, *started), key=lambda sequence: place(sequence, over), reverse=True)
        while (sequence := self._queues.waiting.first(over, self._may_start())) is not None:
            while runners and place(runners[-1], over) < place(sequence, over):
                runner = runners.pop()
                ahead += self.costs.costs.prefill(runner.planned, runner.pending)
                tokens += runner.pending
            if budget.spent_by(ahead, tokens) or not self._start(sequence, reserved, now):
                break
            started.append(sequence)
            runners.append(sequence)
            reserved += self.tables.wanted(sequence)
        return started

    def _overdue(self, prefills: list[Sequence], budget: Budget, now: float) -> Sequence | None:
        """The waiting sequence due first, once it has waited enough and what is certain is its."""
        if not self._policy.shares:
            return None
        eldest = self._queues.waiting.eldest(self._may_start())
        if eldest is None or now - eldest.due < self.options.ageing_seconds:
            return None
        elder = [s for s in prefills if by_age(s) < by_age(eldest)]
        seconds = sum(self.costs.costs.prefill(s.planned, s.pending) for s in elder)
        return None if budget.certain_spent_by(seconds, sum(s.pending for s in elder)) else eldest

    def _start(self, sequence: Sequence, reserved: int, now: float) -> bool:
        """Let it run if its blocks fit beside those that are `reserved`."""
        if not self.tables.open(sequence, reserved):
            return False
        self._queues.start(sequence)
        self._rank(sequence)
        if sequence.epoch == 1:
            sequence.started = now
            sequence.cached = sequence.computed
            self.prompt_tokens += sequence.prompt_length
            self.cached_tokens += sequence.computed
        return True

    def _may_start(self) -> list[str]:
        """The accounts of waiting sequences for which there is a slot."""
        return [account for account in self._queues.waiting.accounts if self._admission.slots(account) > 0]

    def _over(self) -> Collection[str]:
        """Accounts that go behind others of their class, having used more than their share."""
        accounts = self._queues.accounts
        return self._shares.over(accounts) if len(accounts) > 1 else ()

    def _charge(self, planning: Planning, now: float) -> None:
        if len(self._queues.accounts) < 2:
            return
        self._shares.charge(planning.used(self.costs.costs), now)

    # -- blocks -------------------------------------------------------------------------------------

    def _grow(self, sequence: Sequence, count: int, planned: set[int]) -> int:
        """Find blocks for `count` more tokens, if need be those of younger sequences: the tokens that fit.

        Sequences that have a row in this step already (`planned`) keep theirs.
        """
        running = self._queues.running
        if not count or sequence.id not in running:
            return 0  # an elder took its blocks in this very step
        missing = self.tables.missing(sequence, count)
        if missing <= 0:
            return count
        while missing > self.tables.pool.available:
            victim = max((s for s in running.values() if s.id not in planned), key=by_age)
            if victim is sequence:
                missing = self.tables.pool.available
                room = (len(sequence.blocks) + missing) * self.capacity.block_size
                count = min(count, room - sequence.planned)
                break
            self._preempt(victim)
        self.tables.extend(sequence, missing)
        return count

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks; what is not remembered by then it computes again later."""
        self.preemptions += 1
        self._queues.preempt(sequence)
        self.tables.close(sequence)
        self._queue(sequence)

    # -- the queue ----------------------------------------------------------------------------------

    def _rank(self, sequence: Sequence) -> None:
        """Bring its urgency up to date."""
        held = sequence.id in self._queues.running
        known = sequence.planned if held else self.tables.remembered_tokens(sequence)
        sequence.left = len(sequence.tokens) + sequence.in_flight - known
        sequence.urgency = self._policy.order(sequence)

    def _queue(self, sequence: Sequence) -> None:
        self._rank(sequence)
        self._queues.waiting.add(sequence)

    def _lead(self, choices: list[Sequence]) -> None:
        """Queue the first of `choices`; the others wait until it has computed the prompt they share."""
        leader, *siblings = choices
        leader.siblings = siblings
        for sibling in siblings:
            sibling.leader = leader
        self._queue(leader)

    def _release_siblings(self, leader: Sequence) -> None:
        for sibling in leader.siblings:
            self._queue(sibling)
        leader.siblings = []

    def _finish(self, sequence: Sequence, ending: Ending) -> Finished:
        reason, stop_id, error = ending
        self._queues.leave(sequence)
        self.speculation.ended(sequence)
        self.tables.close(sequence)
        if sequence.siblings:  # it ended before it had computed their prompt
            heirs, sequence.siblings = sequence.siblings, []
            self._lead(heirs)
        completion = sequence.generated + (stop_id is not None)
        if completion and reason is not FinishReason.ERROR:  # who left the queue says nothing of answers
            self._admission.answered(completion)
        return Finished(
            sequence.choice, reason, sequence.prompt_length, completion, sequence.cached, stop_id, error
        )
