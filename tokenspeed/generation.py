"""From what a client says to text: templates, tokens, the engine, and text again."""

from __future__ import annotations

from dataclasses import dataclass

from tokenspeed.options import option


@dataclass(frozen=True, slots=True)
class Limits:
    """`[limits]`. Caps on one request that protect everybody else."""

    max_tokens: int = option(4096, at_least=1, at_most=16_777_216)  # generated, for one choice
    max_prompt_tokens: int = option(1_048_576, at_least=1, at_most=16_777_216)
    max_choices: int = option(16, at_least=1, at_most=1024)  # n x prompts of one request
    max_stops: int = option(16, at_least=0, at_most=1024)
    max_stop_chars: int = option(256, at_least=1, at_most=65536)
    max_logprobs: int = option(20, at_least=0, at_most=1000)
