"""A team of threads that go through the phases of a forward pass together.

Each phase is a number of tasks. A thread claims tasks one by one, so a thread that the operating system has
put aside (the event loop shares these cores) delays the others by at most the one task that it holds; one
that comes late, or not at all, delays nobody. A phase has ended when all its tasks are done, by whoever.

Everything is stamped with the number of the pass (`epoch`): a thread that wakes up in the middle of a later
pass finds that nothing is left for it. Waiting spins briefly, then yields to the operating system; between
passes a thread blocks on a pipe and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from llvmlite import ir

from tokenspeed.model.cpu.jit import cgutils, intrinsic, njit, types
from tokenspeed.model.cpu.simd import int64, pointer

CELL_BYTES = 128  # of one phase: tasks claimed, and 64 bytes on (another cache line) tasks done
LINE_BYTES = 64
SPINS_IN_PHASE = 1000  # a pause is some 20 ns: about 20 us before yielding to the operating system
SPINS_BETWEEN_PASSES = 8000  # about 150 us: back-to-back steps find the team awake
LOW = (1 << 32) - 1

sched_yield = types.ExternalFunction("sched_yield", types.int32())
read_pipe = types.ExternalFunction("read", types.intp(types.int32, types.intp, types.intp))
write_pipe = types.ExternalFunction("write", types.intp(types.int32, types.intp, types.intp))


class Team(NamedTuple):
    """Addresses that the threads share; all zero at first."""

    cells: int  # [phases] of CELL_BYTES
    epoch: int  # the pass under way, on its own cache line; negative: the team ends
    bells: int  # [threads] of LINE_BYTES: 1 while that thread is, or is about to be, blocked
    pipes: int  # int64 [threads, 2]: what each thread's bell is rung through (read end, write end)
    phases: int
    threads: int


@intrinsic
def fetch(typing: Any, address: Any) -> Any:
    """The word at `address`, ordered before everything after it."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(pointer(builder, arguments[0], int64), "seq_cst", 8)

    return types.intp(types.intp), emit


@intrinsic
def publish(typing: Any, address: Any, value: Any) -> Any:
    """Set the word at `address`, ordered after everything before it."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], pointer(builder, arguments[0], int64), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), emit


@intrinsic
def exchange(typing: Any, address: Any, value: Any) -> Any:
    """Set the word at `address`; what it was."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("xchg", pointer(builder, arguments[0], int64), arguments[1], "seq_cst")

    return types.intp(types.intp, types.intp), emit


@intrinsic
def advance(typing: Any, address: Any, value: Any) -> Any:
    """Add to the word at `address`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.atomic_rmw("add", pointer(builder, arguments[0], int64), arguments[1], "seq_cst")
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), emit


@intrinsic
def replace(typing: Any, address: Any, expected: Any, value: Any) -> Any:
    """Set the word at `address` if it is `expected`; whether it was."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, expected, value = arguments
        word = pointer(builder, address, int64)
        pair = builder.cmpxchg(word, expected, value, "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.intp, types.intp, types.intp), emit


PAUSES = {"x86_64": "llvm.x86.sse2.pause", "i686": "llvm.x86.sse2.pause"}


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the processor that this is a waiting loop."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name = PAUSES.get(builder.module.triple.partition("-")[0])
        if name is not None:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def fetch_plain(typing: Any, address: Any) -> Any:
    """The word at `address`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(pointer(builder, arguments[0], int64))

    return types.intp(types.intp), emit


@njit
def claim(cell: int, epoch: int, tasks: int) -> int:
    """The next task of a phase, -1 when none is left."""
    while True:
        word: int = fetch(cell)
        if word >> 32 != epoch or (word & LOW) >= tasks:
            return -1
        if replace(cell, word, word + 1):
            return word & LOW


@njit
def share(team: Team, epoch: int, phase: int, tasks: int) -> Iterator[int]:
    """Yield the tasks of a phase that fall to this thread; end when all of them are done."""
    cell = team.cells + phase * CELL_BYTES
    done = cell + LINE_BYTES
    task = claim(cell, epoch, tasks)
    while task >= 0:
        yield task
        advance(done, 1)
        task = claim(cell, epoch, tasks)
    spins = 0
    word = fetch(done)
    while word >> 32 == epoch and (word & LOW) < tasks:
        spins = relax(spins)
        word = fetch(done)


@njit
def relax(spins: int) -> int:
    """Wait a moment: a pause at first, then whatever else the operating system wants to run here."""
    if spins < SPINS_IN_PHASE:
        pause()
    else:
        sched_yield()
    return spins + 1


@njit
def close_cells(team: Team, epoch: int) -> None:
    """Stamp every phase with a new epoch: no thread of an earlier pass can claim a task from here on."""
    for phase in range(team.phases):
        cell = team.cells + phase * CELL_BYTES
        publish(cell, epoch << 32)
        publish(cell + LINE_BYTES, epoch << 32)


@njit
def ring(team: Team, epoch: int) -> None:
    """Begin a pass, or end the team (epoch -1): wake whoever is blocked."""
    publish(team.epoch, epoch)
    for thread in range(1, team.threads):
        bell = team.bells + thread * LINE_BYTES
        if exchange(bell, 0) == 1:
            write_pipe(fetch_plain(team.pipes + thread * 16 + 8), bell, 1)


@njit
def await_pass(team: Team, thread: int, seen: int) -> int:
    """The epoch that follows `seen`, as soon as there is one."""
    for _ in range(SPINS_BETWEEN_PASSES):
        epoch: int = fetch(team.epoch)
        if epoch != seen:
            return epoch
        pause()
    bell = team.bells + thread * LINE_BYTES
    exchange(bell, 1)
    # Rung after this check, the bell is a byte in the pipe; before it, whoever resets the bell tells which.
    if fetch(team.epoch) == seen or exchange(bell, 0) == 0:
        while read_pipe(fetch_plain(team.pipes + thread * 16), bell + 8, 1) != 1:
            pass
    epoch = fetch(team.epoch)
    return epoch  # noqa: RET504  typed
