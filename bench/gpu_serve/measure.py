"""Plays plans at one endpoint: warm up, all phases, and what the server says of itself meanwhile."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from bench.gpu_serve.clients import Clients, Order
from bench.gpu_serve.plans import Plan
from bench.gpu_serve.server import body, risen, scrape
from bench.serve.recording import Outcome
from bench.serve.workloads import Arrival

WARM_SECONDS = 60.0  # for a warm-up, at most
LEAST_SECONDS = 5.0  # with less left a workload is not begun


@dataclass(slots=True)
class Played:
    """What became of a workload."""

    plan: Plan
    outcomes: list[Outcome] = field(default_factory=list)
    warm_up_failed: int = 0
    not_run: str | None = None  # why
    metrics: dict[str, float] = field(default_factory=dict)  # by how much the server's own have risen

    @property
    def failed(self) -> int:
        return sum(outcome.error is not None for outcome in self.outcomes)


class Player:
    """Sends what plans say to one endpoint. No two prompts of any run are alike."""

    def __init__(self, clients: Clients, url: str, model: str, vocab: int) -> None:
        self._clients, self._url, self._model = clients, url, model
        self._ids = vocab // 10, vocab - vocab // 10  # special tokens are at either end
        self._random = np.random.default_rng(secrets.randbits(64))

    def play(self, plan: Plan, left: float) -> Played:
        """All of it, within the plan's timeout and the seconds that are left."""
        played = Played(plan)
        until = time.monotonic() + left
        if left < LEAST_SECONDS:
            played.not_run = "no time left"
            return played
        warmed = self._send(plan, plan.warm_up(), min(WARM_SECONDS, left))
        played.warm_up_failed = sum(outcome.error is not None for outcome in warmed)
        before = scrape(self._url)
        until = min(until, time.monotonic() + plan.timeout)
        for number, phase in enumerate(plan.phases()):
            remaining = until - time.monotonic()
            if remaining < 1.0:
                played.not_run = f"no time left behind phase {number} of {len(plan.phases())}"
                break
            outcomes = self._send(plan, phase, remaining)
            for outcome in outcomes:
                outcome.phase = number
            played.outcomes += outcomes
        played.metrics = risen(before, scrape(self._url))
        return played

    def _send(self, plan: Plan, arrivals: Sequence[Arrival], timeout: float) -> list[Outcome]:
        orders = [
            Order(arrival.at, arrival.kind, arrival.max_tokens, self._body(arrival, plan.temperature))
            for arrival in arrivals
        ]
        return self._clients.play(orders, timeout)

    def _body(self, arrival: Arrival, temperature: float) -> bytes:
        prompt = self._random.integers(*self._ids, arrival.prompt_tokens).tolist()
        return msgspec.json.encode(body(self._model, prompt, arrival.max_tokens, temperature))
