"""The backend of a device with a queue of its own: steps are enqueued in the loop, awaited on a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import threading
from typing import NamedTuple

from tokenspeed.backend.results import STOPPED
from tokenspeed.backend.stepper import Begun, Stepper
from tokenspeed.core.plan import Capacity, StepPlan, StepResult
from tokenspeed.errors import DeviceLostError, EngineError, EngineStoppedError

logger = logging.getLogger(__name__)

Result = asyncio.Future[StepResult]


class _Waiting(NamedTuple):
    """A step that the device has, and the future to settle on the loop that waits for it."""

    begun: Begun
    future: Result


class CudaBackend:
    """Enqueues steps in the thread of the loop, which never waits; completion wakes the loop.

    The stepper is the backend's from then on; all of it runs in the loop's thread, but for the one wait for
    the end of a step. Its graphs are captured meanwhile.
    """

    def __init__(self, stepper: Stepper, capacity: Capacity) -> None:
        self.stepper = stepper
        self._capacity = capacity
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._unfinished: _Waiting | None = None  # its draws wait for what the step before gives
        self._running = 0  # steps that are begun and not settled
        self._last: StepResult | None = None  # of the step that was settled last
        self._closed = False
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon, so that a loop that died without closing does not keep the process alive.
        self._thread = threading.Thread(target=self._wait, name="device", daemon=True)
        self._thread.start()
        for graphs in stepper.graphs:
            graphs.start()

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    def submit(self, plan: StepPlan) -> Result:
        """Enqueue a step; returns as soon as the device has it.

        The future raises `EngineError` if the step failed as a whole, `DeviceLostError` if no step can run
        any more, and `EngineStoppedError` if it did not run because the backend closed.
        """
        future: Result = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(EngineStoppedError(STOPPED))
        elif not plan.rows:
            future.set_result(StepResult((), 0.0))
        else:
            try:
                begun = self.stepper.begin(plan)
            except Exception as error:
                logger.exception("step %d failed", plan.number)
                future.set_exception(self._failure(plan, error))
            else:
                waiting = _Waiting(begun, future)
                self._running += 1
                if not begun.waits:
                    self._waiting.put(waiting)
                elif self._running > 1:
                    self._unfinished = waiting
                else:  # what it waits for is there, and was only not seen yet by who planned it
                    self._finish(waiting)
        return future

    async def close(self) -> None:
        """End the steps that run, then the thread. Closing twice is fine."""
        self._closed = True
        self._waiting.put(None)
        # Shielded: whoever else closes still waits for the same end.
        await asyncio.shield(asyncio.wrap_future(self._ended))
        self._thread.join()
        if (unfinished := self._take_unfinished()) is not None and not unfinished.future.done():
            unfinished.future.set_exception(EngineStoppedError(STOPPED))
        for graphs in self.stepper.graphs:
            graphs.close()

    def _wait(self) -> None:
        """The thread: for each step, until the device has done it."""
        while (waiting := self._waiting.get()) is not None:
            failed: Exception | None = None
            try:
                waiting.begun.ended.wait()
            except Exception as error:
                failed = error
            try:
                waiting.future.get_loop().call_soon_threadsafe(self._settle, waiting, failed)
            except RuntimeError:  # the loop is closed, so nobody waits
                logger.debug("a step ended after its loop had closed")
        self._ended.set_result(None)

    def _settle(self, waiting: _Waiting, failed: Exception | None) -> None:
        """Read what the step gave; in the loop."""
        result: StepResult | None = None
        if failed is not None:
            self.stepper.drop(waiting.begun)
        else:
            try:
                result = self.stepper.end(waiting.begun)
            except Exception as error:
                failed = error
        if failed is not None:
            logger.error("step %d failed", waiting.begun.plan.number, exc_info=failed)
        self._running -= 1
        self._last = result
        if not self._closed and (unfinished := self._take_unfinished()) is not None:
            self._finish(unfinished)
        if waiting.future.done():  # cancelled meanwhile
            return
        if failed is not None:
            waiting.future.set_exception(self._failure(waiting.begun.plan, failed))
        elif result is not None:
            waiting.future.set_result(result)

    def _take_unfinished(self) -> _Waiting | None:
        unfinished, self._unfinished = self._unfinished, None
        return unfinished

    def _finish(self, waiting: _Waiting) -> None:
        """Let a step draw, now that it is known what the one before gave."""
        try:
            self.stepper.finish(waiting.begun, self._last)
        except Exception as error:
            logger.exception("step %d failed", waiting.begun.plan.number)
            self.stepper.drop(waiting.begun)
            self._running -= 1
            self._last = None
            if not waiting.future.done():
                waiting.future.set_exception(self._failure(waiting.begun.plan, error))
        else:
            self._waiting.put(waiting)

    def _failure(self, plan: StepPlan, error: Exception) -> EngineError:
        """What the engine is told of a step that failed: whether it alone did."""
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        try:
            self.stepper.check()
        except RuntimeError as lost:
            failure: EngineError = DeviceLostError(f"the device failed: {told}")
            failure.__cause__ = lost
            return failure
        failure = EngineError(f"step {plan.number} failed: {told}")
        failure.__cause__ = error
        return failure
