"""Llama 2, 3, 3.1 and 3.2."""

from __future__ import annotations

from tokenspeed.model.families.common import Family, Traits, decoder, full_attention
from tokenspeed.model.fields import Fields


def describe(config: Fields, context: int | None) -> Family:
    """Full attention; biases on all four attention matrices or on the MLP where the configuration says so."""
    bias = config.flag("attention_bias", False)
    traits = Traits(
        name="llama",
        windows=full_attention(config),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
    )
    return decoder(config, context, traits)
