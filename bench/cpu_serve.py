"""CPU speed through HTTP: ours and llama.cpp's servers, the same weights, turn by turn in one run.

    python -m bench.cpu_serve --shape m135 --peer-python PATH --peer-server PATH [--rounds 3] [--out FILE]

Every round takes each measure of each server, one right after the other, for the memory of a shared machine
has fast and slow minutes; ratios are taken within a round. Without peers it measures ours alone. See
bench/README.md for how to build the peers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, NoReturn

from bench.checkpoints import SHAPES, checkpoint, random_prompt, weight_bytes
from bench.client import BenchError, complete, complete_all, decode_rate_together
from bench.cpu_kernels import Reader
from bench.cpu_report import Results, machine, report, write_json
from bench.neighbours import Watch
from bench.peers import (
    STREAMS,
    Contestant,
    Running,
    gguf_of,
    has_server,
    llama_cpp_python,
    llama_server,
    started,
    tokenspeed,
)

OURS = "tokenspeed"
CACHE = Path(tempfile.gettempdir()) / "tokenspeed-bench"
PROMPT = 128  # tokens of a decoding stream's prompt
TTFT_REPEATS = 5
READ_BYTES = 1 << 29  # of one read of memory: well beyond all caches
SAME_MODEL_PROMPTS = 12
RESERVE = 15  # seconds to end the servers and report
QUIET = 0.04  # of the cores: what others may use while a figure counts as undisturbed
TRIES = 3  # of a figure that others disturb


class Measure(NamedTuple):
    """What is measured of a server: (its port, tokens to generate, prompts' randomness) -> figure."""

    name: str
    run: Callable[[int, int, Random], Coroutine[Any, Any, float]]
    together: bool = False  # needs a server that takes several requests at once
    memory_bound: bool = False  # the memory's speed is measured around it


async def decode_alone(port: int, tokens: int, random: Random) -> float:
    return (await complete(port, random_prompt(PROMPT, random), tokens)).decode_rate


async def decode_together(port: int, tokens: int, random: Random) -> float:
    prompts = [random_prompt(PROMPT, random) for _ in range(STREAMS)]
    return decode_rate_together(await complete_all(port, prompts, tokens))


async def first_token(port: int, _: int, random: Random) -> float:
    """Milliseconds to the first token of a short prompt."""
    times = [(await complete(port, random_prompt(PROMPT, random), 1)).ttft for _ in range(TTFT_REPEATS)]
    return statistics.median(times) * 1e3


def prefill(length: int) -> Callable[[int, int, Random], Coroutine[Any, Any, float]]:
    """Tokens of a prompt a second, from sending it to its first token."""

    async def run(port: int, _: int, random: Random) -> float:
        answer = await complete(port, random_prompt(length, random), 1)
        if answer.prompt_tokens not in (None, length):
            raise BenchError(f"a prompt of {length} tokens was read as {answer.prompt_tokens}")
        return length / answer.ttft

    return run


MEASURES = (
    Measure("decode_1", decode_alone, memory_bound=True),
    Measure("decode_8", decode_together, together=True),
    Measure("ttft_128", first_token),
    Measure("prefill_512", prefill(512)),
    Measure("prefill_2048", prefill(2048)),
)


class Bench:
    """The servers under measurement, and what has been found."""

    def __init__(self, given: argparse.Namespace, results: Results) -> None:
        self.servers: list[Running] = []
        self._given = given
        self._results = results
        self._reader = Reader(READ_BYTES, given.threads)
        self._random = Random(given.seed)
        self._watch = Watch(QUIET, given.patience, TRIES)

    def round(self, number: int) -> None:
        """Each measure of each server; who begins changes from round to round."""
        turn = number % len(self.servers)
        for measure in MEASURES:
            if measure.name not in self._given.measures:
                continue
            for server in self.servers[turn:] + self.servers[:turn]:
                if server.contestant.batches or not measure.together:
                    self._take(measure, server)

    def _take(self, measure: Measure, server: Running) -> None:
        with server.awake():
            (value, bandwidth), others = self._watch.take(server.group, lambda: self._once(measure, server))
        name = server.contestant.name
        self._results.values.setdefault(name, {}).setdefault(measure.name, []).append(value)
        self._results.others.setdefault(name, {}).setdefault(measure.name, []).append(others)
        told = f"  {measure.name:<13} {name:<18} {value:8.1f}   others used {others:.0%} of the cores"
        if measure.memory_bound:
            self._results.bandwidth.append(bandwidth)
            light = value * self._results.weight_bytes / 1e9 / bandwidth
            self._results.light.setdefault(name, []).append(light)
            told += f"   {light:.2f} of {bandwidth:.1f} GB/s"
        print(told, file=sys.stderr, flush=True)

    def _once(self, measure: Measure, server: Running) -> tuple[float, float]:
        """The figure, and where it tells something the memory's speed around it."""
        before = self._bandwidth() if measure.memory_bound else 0.0
        value = asyncio.run(measure.run(server.port, self._given.tokens, self._random))
        return value, max(before, self._bandwidth()) if measure.memory_bound else 0.0

    def _bandwidth(self) -> float:
        """GB/s of a plain read by as many threads as compute."""
        return self._reader.size / min(self._reader.seconds() for _ in range(3)) / 1e9

    def compare_models(self) -> None:
        """How many first tokens after random prompts are those of our server: near ties may differ."""
        prompts = [random_prompt(PROMPT // 4, self._random) for _ in range(SAME_MODEL_PROMPTS)]
        texts = {server.contestant.name: self._texts(server, prompts) for server in self.servers}
        for name, said in texts.items():
            same = sum(theirs == our for theirs, our in zip(said, texts[OURS], strict=True))
            self._results.same_first_tokens[name] = f"{same}/{len(prompts)}"
            if same < len(prompts) / 2:
                raise BenchError(f"{name} serves another model: {same} of {len(prompts)} first tokens agree")

    def _texts(self, server: Running, prompts: list[str]) -> list[str]:
        async def ask() -> list[str]:
            return [(await complete(server.port, prompt, 1)).text for prompt in prompts]

        with server.awake():
            return asyncio.run(ask())


def contestants(given: argparse.Namespace, folder: Path) -> list[Contestant]:
    """The peers that the arguments name."""
    if given.peer_python is None:
        if given.peer_server is not None:
            raise BenchError("--peer-server needs --peer-python too, which writes the GGUF file")
        return []
    gguf = gguf_of(folder, given.peer_python)
    peers = []
    if given.peer_server is not None:
        peers.append(llama_server(given.peer_server, gguf, given.threads))
    if has_server(given.peer_python):
        peers.append(llama_cpp_python(given.peer_python, gguf, given.threads))
    return peers


def measure_all(given: argparse.Namespace) -> Results:
    """Start everything, take the rounds, end everything."""
    began = time.perf_counter()
    folder = checkpoint(given.shape, given.cache)
    results = Results(machine(given.threads), given.shape, given.tokens, weight_bytes(folder))
    with contextlib.ExitStack() as stack:
        compiled = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = [f"device.threads={given.threads}", *given.set]
        ours = tokenspeed(folder, compiled, settings)
        peers = contestants(given, folder)
        with started(ours) as cold:
            results.cold_start_seconds = cold.start_seconds
        bench = Bench(given, results)
        for contestant in [ours, *peers]:
            server = stack.enter_context(started(contestant))
            results.start_seconds[contestant.name] = server.start_seconds
            bench.servers.append(server)
        bench.compare_models()
        try:
            take_rounds(bench, given, began)
        except TimeUpError:
            print("the limit is reached; the last round is not complete", file=sys.stderr)
        for server in bench.servers:
            results.peak_megabytes[server.contestant.name] = server.peak_megabytes()
    return results


def take_rounds(bench: Bench, given: argparse.Namespace, began: float) -> None:
    """As many rounds as are wanted and fit into the limit by the length of the longest so far."""
    longest = 0.0
    for number in range(given.rounds):
        start = time.perf_counter()
        if number and start + longest > began + given.limit - RESERVE:
            print(f"no time for more than {number} rounds", file=sys.stderr)
            return
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr)
        bench.round(number)
        longest = max(longest, time.perf_counter() - start)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="m135")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where checkpoints are kept")
    parser.add_argument("--peer-python", type=Path, help="a Python with gguf, and llama-cpp-python[server]")
    parser.add_argument("--peer-server", type=Path, help="llama.cpp's llama-server")
    parser.add_argument("--threads", type=int, default=2, help="that compute, in every server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="that a decoding stream generates")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    names = [measure.name for measure in MEASURES]
    parser.add_argument("--measures", nargs="*", choices=names, default=names)
    parser.add_argument("--set", action="append", default=[], help="a setting of ours: table.key=value")
    parser.add_argument("--patience", type=float, default=120, help="seconds to wait for quiet, in all")
    parser.add_argument("--limit", type=int, default=900, help="seconds that the whole run may take")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    return parser.parse_args()


class TimeUpError(BenchError):
    """The limit is reached."""


def interrupt(number: int, _: object) -> NoReturn:
    """End as by an error, so that all servers are ended too."""
    if number == signal.SIGALRM:
        raise TimeUpError("the limit was reached before anything was measured")
    raise BenchError(f"ended by {signal.Signals(number).name}")


def main() -> None:
    given = arguments()
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, interrupt)
    signal.alarm(given.limit)
    try:
        results = measure_all(given)
    except BenchError as error:
        sys.exit(f"error: {error}")
    report(results, OURS)
    if given.out is not None:
        write_json(results, given.out)


if __name__ == "__main__":
    main()
