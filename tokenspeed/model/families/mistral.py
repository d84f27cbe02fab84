"""Mistral 7B and its successors of the same architecture."""

from __future__ import annotations

from tokenspeed.model.families.common import Family, Traits, decoder, layer_count, sliding_window
from tokenspeed.model.fields import Fields


def describe(config: Fields, context: int | None) -> Family:
    """One sliding window on every layer, or none where it is null (from v0.2 on).

    A configuration that leaves `num_key_value_heads` out means the 8 of the first release.
    """
    windows = (sliding_window(config),) * layer_count(config)
    kv_heads = None if "num_key_value_heads" in config.values else 8
    return decoder(config, context, Traits(name="mistral", windows=windows, kv_heads=kv_heads))
