"""The loop: plan a step, hand it to the backend, apply its result, deliver what it gave. Nothing else.

Everything here runs in one asyncio task and between its awaits, so nothing is locked. The order inside a
turn matters: the next step is handed over before the events of the last one are delivered, so that the
device works while clients are written to.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import Backend, StepPlan, StepResult
from tokenspeed.core.request import Request
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.core.taking import Happening
from tokenspeed.engine.delivery import Delivery
from tokenspeed.engine.observer import Observer, Step
from tokenspeed.engine.streams import Stream
from tokenspeed.errors import DeviceLostError, EngineError, EngineStoppedError, RequestError

log = logging.getLogger(__name__)

LEAD_SHARE = 1 / 8  # of a step: whoever arrives in this part of it waits for the next one as well


class Flight(NamedTuple):
    """A step that the device has: since when, the costs it was planned with, whether nothing ran before."""

    plan: StepPlan
    result: Awaitable[StepResult]
    since: float
    costs: Costs
    rested: bool


class Engine:
    """Owns the queue, the plan of every step and every stream; the backend owns the model."""

    def __init__(
        self,
        scheduler: Scheduler,
        backend: Backend,
        observers: Sequence[Observer] = (),
        *,
        clock: Callable[[], float] | None = None,
        lead: float = 0.0,
    ) -> None:
        """`clock` is in seconds; None takes the running loop's, which in a simulation is virtual.

        The step behind one that prefills is planned `lead` seconds before that one should end, or in the last
        eighth of it: as late as the host can, so that whoever arrives is in it, and as early as the device
        needs.
        """
        self.scheduler = scheduler
        self._observers = tuple(observers)
        self._backend = backend
        self._clock = clock
        self._streams: dict[str, Stream] = {}
        self._delivery = Delivery(self.now)
        self._flight: deque[Flight] = deque()
        self._free_since = 0.0  # when the device had done its last step
        self._rested = True  # there was nothing to do
        self._lead = lead
        self._timer: asyncio.TimerHandle | None = None  # for the step behind one that prefills
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._accepting = False
        self._task: asyncio.Task[None] | None = None

    # -- for those who ask --------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a request would be taken now."""
        return self._accepting

    @property
    def max_context(self) -> int:
        """The most tokens that one sequence may have, prompt and generated together."""
        capacity = self.scheduler.capacity
        return min(capacity.max_context, capacity.blocks * capacity.block_size)

    @property
    def held_blocks(self) -> int:
        return self.scheduler.tables.pool.held

    def now(self) -> float:
        """Seconds of the engine's clock, which `Request.arrival` is in."""
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()

    def submit(self, request: Request) -> Stream:
        """Queue a request. Raises what `Scheduler.submit` does, and `EngineStoppedError`."""
        if not self._accepting:
            raise EngineStoppedError("the server is stopping and takes no more requests")
        now = self.now()
        try:
            predicted = now - request.arrival + self.scheduler.submit(request, now)
        except RequestError as error:
            for observer in self._observers:
                observer.refused(request, error, now)
            raise
        stream = self._streams[request.id] = Stream(request, self.cancel, predicted)
        for observer in self._observers:
            observer.submitted(request, predicted, now)
        self._idle.clear()
        self._wake.set()
        return stream

    def cancel(self, request_id: str, choice: int | None = None) -> None:
        """End a request, or one choice of it, at once; unknown and finished ones are left as they are."""
        self.deliver(self.scheduler.cancel(request_id, choice))
        self._wake.set()

    # -- its life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve; call inside the running loop."""
        self._accepting = True
        self._idle.set()
        self._task = asyncio.create_task(self._run(), name="engine")
        self._task.add_done_callback(self._ended)

    async def drain(self, seconds: float) -> bool:
        """Take no more requests and wait for those running; True if all ended within `seconds`."""
        self._accepting = False
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """End what still runs with an error, then the loop, then the device."""
        self._accepting = False
        if self._timer is not None:
            self._timer.cancel()
        self._end_all("the server stopped")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._backend.close()

    async def failed(self) -> None:
        """Return if the loop ever ends by itself, which is a defect; the process should then end."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the engine's loop ended: %r", error, exc_info=error)
            self._accepting = False
            self._end_all("the engine failed")

    def _end_all(self, error: str) -> None:
        for request_id in list(self._streams):
            self.deliver(self.scheduler.end(request_id, error))

    # -- the loop -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._hand_over()
            if self._flight:
                happenings = await self._take_in()
                self._hand_over()
                self.deliver(happenings)
            else:
                self._wake.clear()
                await self._wake.wait()
                self._rested = True

    def _hand_over(self) -> None:
        """Fill the device's queue: one step, and one more where steps are short (`run_ahead`)."""
        while len(self._flight) <= self.scheduler.options.run_ahead:
            now = self.now()
            if self._flight and not self._may_pass(self._flight[-1], now):
                return
            plan = self.scheduler.plan(now)
            if plan is None:
                return
            costs, rested = self.scheduler.costs.costs, self._rested
            self._flight.append(Flight(plan, self._backend.submit(plan), now, costs, rested))
            self._rested = False

    def _may_pass(self, flight: Flight, now: float) -> bool:
        """Whether the next step may be planned while this one runs.

        A prefill is long enough to hide the host's time, and whoever arrives meanwhile is to be in the next
        step: that is planned when this one has ended, or shortly before it should.
        """
        if not flight.plan.prefills:
            return True
        if self._lead <= 0.0 or len(self._flight) > 1:
            return False
        began = max(flight.since, self._free_since)
        seconds = flight.plan.seconds
        rest = began + seconds - min(self._lead, LEAD_SHARE * seconds) - now
        if rest > 0.0 and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(rest, self._hand_over_early)
        return rest <= 0.0

    def _hand_over_early(self) -> None:
        self._timer = None
        if self._flight:  # else the loop does so itself
            self._hand_over()

    async def _take_in(self) -> list[Happening]:
        flight = self._flight[0]
        try:
            result = await flight.result
        except DeviceLostError:
            raise  # the loop ends, and with it every request and the process
        except EngineError as error:
            self._flight.popleft()
            return self._fail(flight, error)
        self._flight.popleft()
        return self._apply(flight, result)

    def _fail(self, flight: Flight, error: EngineError) -> list[Happening]:
        """End the requests of a step that failed; what happened is still to be delivered."""
        plan, now = flight.plan, self.now()
        log.error("step %d failed: %s", plan.number, error)
        for observer in self._observers:
            observer.step_failed(plan, now)
        return self.scheduler.fail(plan, str(error))

    def _apply(self, flight: Flight, result: StepResult) -> list[Happening]:
        """Take a step's result into the books; what happened is still to be delivered."""
        plan, now = flight.plan, self.now()
        if self._observers:
            sequences = self.scheduler.sequences(plan)
            began = max(flight.since, self._free_since)
            step = Step(plan, result, sequences, began, now, flight.costs, flight.rested)
            for observer in self._observers:
                observer.stepped(step)
        self._free_since = now
        return self.scheduler.apply(plan, result)

    def deliver(self, happenings: list[Happening]) -> None:
        """Push what happened to the streams that wait for it."""
        now = self.now()
        streams, delivery = self._streams, self._delivery
        for observer in self._observers:
            observer.delivered(happenings, now)
        for sequence, event in happenings:
            request_id = sequence.request.id
            stream = streams[request_id]
            if stream.push(event):
                delivery.wake(stream)
            else:
                delivery.hold(stream)
            if not stream.open:
                del streams[request_id]
        delivery.settle()
        if not streams:
            self._idle.set()
