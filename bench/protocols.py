"""What a streamed chunk costs the server in every protocol, and how many streams one core keeps up with.

    python -m bench protocols [--streams 64] [--tokens 400] [--rounds 3] [--out FILE]

The server is real but for its device, which answers a step of any size after 10 ms; it runs in a process of
its own, the clients in another. CPU is the server process's own account. What the engine and the text take
without any protocol is measured in the same way, inside the server, and told beside it: the rest is HTTP and
the protocol. Then 256 streams at 100 tokens a second each: how much longer than 10 ms the steps take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import multiprocessing.connection
import os
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from bench.client import HOST
from tokenspeed import builtin
from tokenspeed.api.app import create_app
from tokenspeed.api.models import ServedModel
from tokenspeed.api.options import ServerOptions
from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import Capacity, Draw
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import Sampling
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.metrics import EngineMetrics
from tokenspeed.engine.observer import Step
from tokenspeed.engine.timeline import Timelines
from tokenspeed.generation.embedding import Embedder, EmbeddingOptions
from tokenspeed.generation.generator import Generator
from tokenspeed.generation.request import ChatPrompt, GenerationRequest, Limits
from tokenspeed.generation.style import Style
from tokenspeed.serving import settle_interpreter
from tokenspeed.sim.backend import SimBackend
from tokenspeed.text.grammar import Grammars
from tokenspeed.text.template import ChatTemplate
from tokenspeed.text.tokenizer import Tokenizer

STEP = 0.010  # seconds
CONTEXT = 4096
MESSAGES = [{"role": "user", "content": "Write a function that adds two numbers."}]
INSIDE = "no protocol"
TEXT = __doc__ * 10  # what the model says
SHORTER = 4  # times, beside the answers asked for: what a request itself costs is no chunk's
GOAL = 15.0  # microseconds of CPU a chunk


class Protocol(NamedTuple):
    """How to ask for so many tokens, and what every chunk of text has."""

    path: str
    body: Mapping[str, Any]
    limit: tuple[str, ...]  # where in the body the number of tokens goes
    mark: bytes


PROTOCOLS: Mapping[str, Protocol] = {
    "chat": Protocol("/v1/chat/completions", {"messages": MESSAGES}, ("max_tokens",), b'"delta":{'),
    "completions": Protocol("/v1/completions", {"prompt": "def add(a, b):"}, ("max_tokens",), b'"text":'),
    "responses": Protocol(
        "/v1/responses",
        {"input": "Write a function.", "store": False},
        ("max_output_tokens",),
        b"event: response.output_text.delta",
    ),
    "messages": Protocol(
        "/v1/messages", {"messages": MESSAGES}, ("max_tokens",), b"event: content_block_delta"
    ),
    "ollama": Protocol("/api/chat", {"messages": MESSAGES}, ("options", "num_predict"), b'"done":false'),
    "llama.cpp": Protocol("/completion", {"prompt": "def add(a, b):"}, ("n_predict",), b"data: "),
    "fim": Protocol(
        "/v1/fim/completions", {"prompt": "def add(", "suffix": "return a"}, ("max_tokens",), b'"delta":{'
    ),
}


# -- the server's process ------------------------------------------------------------------------------


class Steps:
    """An observer that notes when steps are done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def submitted(self, request: Any, predicted: float, now: float) -> None: ...

    def refused(self, request: Any, error: Exception, now: float) -> None: ...

    def stepped(self, step: Step) -> None:
        self.times.append(time.perf_counter())

    def step_failed(self, plan: Any, now: float) -> None: ...

    def delivered(self, happenings: Any, now: float) -> None: ...


class Assembled(NamedTuple):
    """A server whose device answers each step after the same time."""

    engine: Engine
    generator: Generator
    app: ASGIApp


def serve(pipe: multiprocessing.connection.Connection, streams: int) -> None:
    """Serve until the pipe says stop; it is told the port, and asked for CPU seconds and times of steps."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    uvloop.run(_serve(pipe, streams))


def assembled(streams: int, steps: Steps) -> Assembled:
    tokenizer, template = Tokenizer.load(builtin.MODEL), ChatTemplate.load(builtin.MODEL)
    words = tokenizer.encode(TEXT, add_special=False, parse_special=False)

    def says(draw: Draw) -> int:
        return words[draw.position % len(words)]

    backend = SimBackend(
        Capacity(streams * 64, 64, CONTEXT),
        vocabulary=tokenizer.vocab_size,
        costs=Costs(STEP, 0.0, 0.0, 0.0, 0.0),
        says=says,
    )
    scheduler = Scheduler(backend.capacity, SchedulerOptions(max_running=streams, max_waiting=2 * streams))
    metrics, timelines = EngineMetrics(scheduler, clock=time.monotonic), Timelines()
    engine = Engine(scheduler, backend, [metrics, timelines, steps], clock=time.monotonic)
    eos = sorted(tokenizer.eos_ids)
    generator = Generator(
        engine,
        tokenizer,
        template,
        eos_ids=eos,
        defaults=Sampling(temperature=0.0),
        limits=Limits(),
        model_max_context=CONTEXT,
        vocab_size=tokenizer.vocab_size,
        style=Style.find(template.source, tokenizer),
        grammars=Grammars(tokenizer, vocab_size=tokenizer.vocab_size, eos_ids=eos),
    )
    embedder = Embedder(
        engine,
        tokenizer,
        options=EmbeddingOptions(),
        limits=Limits(),
        model_max_context=CONTEXT,
        vocab_size=tokenizer.vocab_size,
        hidden_size=1,
    )
    app = create_app(
        generator,
        embedder,
        model=ServedModel("bench", "bench", CONTEXT, 0),
        options=ServerOptions(),
        registry=CollectorRegistry(),
        ready=lambda: engine.ready,
        keys={},
        timeline=timelines.get,
        store=None,
    )
    return Assembled(engine, generator, app)


async def _serve(pipe: multiprocessing.connection.Connection, streams: int) -> None:
    steps = Steps()
    engine, generator, app = assembled(streams, steps)
    settle_interpreter()
    engine.start()
    with socket.create_server((HOST, 0), backlog=1024) as listening:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", server_header=False)
        http = uvicorn.Server(config)
        serving = asyncio.create_task(http.serve(sockets=[listening]))
        pipe.send(listening.getsockname()[1])
        while (asked := await asyncio.to_thread(pipe.recv)) != "stop":
            if asked == "figures":
                pipe.send((time.process_time(), list(steps.times)))
                steps.times.clear()
            else:
                pipe.send(await _inside(generator, *asked))
        http.should_exit = True
        await serving
    await engine.stop()


async def _inside(generator: Generator, streams: int, tokens: int) -> int:
    """The same answers without any protocol; how many pieces of text they came in."""

    async def one(number: int) -> int:
        prompt = ChatPrompt(MESSAGES)
        request = GenerationRequest(f"inside-{time.monotonic_ns()}-{number}", (prompt,), max_tokens=tokens)
        generation = await generator.start(request)
        return sum([len(outputs) async for outputs in generation])

    return sum(await asyncio.gather(*map(one, range(streams))))


# -- the clients' process ------------------------------------------------------------------------------


class Reader(asyncio.Protocol):
    """Sends a request, and keeps what comes until the server closes."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.pieces: list[bytes] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's is none by its classes

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


def request_of(protocol: Protocol, tokens: int) -> bytes:
    """The bytes of a request for so many tokens."""
    body: dict[str, Any] = json.loads(json.dumps({**protocol.body, "stream": True, "model": "bench"}))
    place = body
    for name in protocol.limit[:-1]:
        place = place.setdefault(name, {})
    place[protocol.limit[-1]] = tokens
    payload = json.dumps(body).encode()
    head = f"POST {protocol.path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n"
    return (
        f"{head}content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n".encode() + payload
    )


async def load(port: int, protocol: Protocol, streams: int, tokens: int) -> int:
    """So many streams at once; the chunks that they had."""
    loop = asyncio.get_running_loop()
    request = request_of(protocol, tokens)
    readers = [(await loop.create_connection(lambda: Reader(request), HOST, port))[1] for _ in range(streams)]
    await asyncio.gather(*(reader.closed for reader in readers))
    chunks = sum(b"".join(reader.pieces).count(protocol.mark) for reader in readers)
    if chunks < streams:
        raise SystemExit(f"error: {protocol.path} gave {readers[0].pieces[:1]!r}")
    return chunks


class Load(NamedTuple):
    """One load: the server's CPU seconds, the chunks it sent, and seconds between its steps."""

    cpu: float
    chunks: int
    steps: list[float]


class Cost(NamedTuple):
    """Microseconds of CPU for a chunk, and for a request beside its chunks."""

    chunk: float
    request: float


class Bench:
    """The server's process, and what it is asked."""

    def __init__(self, streams: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, streams), daemon=True)
        self._process.start()
        self._port: int = self._pipe.recv()

    def cost(self, name: str, streams: int, tokens: int) -> Cost:
        """By two loads, of long and of short answers."""
        long, short = (self.load(name, streams, count) for count in (tokens, tokens // SHORTER))
        chunk = (long.cpu - short.cpu) / (long.chunks - short.chunks)
        return Cost(1e6 * chunk, 1e6 * (short.cpu - chunk * short.chunks) / streams)

    def load(self, name: str, streams: int, tokens: int) -> Load:
        before, _ = self._ask("figures")
        if name == INSIDE:
            chunks = self._ask((streams, tokens))
        else:
            chunks = uvloop.run(load(self._port, PROTOCOLS[name], streams, tokens))
        after, times = self._ask("figures")
        gaps = [later - earlier for earlier, later in pairwise(times)]
        return Load(after - before, chunks, gaps)

    def close(self) -> None:
        self._pipe.send("stop")
        self._process.join()

    def _ask(self, question: object) -> Any:
        self._pipe.send(question)
        return self._pipe.recv()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench protocols", description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--many", type=int, default=256, help="streams of the second part")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=sorted(PROTOCOLS), default=list(PROTOCOLS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bench = Bench(max(options.streams, options.many))
    told = {
        "costs": costs(bench, options.only, options.streams, options.tokens, options.rounds),
        "many": many(bench, options.only, options.many, options.tokens),
    }
    bench.close()
    if options.out is not None:
        options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def costs(bench: Bench, only: Sequence[str], streams: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Every protocol in turn, in each round; medians."""
    names = [INSIDE, *only]
    for name in names:
        bench.load(name, 4, 20)  # what is built at the first use
    taken: dict[str, list[Cost]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            taken[name].append(bench.cost(name, streams, tokens))
    inside = _medians(taken[INSIDE])
    print(f"{streams} streams of up to {tokens} tokens: CPU of the server in microseconds, beside what")
    print(f"engine and text take by themselves: {inside.chunk:.1f} a chunk, {inside.request:.0f} a request\n")
    print(f"{'':<14}{'a chunk':>8}   {'least to largest':<18}{'a request':>10}")
    rows = {}
    for name, each in taken.items():
        chunks = sorted(cost.chunk - (inside.chunk if name != INSIDE else 0.0) for cost in each)
        middle = _medians(each)
        rows[name] = {
            "chunk_us": [cost.chunk for cost in each],
            "request_us": [cost.request for cost in each],
        }
        if name != INSIDE:
            spread = f"{chunks[0]:.1f} to {chunks[-1]:.1f}"
            own = middle.request - inside.request
            print(f"{name:<14}{middle.chunk - inside.chunk:>8.1f}   {spread:<18}{own:>10.0f}")
    print(f"\nGoal: at most {GOAL:g} a chunk.\n")
    return rows


def _medians(costs: Sequence[Cost]) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*costs, strict=True)))


def many(bench: Bench, only: Sequence[str], streams: int, tokens: int) -> dict[str, Any]:
    """How far steps fall behind their 10 ms, for streams that each have a token in every one of them."""
    print(f"{streams} streams, a step every {1e3 * STEP:g} ms: what steps took, in ms\n")
    print(f"{'':<14}{'median':>8}{'p99':>8}{'chunks of tokens':>18}")
    rows = {}
    for name in only:
        loaded = bench.load(name, streams, tokens)
        gaps = sorted(loaded.steps)
        median, high = statistics.median(gaps), gaps[int(0.99 * (len(gaps) - 1))]
        share = loaded.chunks / (streams * tokens)
        print(f"{name:<14}{1e3 * median:>8.2f}{1e3 * high:>8.2f}{share:>17.0%}")
        rows[name] = {"median_ms": 1e3 * median, "p99_ms": 1e3 * high, "chunks_of_tokens": share}
    return rows


if __name__ == "__main__":
    main()
