"""What can be tuned about the model, its memory and its device."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenspeed.options import option

DEVICE_NAMES = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """`[model]`. An empty `path` is the built-in model; `sha256` pins files of the checkpoint by name.

    With random `weights` the folder needs no more than a configuration and a tokenizer.
    """

    path: str = option("")
    name: str = option("")  # as clients see it; empty: taken from the path
    aliases: list[str] = option([])  # further names that clients may use
    any_name: bool = option(False)  # whether any name means this model
    revision: str = option("")  # of a hub id; empty: main
    sha256: dict[str, str] = option({})
    weights: str = option("checkpoint", choices=("checkpoint", "random"))
    dtype: str = option("auto", choices=("auto", "bfloat16", "float16", "float32"))
    max_context: int = option(0, at_least=0, at_most=16_777_216)  # tokens; 0: the model's own


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """`[cache]`. The memory that holds keys and values."""

    block_size: int = option(16, at_least=8, at_most=256)  # tokens
    memory_mib: int = option(0, at_least=0, at_most=1_048_576)  # 0: what a GPU has left; on a CPU 1024
    prefix: bool = option(True)


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """`[device]`. What computes: a GPU where there is one that can serve, else the CPU."""

    name: str = option("auto")  # auto, cpu, cuda or cuda:N
    threads: int = option(0, at_least=0, at_most=1024)  # on the CPU; 0 takes every core there is
    memory_fraction: float = option(0.9, at_least=0.05, at_most=1.0)  # of what a GPU has free at the start
    graphs_mib: int = option(1024, at_least=0, at_most=65_536)  # 0: no graphs


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """`[kernels]`. A pin takes that implementation or fails; auto takes the fastest that the device has.

    `decoder` is the CPU's, all others are operations on a GPU.
    """

    decoder: str = option("auto", choices=("auto", "numba", "reference"))
    paged_attention: str = option("auto", choices=("auto", "cupy", "numba", "reference"))
    verify_attention: str = option("auto", choices=("auto", "cupy", "numba", "reference"))
    decode_attention: str = option("auto", choices=("auto", "cupy", "apart"))
    prefill_attention: str = option("auto", choices=("auto", "cupy", "torch", "reference"))
    products: str = option("auto", choices=("auto", "cupy", "torch"))
    batch_products: str = option("auto", choices=("auto", "cupy", "torch"))
    gated_linear: str = option("auto", choices=("auto", "cupy", "apart"))
    rms_norm: str = option("auto", choices=("auto", "cupy", "reference"))
    rope_write_kv: str = option("auto", choices=("auto", "cupy", "reference"))
    silu_mul: str = option("auto", choices=("auto", "cupy", "reference"))
    embed: str = option("auto", choices=("auto", "cupy", "reference"))
    sample: str = option("auto", choices=("auto", "cupy", "reference"))
    adjust_logits: str = option("auto", choices=("auto", "cupy", "reference"))
    follow_drafts: str = option("auto", choices=("auto", "cupy", "reference"))
