"""Devices that can be simulated: what their steps cost, and how many tokens they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import Capacity

BLOCK_SIZE = 16


class Device(NamedTuple):
    """A model on a machine, as the scheduler knows it."""

    name: str
    costs: Costs
    capacity: Capacity


DEVICES: Mapping[str, Device] = {
    # An 8B model in bfloat16 on one H200; 131 kB of KV a token in what the weights leave, a tenth spared.
    "h200-8b": Device(
        "h200-8b",
        Costs(base=4.5e-3, row=1.2e-5, token=2.33e-5, attended=8.6e-10, read=3.1e-8),
        Capacity(blocks=900_000 // BLOCK_SIZE, block_size=BLOCK_SIZE, max_context=131_072),
    ),
    # A 135M model in bfloat16 on two cores, from what bench.cpu_serve measured; `read` is the memory's speed.
    "cpu": Device(
        "cpu",
        Costs(base=1.1e-2, row=9e-4, token=6.5e-4, attended=4.3e-7, read=1e-6),
        Capacity(blocks=65_536 // BLOCK_SIZE, block_size=BLOCK_SIZE, max_context=8192),
    ),
}
