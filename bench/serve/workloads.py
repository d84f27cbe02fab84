"""What is asked, and when: pure, and the same for the same seed.

A workload is a list of arrivals in phases. Inside a phase requests arrive when the schedule says, whatever
became of earlier ones; a phase begins when every request of the one before has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from bench.client import BenchError


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. Without `prompt` or `messages` its text is random words of `prompt_tokens` tokens."""

    at: float  # seconds after the start of its phase
    kind: str
    max_tokens: int
    prompt_tokens: int = 0
    phase: int = 0
    prompt: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    body: Mapping[str, Any] = field(default_factory=dict)  # more fields of the request


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrivals, sorted by phase and time."""

    name: str
    arrivals: tuple[Arrival, ...]

    def phases(self) -> list[list[tuple[int, Arrival]]]:
        """Arrivals with their index in the workload, phase by phase."""
        found: dict[int, list[tuple[int, Arrival]]] = {}
        for index, arrival in enumerate(self.arrivals):
            found.setdefault(arrival.phase, []).append((index, arrival))
        return list(found.values())

    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(arrival.kind for arrival in self.arrivals))


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a workload is. Each workload uses some of these; `RECIPES` says which, with its defaults."""

    rate: float = 0.0  # short requests a second
    duration: float = 0.0  # seconds in which requests arrive
    prompt: range = range(0)  # tokens, long prompts aside
    output: range = range(0)  # tokens of an answer
    long_prompt: int = 0
    long_output: int = 0
    long_every: float = 0.0  # seconds between bursts of long prompts
    long_count: int = 0  # of a burst
    ladder: tuple[int, ...] = ()  # tokens of prompts, one after the other
    streams: tuple[int, ...] = ()  # at once
    requests: int = 0
    seed: int = 0


def chat(scale: Scale) -> list[Arrival]:
    """Short chats at random times (Poisson)."""
    return _short(scale, Random(scale.seed))


def mixed(scale: Scale) -> list[Arrival]:
    """Short chats at random times while long prompts arrive in bursts, the first half an interval in."""
    arrivals = _short(scale, Random(scale.seed))
    at = scale.long_every / 2
    while at < scale.duration:
        burst = Arrival(at, "long", scale.long_output, scale.long_prompt)
        arrivals += [burst] * scale.long_count
        at += scale.long_every
    return sorted(arrivals, key=lambda arrival: arrival.at)


def prefill(scale: Scale) -> list[Arrival]:
    """A ladder of prompts, one request at a time."""
    random = Random(scale.seed)
    rungs = [tokens for tokens in scale.ladder for _ in range(scale.requests)]
    return [
        Arrival(0.0, f"{tokens:,} tokens", random.choice(scale.output), tokens, phase)
        for phase, tokens in enumerate(rungs)
    ]


def streams(scale: Scale) -> list[Arrival]:
    """So many requests at once, then so many more."""
    random = Random(scale.seed)
    return [
        Arrival(0.0, stream_kind(count), random.choice(scale.output), random.choice(scale.prompt), phase)
        for phase, count in enumerate(scale.streams)
        for _ in range(count)
    ]


def throughput(scale: Scale) -> list[Arrival]:
    """Everything at once; prompts and answers of all lengths."""
    random = Random(scale.seed)
    return [
        Arrival(0.0, "all", random.choice(scale.output), random.choice(scale.prompt))
        for _ in range(scale.requests)
    ]


def stream_kind(count: int) -> str:
    """What requests of a phase with so many streams are called."""
    return "1 stream" if count == 1 else f"{count} streams"


def _short(scale: Scale, random: Random) -> list[Arrival]:
    arrivals = []
    at = random.expovariate(scale.rate)
    while at < scale.duration:
        arrivals.append(Arrival(at, "short", random.choice(scale.output), random.choice(scale.prompt)))
        at += random.expovariate(scale.rate)
    return arrivals


class Recipe(NamedTuple):
    """A workload that can be named: how it is made, and what of `Scale` it uses with which defaults."""

    make: Callable[[Scale], list[Arrival]]
    defaults: Mapping[str, Any]
    chats: bool  # sent as a conversation where the endpoint takes both


def up_to(least: int, most: int) -> range:
    """Both ends included."""
    return range(least, most + 1)


SHORT = {"rate": 4.0, "duration": 24.0, "prompt": up_to(64, 400), "output": up_to(96, 96)}
LONG = {"long_prompt": 30_000, "long_output": 64, "long_every": 3.0, "long_count": 2}
LADDER = {"ladder": (128, 512, 2048, 8192, 30_000), "requests": 3, "output": up_to(1, 1)}
STREAMS = {"streams": (1, 8, 64, 256), "prompt": up_to(512, 512), "output": up_to(256, 256)}
THROUGHPUT = {"requests": 256, "prompt": up_to(100, 1024), "output": up_to(100, 1024)}
RECIPES = {
    "chat": Recipe(chat, SHORT, chats=True),
    "mixed": Recipe(mixed, {**SHORT, "rate": 16.0, **LONG}, chats=True),
    "prefill": Recipe(prefill, LADDER, chats=False),
    "streams": Recipe(streams, STREAMS, chats=False),
    "throughput": Recipe(throughput, THROUGHPUT, chats=False),
}


def make(name: str, given: Mapping[str, Any], seed: int) -> Workload:
    """The named workload, with its defaults replaced by what was given.

    Raises BenchError where something was given that this workload does not use, or that it cannot be made of.
    """
    recipe = RECIPES[name]
    for setting in given:
        if setting not in recipe.defaults:
            option = "--" + setting.replace("_", "-")
            raise BenchError(f"{option} has no effect on --workload {name}")
    scale = Scale(**{**recipe.defaults, **given}, seed=seed)
    arrivals = recipe.make(scale)
    if not arrivals:
        raise BenchError(f"--workload {name}: nobody arrives within {scale.duration:g} s; raise --duration")
    return Workload(name, tuple(arrivals))
