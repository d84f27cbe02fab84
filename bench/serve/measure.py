"""From options to a recording: reach the endpoints, learn what they take, warm them up, take the repeats."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import numpy as np
from rich.console import Console

from bench.client import BenchError
from bench.serve import light
from bench.serve.arguments import Options, Target
from bench.serve.client import Client, connected
from bench.serve.probe import CHAT, COMPLETIONS, Prober, model_of
from bench.serve.recording import SCHEMA, Endpoint, Recording, rounded
from bench.serve.report import live
from bench.serve.run import Contestant, Runner
from bench.serve.workloads import RECIPES, Workload

INTERRUPTED = "Ctrl-C"


async def measure(options: Options, console: Console) -> Recording:
    """Everything. Raises BenchError where an endpoint cannot be measured at all."""
    bound = None if options.light is None else light.resolve(*options.light)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connected(target.url, target.api_key, options.timeout))
            for target in options.targets
        ]
        endpoints = await find(options, clients)
        contestants = [
            Contestant(client, endpoint, options.extra)
            for client, endpoint in zip(clients, endpoints, strict=True)
        ]
        runner = Runner(contestants, options.workload)
        async with live(runner.tally, console):
            await runner.warm_up(options.warm_ups)
            await _interruptible(runner, options.repeats)
    found = Recording(
        schema=SCHEMA,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        workload=options.workload.name,
        settings=options.settings,
        kinds=list(options.workload.kinds()),
        seed=options.seed,
        repeats_wanted=options.repeats,
        objective=options.objective,
        endpoints=endpoints,
        client=_machine(),
        prompt_tokens=wanted_tokens(options.workload),
        repeats=runner.repeats,
        light=bound,
        ended_early=runner.ended_early,
    )
    return rounded(found)


async def _interruptible(runner: Runner, repeats: int) -> None:
    """Until the end or the first Ctrl-C, which cancels this task; a second one is as deadly as ever."""
    try:
        await runner.run(repeats)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        runner.ended_early = INTERRUPTED


async def find(options: Options, clients: Sequence[Client]) -> list[Endpoint]:
    """Every endpoint, at a path that all of them have."""
    probers = [
        Prober(client, target.name, target.model or await model_of(client), options.extra)
        for client, target in zip(clients, options.targets, strict=True)
    ]
    for path in [options.path] if options.path else preferred_paths(options.workload):
        found = [endpoint for prober in probers if (endpoint := await prober.find(path)) is not None]
        if len(found) == len(probers):
            return found
    raise BenchError(f"{_all(options.targets)}: no {options.path or 'path for this workload that all have'}")


def preferred_paths(workload: Workload) -> list[str]:
    """The path that suits the workload, and the other where its text can be sent there too."""
    given = [arrival for arrival in workload.arrivals if not arrival.prompt_tokens]
    if given:
        return [CHAT] if given[0].messages is not None else [COMPLETIONS]
    recipe = RECIPES.get(workload.name)
    return [CHAT, COMPLETIONS] if recipe is None or recipe.chats else [COMPLETIONS, CHAT]


def wanted_tokens(workload: Workload) -> dict[str, float]:
    """The mean wanted length of prompts, by kind; none of prompts that were given as text."""
    wanted: dict[str, list[int]] = {}
    for arrival in workload.arrivals:
        if arrival.prompt_tokens:
            wanted.setdefault(arrival.kind, []).append(arrival.prompt_tokens)
    return {kind: float(np.mean(tokens)) for kind, tokens in wanted.items()}


def _all(targets: Sequence[Target]) -> str:
    return " and ".join(target.url for target in targets)


def _machine() -> dict[str, str]:
    return {
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
