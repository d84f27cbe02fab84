"""The resolver: which implementation computes, chosen once at start. Only here are they known by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from tokenspeed.errors import ModelError
from tokenspeed.model.batch import Decoder
from tokenspeed.model.spec import ModelSpec
from tokenspeed.model.torch_decoder import TorchDecoder
from tokenspeed.model.weights import Weights

DECODERS = ("auto", "numba", "reference")
DTYPES = ("auto", "bfloat16", "float32")

Dtype = Literal["bfloat16", "float32"]
Progress = Callable[[int], None]  # bytes packed so far
BLOCK = 16  # tokens that the compiled decoder attends at once: `model/cpu/tile.py` has it as well


class Chosen(NamedTuple):
    """A decoder for this device; `description` tells in one line what was chosen and why."""

    decoder: Decoder
    name: str
    description: str


def choose_decoder(
    spec: ModelSpec,
    weights: Weights,
    *,
    pin: str = "auto",
    dtype: str = "auto",
    block_size: int,
    threads: int,
    progress: Progress | None = None,
) -> Chosen:
    """The decoder that `[kernels] decoder` pins, or the fastest that the CPU and the model support.

    `dtype` is what weights and KV are held in: auto is bfloat16 where the checkpoint is stored so, else
    float32; the reference stays in float32 unless told. Raises `ModelError` for a pin that cannot be had.
    """
    name, held, _ = _choice(spec, pin, dtype, block_size)
    told = describe_choice(spec, pin, dtype, block_size, threads)
    if name == "reference":
        kind = torch.bfloat16 if held == "bfloat16" else torch.float32
        return Chosen(TorchDecoder(spec, weights, block_size=block_size, dtype=kind), name, told)
    # Numba takes half a second to import, which a server on a GPU has no use for.
    compiled = importlib.import_module("tokenspeed.model.cpu.decoder").CpuDecoder
    decoder = compiled(spec, weights, dtype=held, block_size=block_size, threads=threads, progress=progress)
    return Chosen(decoder, name, told)


def describe_choice(spec: ModelSpec, pin: str, dtype: str, block_size: int, threads: int) -> str:
    """What `choose_decoder` would choose and why, in one line. Raises what it would."""
    name, held, why = _choice(spec, pin, dtype, block_size)
    if name == "reference":
        return f"decoder: reference (torch), {held} ({why})"
    return f"decoder: numba, {held}, {_counted(threads)} ({why})"


def _choice(spec: ModelSpec, pin: str, dtype: str, block_size: int) -> tuple[str, Dtype, str]:
    """The decoder's name, what it holds weights in, and why it is that one."""
    if pin not in DECODERS:
        raise ModelError(f"[kernels] decoder: no {pin!r}; there are {', '.join(DECODERS)}")
    if dtype not in DTYPES:
        raise ModelError(f"[model] dtype: no {dtype!r} on the CPU; there are {', '.join(DTYPES)}")
    obstacle = _numba_obstacle(block_size)
    if pin == "numba" and obstacle:
        raise ModelError(f"[kernels] decoder = 'numba' cannot be had: {obstacle}; use 'auto' or 'reference'")
    if pin == "reference" or obstacle:
        held: Dtype = "bfloat16" if dtype == "bfloat16" else "float32"
        return "reference", held, "pinned" if pin == "reference" else obstacle
    why = "pinned" if pin == "numba" else "the fastest for this CPU"
    return "numba", _numba_dtype(spec, dtype), why


def _numba_obstacle(block_size: int) -> str:
    """Why the compiled decoder cannot serve; empty where it can."""
    if block_size % BLOCK:
        return f"it needs a [cache] block_size that is a multiple of {BLOCK}, not {block_size}"
    return ""


def _numba_dtype(spec: ModelSpec, dtype: str) -> Dtype:
    if dtype == "float32" or (dtype == "auto" and spec.dtype != "bfloat16"):
        return "float32"
    return "bfloat16"


def _counted(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"
