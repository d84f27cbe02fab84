"""What holding answers to a grammar costs: decode throughput, and time to first token.

    python -m bench structured [--streams 64] [--tokens 256] [--rounds 5] [--shape NAME | --model FOLDER]
                               [--set table.key=value] [--out FILE]

The server's own engine in this process, without HTTP: the same prompts continued by exactly so many tokens,
free and held to JSON schemas that let none of them end, in turns; without drafts, of which more may hold in
free answers than in held ones. Then the first token of one request at a time: free, held to a schema that is
compiled already, and to one that is new each time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from bench.checkpoints import SHAPES, weightless
from tokenspeed import config
from tokenspeed.build import Server, build
from tokenspeed.generation.request import GenerationRequest, SamplingFields, TextPrompt
from tokenspeed.text.formats import Format, JsonSchema

PROMPT = "def add(a, b):\n" + "    x = 1\n" * 30
ITEM = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 9999},
        "name": {"type": "string", "maxLength": 16},
        "kind": {"enum": ["red", "green", "blue"]},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "odd"]}, "maxItems": 3},
    },
    "required": ["id", "name", "kind", "tags"],
    "additionalProperties": False,
}
# None of them can end before the answer is cut. A long text allows most tokens everywhere, an object few at
# most; short texts allow those that are short enough, which takes longest to find out.
HELD = {
    "long texts": JsonSchema(
        {"type": "array", "items": {"type": "string", "minLength": 4000}, "minItems": 100}
    ),
    "short texts": JsonSchema(
        {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 100_000}
    ),
    "objects": JsonSchema({"type": "array", "items": ITEM, "minItems": 100_000}),
}
CACHE = Path.home() / ".cache" / "tokenspeed-bench"
GOAL_LOST, GOAL_FIRST = 0.05, 2.0  # of throughput; milliseconds
_numbers = count()


class Answered(NamedTuple):
    """One answer: seconds to its first token and to its last."""

    first: float
    last: float


async def answered(server: Server, tokens: int, wanted: Format | None, seed: int) -> Answered:
    """One answer of at most so many tokens."""
    request = GenerationRequest(
        f"bench-{next(_numbers)}",
        (TextPrompt(PROMPT),),
        SamplingFields(temperature=1.0, seed=seed),
        max_tokens=tokens,
        format=wanted,
        ignore_eos=True,
        speculation=False,
    )
    began = time.perf_counter()
    first = 0.0
    generation = await server.generator.start(request)
    async for _ in generation:
        first = first or time.perf_counter() - began
    if (wanted is None or wanted in HELD.values()) and generation.usage.completion != tokens:
        raise SystemExit(f"error: {generation.usage.completion} tokens came, not {tokens}")
    return Answered(first, time.perf_counter() - began)


async def rate(server: Server, streams: int, tokens: int, wanted: Format | None) -> float:
    """Tokens a second of so many streams at once, from when all have begun to when the last ends."""
    told = await asyncio.gather(*(answered(server, tokens, wanted, seed) for seed in range(streams)))
    return streams * (tokens - 1) / (max(each.last for each in told) - max(each.first for each in told))


async def throughput(server: Server, streams: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Each that is held is compared with the free ones just before and behind it."""
    free: list[float] = []
    held: dict[str, list[float]] = {name: [] for name in HELD}
    ratios: dict[str, list[float]] = {name: [] for name in HELD}
    for _ in range(rounds):
        free.append(await rate(server, streams, tokens, None))
        for name, wanted in HELD.items():
            held[name].append(await rate(server, streams, tokens, wanted))
            free.append(await rate(server, streams, tokens, None))
            ratios[name].append(2 * held[name][-1] / sum(free[-2:]))
    print(
        f"{streams} streams of {tokens} tokens, {rounds} rounds in turns; medians, and the least and largest"
    )
    print(f"  {'free':<12}{statistics.median(free):>7.0f} tok/s")
    for name, found in ratios.items():
        middle = statistics.median(found)
        told = f"{statistics.median(held[name]):>7.0f} tok/s, held / free {middle:.3f}"
        print(f"  {name:<12}{told} ({min(found):.3f} to {max(found):.3f}), lost {1.0 - middle:.1%}")
    print(f"  goal: at most {GOAL_LOST:.0%} lost\n")
    return {"free": free, "held": held, "ratios": ratios}


async def first_tokens(server: Server, rounds: int) -> dict[str, list[float]]:
    """Milliseconds to the first token of one request at a time, the three kinds in turns."""
    known = JsonSchema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    await answered(server, 4, known, 0)
    taken: dict[str, list[float]] = {"free": [], "compiled": [], "new": []}
    for number in range(8 * rounds):
        name = f"field {number} of {time.time_ns()}"
        new = JsonSchema({"type": "object", "properties": {name: {"type": "integer"}}, "required": [name]})
        kinds: Sequence[tuple[str, Format | None]] = (("free", None), ("compiled", known), ("new", new))
        for kind, wanted in kinds:
            taken[kind].append(1e3 * (await answered(server, 4, wanted, number)).first)
    base = statistics.median(taken["free"])
    print("the first token of one request at a time, median of milliseconds")
    for kind, times in taken.items():
        middle = statistics.median(times)
        print(f"  {kind:<10}{middle:>7.2f}  {'' if kind == 'free' else f'{middle - base:+.2f}'}")
    print(f"  goal: at most {GOAL_FIRST:+.0f} for a schema that is compiled already")
    return taken


async def measure(server: Server, streams: int, tokens: int, rounds: int) -> dict[str, Any]:
    server.engine.start()
    try:
        for wanted in (None, *HELD.values()):
            await rate(server, streams, 16, wanted)  # what is compiled and captured at the first use
        return {
            "throughput": await throughput(server, streams, tokens, rounds),
            "first_token_ms": await first_tokens(server, rounds),
        }
    finally:
        await server.engine.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench structured", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of that shape")
    parser.add_argument("--model", help="a checkpoint; default: the built-in model")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = list(options.set)
    if options.shape:
        settings += [f"model.path={weightless(options.shape, CACHE)}", "model.weights=random"]
    elif options.model:
        settings.append(f"model.path={options.model}")
    server = build(
        config.load(None, settings), stage=lambda name: lambda done, total: None, say=lambda line: None
    )
    told = asyncio.run(measure(server, options.streams, options.tokens, options.rounds))
    if options.out is not None:
        options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
