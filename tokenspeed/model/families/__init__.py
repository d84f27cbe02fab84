"""The families that can be served, by the architecture name that their `config.json` states.

A family is data: a function that reads its configuration into a `ModelSpec`, and the table of its tensor
names. A new one is a small file here and a row in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tokenspeed.model.families import llama, mistral, qwen2, qwen3
from tokenspeed.model.families.common import Describe, Family
from tokenspeed.model.fields import Fields

FAMILIES: Mapping[str, Describe] = MappingProxyType(
    {
        "LlamaForCausalLM": llama.describe,
        "MistralForCausalLM": mistral.describe,
        "Qwen2ForCausalLM": qwen2.describe,
        "Qwen3ForCausalLM": qwen3.describe,
    }
)


def describe(config: Fields, context: int | None = None) -> Family:
    """The family that `config` (a parsed `config.json`) belongs to.

    `context` is the longest sequence to serve in tokens; None takes the checkpoint's own. Raises
    `ModelError` for an unknown architecture and for every value that cannot be served.
    """
    names = config.texts("architectures")
    known = [name for name in names if name in FAMILIES]
    if len(known) != 1:
        raise config.error("architectures", f"is {list(names)}; supported are {', '.join(FAMILIES)}")
    return FAMILIES[known[0]](config, context)
