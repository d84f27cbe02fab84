"""What arrives: the load generator's own arrivals, as jobs for the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from random import Random
from typing import Any

from bench.client import BenchError
from bench.serve.workloads import RECIPES, Arrival, Recipe, Scale, up_to
from tokenspeed.core.request import Request, Sampling
from tokenspeed.sim.backend import token
from tokenspeed.sim.simulate import Job


def bursts(scale: Scale) -> list[Arrival]:
    """So many requests together, then silence, then again."""
    random = Random(scale.seed)
    arrivals = []
    for number in range(ceil(scale.duration / scale.long_every)):
        for _ in range(scale.requests):
            prompt, answer = random.choice(scale.prompt), random.choice(scale.output)
            arrivals.append(Arrival(number * scale.long_every, "short", answer, prompt))
    return arrivals


BURSTS = {
    "duration": 24.0,
    "requests": 64,
    "long_every": 4.0,
    "prompt": up_to(64, 2000),
    "output": up_to(96, 96),
}
WORKLOADS: Mapping[str, Recipe] = {
    "poisson": RECIPES["chat"],
    "bursts": Recipe(bursts, BURSTS, chats=True),
    "mixed": RECIPES["mixed"],
}
# What differs from the defaults on a device that is too slow, and holds too little, for them.
SLOW = {"rate": 2.0, "prompt": up_to(16, 100), "output": up_to(24, 24)}
SCALED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "cpu": {
        "poisson": SLOW,
        "bursts": {"requests": 8, "prompt": up_to(16, 500), "output": up_to(24, 24)},
        "mixed": {**SLOW, "duration": 48.0, "long_prompt": 2000, "long_output": 16, "long_every": 12.0},
    }
}


def settings_of(name: str, device: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A workload's settings: its defaults, what the device makes of them, and what was given.

    Raises BenchError where something was given that this workload does not use.
    """
    settings: dict[str, Any] = {**WORKLOADS[name].defaults, **SCALED.get(device, {}).get(name, {})}
    for setting in given:
        if setting not in settings:
            raise BenchError(f"--{setting.replace('_', '-')} has no effect on --workload {name}")
    return {**settings, **given}


def jobs_of(name: str, settings: Mapping[str, Any], seed: int) -> list[Job]:
    """The same for the same seed. Prompts share nothing. Raises BenchError if nobody arrives."""
    arrivals = WORKLOADS[name].make(Scale(**settings, seed=seed))
    if not arrivals:
        raise BenchError(
            f"--workload {name}: nobody arrives within {settings['duration']:g} s; raise --duration"
        )
    return [_job(number, arrival) for number, arrival in enumerate(arrivals)]


def _job(number: int, arrival: Arrival) -> Job:
    prompt = tuple([token(number, position) for position in range(arrival.prompt_tokens)])
    request = Request(str(number), prompt, arrival.max_tokens, Sampling(0.0, seed=number), arrival=arrival.at)
    return Job(arrival.at, arrival.kind, request)
