"""What can be tuned about the model, its memory and its device."""

from __future__ import annotations

from dataclasses import dataclass

from tokenspeed.options import option


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """`[model]`. An empty `path` is the built-in model; `sha256` pins files of the checkpoint by name."""

    path: str = option("")
    name: str = option("")  # as clients see it; empty: taken from the path
    revision: str = option("")  # of a hub id; empty: main
    sha256: dict[str, str] = option({})
    dtype: str = option("auto", choices=("auto", "bfloat16", "float32"))
    max_context: int = option(0, at_least=0, at_most=16_777_216)  # tokens; 0: the model's own


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """`[cache]`. The memory that holds keys and values."""

    block_size: int = option(16, at_least=8, at_most=256)  # tokens
    memory_mib: int = option(1024, at_least=1, at_most=1_048_576)
    prefix: bool = option(True)


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """`[device]`. Compute threads on the CPU; 0 takes every core there is."""

    threads: int = option(0, at_least=0, at_most=1024)


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """`[kernels]`. A pin takes that implementation or fails; auto takes the fastest that the device has."""

    decoder: str = option("auto", choices=("auto", "numba", "reference"))
