"""Qwen3, dense."""

from __future__ import annotations

from tokenspeed.model.families.common import Family, Traits, decoder, layered_windows
from tokenspeed.model.fields import Fields


def describe(config: Fields, context: int | None) -> Family:
    """Query and key are normalised per head; heads have 128 elements unless the configuration says."""
    bias = config.flag("attention_bias", False)
    traits = Traits(
        name="qwen3",
        windows=layered_windows(config),
        head_dim=128,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )
    return decoder(config, context, traits)
