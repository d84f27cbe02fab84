"""The families of models whose calls we know: a new one is one file and a row here."""

from __future__ import annotations

from tokenspeed.text.parsing.deepseek import DEEPSEEK, DEEPSEEK_FENCED
from tokenspeed.text.parsing.hermes import HERMES
from tokenspeed.text.parsing.llama3_json import LLAMA3_JSON
from tokenspeed.text.parsing.mistral import MISTRAL, MISTRAL_NAMED
from tokenspeed.text.parsing.pythonic import PYTHONIC
from tokenspeed.text.parsing.qwen3_coder import QWEN3_CODER

FAMILIES = {
    family.name: family
    for family in (
        HERMES,
        QWEN3_CODER,
        MISTRAL,
        MISTRAL_NAMED,
        DEEPSEEK,
        DEEPSEEK_FENCED,
        PYTHONIC,
        LLAMA3_JSON,
    )
}


def detect(template: str) -> str | None:
    """The name of the family whose calls a chat template writes, given its source; None if it has none."""
    return next((name for name, family in FAMILIES.items() if family.detects(template)), None)
