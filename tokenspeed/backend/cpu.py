"""The backend that computes on the CPU: one device thread, fed through a queue."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import threading
from typing import NamedTuple

import torch

from tokenspeed.backend.executor import Executor
from tokenspeed.backend.guessing import Guesser
from tokenspeed.backend.results import STOPPED
from tokenspeed.core.plan import Capacity, StepPlan, StepResult
from tokenspeed.errors import ConfigError, EngineError, EngineStoppedError
from tokenspeed.model.batch import Decoder
from tokenspeed.model.cpu import drawing
from tokenspeed.model.draft import Draft
from tokenspeed.model.spec import ModelSpec

logger = logging.getLogger(__name__)


class _Job(NamedTuple):
    """A step to run, and the future to settle on the loop that waits for it."""

    plan: StepPlan
    future: asyncio.Future[StepResult]


class CpuBackend:
    """Runs steps in the order of submission on a thread of its own, which alone touches the decoder.

    Takes the KV memory of `capacity` and warms the decoder up at once, so that what is wrong with either
    shows at start; the decoder is the backend's from then on, as is that of a `draft` model, which gets as
    many blocks. `threads` bounds torch's threads of computation; 0 leaves torch's own choice.
    """

    def __init__(
        self,
        decoder: Decoder,
        capacity: Capacity,
        *,
        vocab_size: int,
        threads: int = 0,
        draft: Draft | None = None,
    ) -> None:
        block_size = capacity.block_size
        self._decoders = [decoder] if draft is None else [decoder, draft.decoder]
        for each in self._decoders:
            each.allocate(capacity.blocks)
            each.warm_up()
        drawing.warm_up()
        guesser = None if draft is None else Guesser(draft, block_size=block_size, vocab_size=vocab_size)
        self._capacity = capacity
        self._executor = Executor(decoder, block_size=block_size, vocab_size=vocab_size, guesser=guesser)
        self._threads = threads
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # over `_closed`, so that nothing is queued behind the last refusal
        self._closed = False
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon, so that a loop that died without closing does not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    def submit(self, plan: StepPlan) -> asyncio.Future[StepResult]:
        """Enqueue a step; returns at once.

        The future raises `EngineError` if the step failed as a whole and `EngineStoppedError` if it did not
        run because the backend closed. Cancelling it does not take the step back.
        """
        future: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._closed:
                future.set_exception(EngineStoppedError(STOPPED))
            else:
                self._jobs.put(_Job(plan, future))
        return future

    async def close(self) -> None:
        """End the step that runs, refuse those that wait, and end the thread. Closing twice is fine."""
        with self._lock:
            self._closed = True
        self._jobs.put(None)
        # Shielded: whoever else closes still waits for the same end.
        await asyncio.shield(asyncio.wrap_future(self._ended))
        self._thread.join()

    def _run(self) -> None:
        """The device thread."""
        try:
            if self._threads:
                torch.set_num_threads(self._threads)
            while (job := self._jobs.get()) is not None:
                if self._closed:
                    _settle(job.future, EngineStoppedError(STOPPED))
                else:
                    self._step(job)
        finally:
            with self._lock:
                self._closed = True
            self._refuse_waiting()
            self._executor.close()
            for decoder in self._decoders:
                decoder.close()
            self._ended.set_result(None)

    def _step(self, job: _Job) -> None:
        outcome: StepResult | EngineError
        try:
            outcome = self._executor.execute(job.plan)
        except Exception as error:
            logger.exception("step %d failed", job.plan.number)
            told = (str(error).strip() or type(error).__name__).splitlines()[0]
            outcome = EngineError(f"step {job.plan.number} failed: {told}")
            outcome.__cause__ = error
        _settle(job.future, outcome)

    def _refuse_waiting(self) -> None:
        """Settle what is still queued, where the thread ends by a fault of its own."""
        while not self._jobs.empty():
            if (job := self._jobs.get()) is not None:
                _settle(job.future, EngineStoppedError(STOPPED))


def _settle(future: asyncio.Future[StepResult], outcome: StepResult | EngineError) -> None:
    """Hand the outcome to the future's loop, from the device thread."""
    try:
        future.get_loop().call_soon_threadsafe(_deliver, future, outcome)
    except RuntimeError:  # the loop is closed, so nobody waits
        logger.debug("a step ended after its loop had closed")


def _deliver(future: asyncio.Future[StepResult], outcome: StepResult | EngineError) -> None:
    if future.done():  # cancelled meanwhile
        return
    if isinstance(outcome, EngineError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def plan_memory(
    spec: ModelSpec, block_bytes: int, budget_bytes: int, block_size: int, *, draft_block_bytes: int = 0
) -> Capacity:
    """What fits in `budget_bytes` of KV memory: whole blocks for `block_size` tokens each, which take
    `block_bytes` and, for a draft model beside it, `draft_block_bytes`.

    Where that is less than the model's context, the longest sequence is what fits. Raises `ConfigError`
    where not a single block does.
    """
    each = block_bytes + draft_block_bytes
    blocks = budget_bytes // each
    if blocks < 1:
        mib = -(-each // 2**20)
        raise ConfigError(
            f"[cache] memory_mib is too small for one block of keys and values; give it {mib} or more"
        )
    return Capacity(blocks, block_size, min(spec.max_context, blocks * block_size))
