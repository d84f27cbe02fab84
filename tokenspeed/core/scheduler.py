"""Plans every step and applies its result: pure, synchronous, told the time. No I/O, no clock.

A step is `plan` -> (a backend executes it) -> `apply`; with run-ahead a second step is planned before the
first is applied. Blocks given back while a step in flight still writes to them are safe to hand out again:
steps execute in the order they were planned.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from operator import attrgetter

from tokenspeed.core.plan import Capacity, Draw, Row, RowResult, StepPlan, StepResult
from tokenspeed.core.policy import SchedulerOptions, due, split, urgency
from tokenspeed.core.request import Event, Finished, FinishReason, PromptScored, Request, TokenDelta
from tokenspeed.core.sequence import Sequence
from tokenspeed.core.tables import BlockTables
from tokenspeed.errors import ContextLengthError, OverloadedError, RequestError

RETRY_SECONDS = 1.0  # what a client is told to wait when the queue is full

_by_urgency = attrgetter("urgency")
_by_age = attrgetter("due", "id")
Happening = tuple[Sequence, Event]
Owner = tuple[Sequence, int]  # of a planned row: the sequence and the epoch it was in


class Scheduler:
    """Continuous batching: running sequences decode first, prefills share the rest of the step by urgency.

    `preemptions`, `prompt_tokens` and `cached_tokens` count since the start; the latter two over sequences
    when they first start.
    """

    def __init__(self, capacity: Capacity, options: SchedulerOptions, *, prefix_cache: bool = True) -> None:
        self.capacity = capacity
        self.options = options
        self.tables = BlockTables(capacity, prefix_cache=prefix_cache)
        self.preemptions = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self._waiting: list[Sequence] = []  # by urgency
        self._running: dict[int, Sequence] = {}  # by id; they hold blocks
        self._choices: dict[str, list[Sequence]] = {}  # the unfinished ones of every request
        self._unfinished = 0
        self._flight: dict[int, list[Owner]] = {}  # by plan number
        self._last_plan = 0
        self._last_sequence = 0

    @property
    def waiting(self) -> int:
        """Sequences that hold no blocks yet, or no more."""
        return self._unfinished - len(self._running)

    @property
    def running(self) -> int:
        return len(self._running)

    # -- requests come and go -----------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request, or raise: `ContextLengthError`, `OverloadedError`, `RequestError`."""
        self._check_request(request)
        place = due(request, self.options.ageing_seconds)
        choices = [
            Sequence(self._last_sequence + 1 + choice, request, choice, place) for choice in range(request.n)
        ]
        self._last_sequence += request.n
        self._unfinished += request.n
        self._choices[request.id] = list(choices)
        self._lead(choices)

    def cancel(self, request_id: str, choice: int | None = None) -> list[Happening]:
        """End a request, or one choice of it, now; its blocks come back at once. Unknown ids are no error."""
        going = [s for s in self._choices.get(request_id, ()) if choice is None or s.choice == choice]
        return [(sequence, self._finish(sequence, FinishReason.CANCELLED)) for sequence in going]

    def end(self, request_id: str, error: str) -> list[Happening]:
        """End what is left of a request with an error that is not its own."""
        going = list(self._choices.get(request_id, ()))
        return [(sequence, self._finish(sequence, FinishReason.ERROR, error=error)) for sequence in going]

    def _check_request(self, request: Request) -> None:
        if request.id in self._choices:
            raise RequestError(f"a request with the id {request.id!r} is running already", param="request_id")
        if not request.prompt:
            raise RequestError("the prompt has no tokens", param="prompt")
        longest = len(request.prompt) + request.max_tokens
        room = min(self.capacity.max_context, self.capacity.blocks * self.capacity.block_size)
        if longest > room:
            raise ContextLengthError(
                f"{len(request.prompt)} prompt tokens and {request.max_tokens} to generate make {longest}; "
                f"a sequence has at most {room} here",
                param="max_tokens",
            )
        slots = max(0, self.options.max_running - len(self._running))
        if self.waiting + request.n > self.options.max_waiting + slots:
            raise OverloadedError(
                f"{self.waiting} sequences wait already; send the request again later",
                retry_after=RETRY_SECONDS,
            )

    def check(self) -> None:
        """Raise AssertionError unless every count of blocks, sequences and tokens agrees."""
        pool = self.tables.pool
        holders = Counter(block for s in self._running.values() for block in s.blocks)
        assert pool.free + pool.held + pool.remembered == pool.total
        assert all(pool.references(block) == holders[block] for block in range(pool.total))
        assert [s.urgency for s in self._waiting] == sorted(s.urgency for s in self._waiting)
        siblings = sum(len(s.siblings) for s in (*self._waiting, *self._running.values()))
        assert self._unfinished == len(self._waiting) + len(self._running) + siblings
        assert self._unfinished == sum(len(choices) for choices in self._choices.values())
        for s in self._running.values():
            assert s.computed <= s.planned <= len(s.tokens) + s.in_flight
            assert self.tables.to_hold(s.planned) <= len(s.blocks) == len(s.table)
            assert len(s.tokens) + s.in_flight <= s.limit
        assert not any(s.blocks or s.computed for s in self._waiting)

    # -- a step -------------------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to do until a result or a request comes."""
        rows: list[Row] = []
        owners: list[Owner] = []
        planned: set[int] = set()
        prefills: list[Sequence] = []
        size = self.capacity.block_size
        for sequence in sorted(self._running.values(), key=_by_age):  # the eldest find blocks first
            pending = len(sequence.tokens) + sequence.in_flight - sequence.planned
            if pending > 1:
                prefills.append(sequence)
            elif pending == 1 and (not sequence.in_flight or self._may_run_ahead(sequence)):
                has_room = sequence.planned < len(sequence.blocks) * size
                if has_room or self._grow(sequence, 1, planned):
                    planned.add(sequence.id)
                    owners.append((sequence, sequence.epoch))
                    rows.append(self._row(sequence, 1, len(rows)))
        for sequence, count in self._prefill_shares(prefills, len(rows), now):
            fitting = self._grow(sequence, count, planned)
            if fitting:
                planned.add(sequence.id)
                owners.append((sequence, sequence.epoch))
                rows.append(self._row(sequence, fitting, len(rows)))
        if not rows:
            return None
        self._last_plan += 1
        self._flight[self._last_plan] = owners
        return StepPlan(self._last_plan, tuple(rows))

    def apply(self, plan: StepPlan, result: StepResult) -> list[Happening]:
        """Take a step's result in; the events are in the order of its rows."""
        events: list[Happening] = []
        size = self.capacity.block_size
        owners = self._flight.pop(plan.number)
        for row, given, (sequence, epoch) in zip(plan.rows, result.rows, owners, strict=True):
            if sequence.epoch != epoch:
                continue  # it ended, or was preempted, while the step ran
            sequence.computed += len(row.tokens)
            if (sequence.published + 1) * size <= sequence.computed:
                self.tables.publish(sequence)
            if sequence.siblings and sequence.computed >= sequence.prompt_length - 1:
                self._release_siblings(sequence)
            if row.targets or sequence.wants_scores:
                self._take_scores(sequence, given, events)
            self._take_token(sequence, row, given, events)
        return events

    def fail(self, plan: StepPlan, error: str) -> list[Happening]:
        """The step failed as a whole: every request in it ends with `error`, nobody else notices."""
        events: list[Happening] = []
        for sequence, epoch in self._flight.pop(plan.number):
            if sequence.epoch == epoch:
                events += self.end(sequence.request.id, error)
        return events

    # -- who prefills, and how much -----------------------------------------------------------------

    def _prefill_shares(
        self, prefills: list[Sequence], decodes: int, now: float
    ) -> Iterator[tuple[Sequence, int]]:
        if not (prefills or self._waiting):
            return iter(())
        options = self.options
        budget = max(options.step_tokens - decodes, int(options.step_tokens * options.eldest_share), 1)
        prefills = [s for s in prefills if s.id in self._running]  # the others lost their blocks just now
        for sequence in prefills:
            sequence.urgency = urgency(sequence, sequence.pending)
        prefills.sort(key=_by_urgency)
        prefills += self._start_waiting(prefills, budget, now)
        prefills.sort(key=_by_urgency)
        shares = split(budget, [(s, s.pending) for s in prefills], options.eldest_share)
        return zip(prefills, shares, strict=True)

    def _start_waiting(self, prefills: list[Sequence], budget: int, now: float) -> list[Sequence]:
        """Start the waiting sequences that this step has tokens, slots and blocks for, most urgent first."""
        if not self._waiting or len(self._running) >= self.options.max_running:
            return []
        reserved = sum(self.tables.wanted(s) for s in prefills)
        started: list[Sequence] = []
        eldest = min(self._waiting, key=_by_age)
        if now - eldest.request.arrival >= self.options.ageing_seconds:
            if not self._start(eldest, reserved, now):
                return []  # it has waited enough: nobody starts before it
            started.append(eldest)
            reserved += self.tables.wanted(eldest)
        ahead = sum(s.pending for s in started)
        unseen = iter(prefills)
        runner = next(unseen, None)
        for sequence in self._waiting[:budget]:
            while runner is not None and runner.urgency < sequence.urgency:
                ahead += runner.pending
                runner = next(unseen, None)
            if ahead >= budget or not self._start(sequence, reserved, now):
                break
            started.append(sequence)
            reserved += self.tables.wanted(sequence)
            ahead += sequence.pending
        return started

    def _start(self, sequence: Sequence, reserved: int, now: float) -> bool:
        if len(self._running) >= self.options.max_running or not self.tables.open(sequence, reserved):
            return False
        self._unqueue(sequence)
        self._running[sequence.id] = sequence
        sequence.urgency = urgency(sequence, sequence.pending)
        if sequence.epoch == 1:
            sequence.started = now
            sequence.cached = sequence.computed
            self.prompt_tokens += sequence.prompt_length
            self.cached_tokens += sequence.computed
        return True

    # -- rows and their blocks ----------------------------------------------------------------------

    def _may_run_ahead(self, sequence: Sequence) -> bool:
        """Whether the next row can be planned before the token in flight is known."""
        if sequence.penalised:
            return False  # a draw that looks at the tokens before it needs them all
        return len(sequence.tokens) + sequence.in_flight < sequence.limit

    def _grow(self, sequence: Sequence, count: int, planned: set[int]) -> int:
        """Find blocks for `count` more tokens, if need be those of younger sequences: the tokens that fit.

        Sequences that have a row in this step already (`planned`) keep theirs.
        """
        if sequence.id not in self._running:
            return 0  # an elder took its blocks in this very step
        missing = self.tables.missing(sequence, count)
        if missing <= 0:
            return count
        while missing > self.tables.pool.available:
            victim = max((s for s in self._running.values() if s.id not in planned), key=_by_age)
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
        del self._running[sequence.id]
        self.tables.close(sequence)
        self._queue(sequence)

    def _row(self, sequence: Sequence, count: int, index: int) -> Row:
        """Plan the next `count` tokens of a sequence as row `index` of the step."""
        start = sequence.planned
        stop = start + count
        known = len(sequence.tokens)
        sequence.planned = stop
        source = -1
        if start >= known:
            tokens: tuple[int, ...] = (0,)
            source = sequence.row
        else:
            tokens = (sequence.tokens[start],) if count == 1 else tuple(sequence.tokens[start:stop])
        draw = None
        if stop == known + sequence.in_flight and stop < sequence.limit:
            draw = self._draw(sequence, stop)
            sequence.in_flight += 1
            sequence.row = index
        if not sequence.wants_scores:
            return Row(sequence.id, start, tokens, sequence.table, draw, (), source)
        targets = sequence.request.prompt[start + 1 : stop + 1]
        wanted = sequence.request.prompt_logprobs or 0
        return Row(sequence.id, start, tokens, sequence.table, draw, (), source, targets, wanted)

    def _draw(self, sequence: Sequence, position: int) -> Draw:
        request = sequence.request
        sampling = request.sampling
        early = position < sequence.prompt_length + request.min_tokens
        if not (early or sequence.penalised):
            return Draw(sampling, sequence.seed, position)
        banned = tuple(sorted(request.stop_ids)) if early else ()
        if not sequence.penalised:
            return Draw(sampling, sequence.seed, position, banned=banned)
        generated = tuple(sequence.tokens[sequence.prompt_length :])
        return Draw(sampling, sequence.seed, position, request.prompt, generated, banned)

    # -- results ------------------------------------------------------------------------------------

    def _take_token(self, sequence: Sequence, row: Row, given: RowResult, events: list[Happening]) -> None:
        if given.error is not None:
            events.append((sequence, self._finish(sequence, FinishReason.ERROR, error=given.error)))
        elif row.draw is not None:
            (token,) = given.tokens
            sequence.in_flight -= 1
            if token in sequence.request.stop_ids:
                events.append((sequence, self._finish(sequence, FinishReason.STOP, stop_id=token)))
                return
            sequence.tokens.append(token)
            events.append((sequence, TokenDelta(sequence.choice, given.tokens, given.logprobs)))
            if len(sequence.tokens) >= sequence.limit:
                events.append((sequence, self._finish(sequence, FinishReason.LENGTH)))
        elif sequence.computed >= sequence.limit:  # only a prompt was asked to be computed
            events.append((sequence, self._finish(sequence, FinishReason.LENGTH)))

    def _take_scores(self, sequence: Sequence, given: RowResult, events: list[Happening]) -> None:
        sequence.scoring += given.scored
        if sequence.computed >= sequence.prompt_length and given.error is None:
            sequence.scores = sequence.scoring
            events.append((sequence, PromptScored(tuple(sequence.scores))))

    # -- the queue ----------------------------------------------------------------------------------

    def _queue(self, sequence: Sequence) -> None:
        remaining = len(sequence.tokens) - self.tables.remembered_tokens(sequence)
        sequence.urgency = urgency(sequence, remaining)
        insort(self._waiting, sequence, key=_by_urgency)

    def _unqueue(self, sequence: Sequence) -> None:
        del self._waiting[bisect_left(self._waiting, sequence.urgency, key=_by_urgency)]

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

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        *,
        stop_id: int | None = None,
        error: str | None = None,
    ) -> Finished:
        leader = sequence.leader
        if self._running.pop(sequence.id, None) is None:
            if leader is not None and sequence in leader.siblings:
                leader.siblings.remove(sequence)
            else:
                self._unqueue(sequence)
        self.tables.close(sequence)
        if sequence.siblings:  # it ended before it had computed their prompt
            heirs, sequence.siblings = sequence.siblings, []
            self._lead(heirs)
        self._unfinished -= 1
        choices = self._choices[sequence.request.id]
        choices.remove(sequence)
        if not choices:
            del self._choices[sequence.request.id]
        completion = sequence.generated + (stop_id is not None)
        return Finished(
            sequence.choice, reason, sequence.prompt_length, completion, sequence.cached, stop_id, error
        )
