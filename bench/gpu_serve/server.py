"""Our server as a process: started on a folder, asked for its metrics, ended."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from bench.client import HOST, BenchError, answers
from bench.peers import Contestant, Running
from bench.serve.client import connected
from bench.serve.probe import COMPLETIONS, ask, model_of

SCRAPE_SECONDS = 10.0
FIRST_PROMPT = 16  # token ids of the request that ends a start


class Server(Running):
    """Started is when it has answered once; `ready_seconds` is when it said that it would."""

    def __init__(self, contestant: Contestant, log: IO[bytes], patience: float) -> None:
        self.ready_seconds = 0.0
        self._patience = patience
        super().__init__(contestant, log)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    async def _ready(self, began: float) -> None:
        while not await answers(self.port, self.contestant.ready_path):
            if self.died(0.0):
                raise BenchError(f"the server ended at its start:\n{self.log_tail()}")
            if time.perf_counter() - began > self._patience:
                raise BenchError(f"the server is not ready after {self._patience:.0f} s:\n{self.log_tail()}")
            await asyncio.sleep(0.01)
        self.ready_seconds = time.perf_counter() - began
        await first_token(self.url, None, self._patience)

    def died(self, seconds: float) -> bool:
        """Whether it has ended, or does within so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def serving(folder: Path, settings: Sequence[str], flags: Sequence[str]) -> Contestant:
    """`tokenspeed serve FOLDER`, with settings as `--set` and more options."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = (
        sys.executable,
        "-m",
        "tokenspeed",
        "serve",
        str(folder),
        "--port",
        "{port}",
        *overrides,
        *flags,
    )
    return Contestant("tokenspeed", command, "/ready")


@contextlib.contextmanager
def started(contestant: Contestant, patience: float) -> Iterator[Server]:
    """A server that has answered once; ended behind, whatever happens."""
    with tempfile.TemporaryFile() as log:
        server = Server(contestant, log, patience)
        try:
            yield server
        finally:
            server.close()


async def first_token(url: str, api_key: str | None, patience: float) -> str:
    """Have a first small request answered; the name of the model that did. Raises BenchError."""
    async with connected(url, api_key, patience) as client:
        model = await model_of(client)
        outcome = await ask(client, COMPLETIONS, body(model, list(range(8, 8 + FIRST_PROMPT)), 1, 0.0))
    if outcome.error is not None:
        raise BenchError(f"{url}{COMPLETIONS} refuses a small request of token ids: {outcome.error}")
    return model


def body(model: str, prompt: list[int], max_tokens: int, temperature: float) -> dict[str, object]:
    """A streamed completion that ends at `max_tokens` and tells its usage."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def scrape(url: str) -> dict[str, float]:
    """What `/metrics` tells, histograms without their buckets; nothing where there is no such page."""
    address = url.removesuffix("/v1") + "/metrics"
    try:
        with urllib.request.urlopen(address, timeout=SCRAPE_SECONDS) as response:
            lines = response.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, float] = {}
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#") and "_bucket" not in name and "_created" not in name:
            with contextlib.suppress(ValueError):
                found[name] = float(value)
    return found


def risen(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """By how much each has changed, those that have."""
    changes = {name: round(value - before.get(name, 0.0), 9) for name, value in after.items()}
    return {name: change for name, change in changes.items() if change}
