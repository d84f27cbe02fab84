"""Who goes first: pure functions of sequences and time, and the options that tune them."""

from __future__ import annotations

from dataclasses import dataclass

from tokenspeed.options import option


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """`[scheduler]`. Tokens count rows of work for the device; seconds are the engine's clock."""

    max_running: int = option(256, at_least=1, at_most=4096)
    max_waiting: int = option(1024, at_least=0, at_most=1_000_000)
    step_tokens: int = option(512, at_least=16, at_most=1_048_576)
    eldest_share: float = option(0.25, at_least=0.01, at_most=1.0)
    ageing_seconds: float = option(2.0, at_least=0.0, at_most=3600.0)
    run_ahead: int = option(1, at_least=0, at_most=1)
