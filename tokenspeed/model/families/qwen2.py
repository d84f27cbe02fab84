"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from tokenspeed.model.families.common import Family, Traits, decoder, layered_windows
from tokenspeed.model.fields import Fields


def describe(config: Fields, context: int | None) -> Family:
    """Biases on query, key and value alone; a sliding window on some layers where it is switched on."""
    return decoder(config, context, Traits(name="qwen2", windows=layered_windows(config), qkv_bias=True))
