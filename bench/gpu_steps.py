"""Steps on a GPU without HTTP, engine or scheduler: what the device and the launching of its work take.

    python -m bench gpu_steps FOLDER [--set table.key=value]

FOLDER needs a configuration and a tokenizer; weights are random. Rows decode with one step enqueued behind
the one that runs, as the engine does; those that carry drafts are planned when the one before has ended.
With `--set speculation.draft=FOLDER` the draft model finds the drafts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

from tokenspeed import config
from tokenspeed.backend.cuda import CudaBackend
from tokenspeed.backend.stepper import Begun, Stepper
from tokenspeed.build import find_checkpoint
from tokenspeed.build_device import Progress, build_computing
from tokenspeed.core.plan import Draw, Row, StepPlan, StepResult
from tokenspeed.core.request import Sampling

STEPS, SKIPPED = 30, 5  # of a measurement; the first ones are not counted
REPEATS = 3
DECODES = ((1, 256), (1, 6000), (4, 512), (8, 400), (8, 640), (16, 640), (64, 640), (256, 640))
PREFILLS = ((16, 0), (128, 0), (512, 0), (1100, 0), (2048, 0), (8192, 0), (8192, 8192))
VERIFIES = ((1, 256, 1), (1, 256, 2), (1, 256, 4), (1, 256, 7), (4, 512, 3), (16, 640, 3))  # and drafts
GREEDY = Sampling(temperature=0.0)


class Decoded(NamedTuple):
    """Medians of a step, in seconds: on the device, idle before it, and of the host's time to enqueue it."""

    seconds: float
    idle: float
    host: float


def decode(stepper: Stepper, rows: int, context: int, block_size: int, steps: int = STEPS) -> Decoded:
    """Rows of that context, each with blocks of its own, one token a step."""
    each = -(-(context + steps + 1) // block_size)
    tables = [tuple(range(row * each, (row + 1) * each)) for row in range(rows)]
    running: list[Begun] = []
    results: list[StepResult] = []
    host: list[float] = []
    for number in range(steps):
        planned = tuple(
            Row(
                row,
                context + number,
                (5,),
                tables[row],
                Draw(GREEDY, row, context + number + 1),
                source=row if number else -1,
            )
            for row in range(rows)
        )
        began = time.perf_counter()
        running.append(stepper.begin(StepPlan(number, planned)))
        host.append(time.perf_counter() - began)
        if len(running) == 2:
            results.append(_ended(stepper, running.pop(0)))
    results.append(_ended(stepper, running.pop()))
    skipped = min(SKIPPED, steps - 1)
    counted = results[skipped:]
    return Decoded(
        median(result.seconds for result in counted),
        median(result.idle for result in counted),
        median(host[skipped:]),
    )


def verify(stepper: Stepper, plan: Callable[[int], StepPlan]) -> Decoded:
    """Steps one after the other, as `plan` says of their numbers."""
    results: list[StepResult] = []
    host: list[float] = []
    for number in range(STEPS):
        planned = plan(number)
        began = time.perf_counter()
        begun = stepper.begin(planned)
        host.append(time.perf_counter() - began)
        results.append(_ended(stepper, begun))
    counted = results[SKIPPED:]
    return Decoded(
        median(result.seconds for result in counted),
        median(result.idle for result in counted),
        median(host[SKIPPED:]),
    )


def given(rows: int, context: int, drafts: int, block_size: int) -> Callable[[int], StepPlan]:
    """Rows that carry drafts, which will hardly hold."""
    return lambda number: _drafted(number, rows, context, block_size, drafts, drafts=(7,) * drafts)


def guessed(rows: int, context: int, drafts: int, block_size: int, lacking: int) -> Callable[[int], StepPlan]:
    """Rows whose drafts the draft model finds, after it has computed the tokens that it lacks."""
    behind = (5,) * lacking
    return lambda number: _drafted(
        number,
        rows,
        context,
        block_size,
        drafts,
        guess=drafts,
        behind=behind,
        caught=context + number - lacking,
    )


def _drafted(number: int, rows: int, context: int, block_size: int, most: int, **carried: Any) -> StepPlan:
    """A step whose rows carry so many drafts at most."""
    each = -(-(context + STEPS + most) // block_size)
    start = context + number
    draw = Draw(GREEDY, 0, start + 1)
    tables = [tuple(range(row * each, (row + 1) * each)) for row in range(rows)]
    return StepPlan(number, tuple(Row(row, start, (5,), tables[row], draw, **carried) for row in range(rows)))


def prefill(stepper: Stepper, tokens: int, start: int, block_size: int) -> float:
    """The least seconds of a chunk of a prompt of which `start` tokens are in the cache already."""
    blocks = tuple(range(-(-(start + tokens) // block_size)))
    chunk = tuple(7 * token % 1000 for token in range(tokens))
    row = Row(0, start, chunk, blocks, Draw(GREEDY, 0, start + tokens))
    return min(_ended(stepper, stepper.begin(StepPlan(0, (row,)))).seconds for _ in range(REPEATS))


def _ended(stepper: Stepper, begun: Begun) -> StepResult:
    begun.ended.wait()
    return stepper.end(begun)


def lines(folder: str, overrides: list[str]) -> Iterator[str]:
    """One for each measurement."""
    settings = config.load(
        None, [f"model.path={folder}", "model.weights=random", "device.name=cuda", *overrides]
    )
    checkpoint = find_checkpoint(settings, _stage)
    computing = build_computing(settings, checkpoint, "random", stage=_stage, say=print)
    backend, capacity = computing.backend, computing.capacity
    assert isinstance(backend, CudaBackend)
    assert computing.figures is not None
    stepper, size = backend.stepper, capacity.block_size
    for graphs in stepper.graphs:
        graphs.wait()
    for rows, context in DECODES:
        if rows * (context + STEPS) < capacity.blocks * size:
            step = decode(stepper, rows, context, size)
            light = computing.figures.least_seconds(rows * context) / step.seconds
            yield (
                f"decode {rows} x {context}: {step.seconds * 1e3:.3f} ms, {rows / step.seconds:,.0f} tok/s, "
                f"{light:.2f} of light, idle {step.idle * 1e6:.1f} us, host {step.host * 1e6:.0f} us"
            )
    for rows, context, drafts in VERIFIES:
        plans = {"drafts given": given(rows, context, drafts, size)}
        if computing.guess_context:
            plans |= {
                "drafts guessed": guessed(rows, context, drafts, size, 0),
                "drafts guessed, one token behind": guessed(rows, context, drafts, size, 1),
            }
        for name, plan in plans.items():
            step = verify(stepper, plan)
            yield (
                f"{name}, {drafts} x {rows} x {context}: {step.seconds * 1e3:.3f} ms, "
                f"idle {step.idle * 1e6:.1f} us, host {step.host * 1e6:.0f} us"
            )
    for tokens, start in PREFILLS:
        if start + tokens <= capacity.max_context:
            yield f"prefill {tokens} at {start}: {prefill(stepper, tokens, start, size) * 1e3:.2f} ms"


def _stage(name: str) -> Progress:
    return lambda done, total: None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    for line in lines(given.folder, given.set):
        print(line, flush=True)


if __name__ == "__main__":
    main()
