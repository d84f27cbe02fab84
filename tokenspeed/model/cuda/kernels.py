"""The resolver for GPUs: which implementation of each operation serves; only here are they known by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from gpu.paged_attention.source import TILE, Heads
from gpu.table import REFERENCE, DecodeAttention, Ops
from tokenspeed.errors import ModelError
from tokenspeed.model.cuda.network import RESIDUAL, Bounds
from tokenspeed.model.cuda.products import ByRows, ManyRows, Products
from tokenspeed.model.options import KernelOptions
from tokenspeed.model.spec import ModelSpec

FEW_ROWS = 16


@dataclass(frozen=True, slots=True)
class Context:
    """What an implementation is made for."""

    spec: ModelSpec
    dtype: torch.dtype
    bounds: Bounds
    block_size: int

    @property
    def heads(self) -> Heads:
        spec = self.spec
        return Heads(spec.heads, spec.kv_heads, spec.head_dim, self.dtype)

    @property
    def pairs(self) -> int:
        return self.spec.rope.rotary_dim // 2


class Chosen(NamedTuple):
    """What computes on this device, and a line that tells it."""

    ops: Ops
    products: Products
    told: str
    capturable: bool  # whether steps that decode can be captured in graphs


Maker = Callable[[Context], Any]


def _made(module: str, kind: str, arguments: Callable[[Context], tuple[Any, ...]]) -> Maker:
    """A class of a module that only a GPU's libraries can import; its launch without checks."""

    def make(context: Context) -> Any:
        op = getattr(importlib.import_module(module), kind)(*arguments(context))
        return op.enqueue

    return make


def _function(module: str, name: str) -> Maker:
    """A function of a module that takes long to import."""
    return lambda context: getattr(importlib.import_module(module), name)


def _reference(name: str) -> Maker:
    return lambda context: getattr(REFERENCE, name)


def _dtype(context: Context) -> tuple[Any, ...]:
    return (context.dtype,)


def _heads(context: Context) -> tuple[Any, ...]:
    if context.block_size % TILE:
        raise ValueError(f"[cache] block_size is {context.block_size}; make it a multiple of {TILE}")
    return (context.heads,)


def _embedding(context: Context) -> tuple[Any, ...]:
    return (context.dtype, RESIDUAL)


def _any_heads(context: Context) -> tuple[Any, ...]:
    return (context.heads,)


def _nothing(context: Context) -> tuple[Any, ...]:
    return ()


def _rope(context: Context) -> tuple[Any, ...]:
    return (context.dtype, context.spec.head_dim, context.pairs)


def _logits(context: Context) -> tuple[Any, ...]:
    return (context.bounds.logits, context.spec.vocab_size)


# Of each operation, the implementations from the fastest to the plainest, as measured on an H200.
MAKERS: Mapping[str, Mapping[str, Maker]] = MappingProxyType(
    {
        "paged_attention": {
            "cupy": _made("gpu.paged_attention.cupy_kernel", "PagedAttention", _heads),
            "numba": _made("gpu.paged_attention.numba_kernel", "PagedAttention", _any_heads),
            "reference": _reference("paged_attention"),
        },
        "prefill_attention": {
            "cupy": _made("gpu.prefill_attention.cupy_kernel", "PrefillAttention", _heads),
            "torch": _function("gpu.prefill_attention.torch_kernel", "prefill_attention"),
            "reference": _reference("prefill_attention"),
        },
        "rms_norm": {
            "cupy": _made("gpu.rms_norm.cupy_kernel", "RmsNorm", _dtype),
            "reference": _reference("rms_norm"),
        },
        "rope_write_kv": {
            "cupy": _made("gpu.rope_write_kv.cupy_kernel", "RopeWriteKv", _rope),
            "reference": _reference("rope_write_kv"),
        },
        "silu_mul": {
            "cupy": _made("gpu.silu_mul.cupy_kernel", "SiluMul", _dtype),
            "reference": _reference("silu_mul"),
        },
        "embed": {
            "cupy": _made("gpu.embed.cupy_kernel", "Embed", _embedding),
            "reference": _reference("embed"),
        },
        "sample": {
            "cupy": _made("gpu.sample.cupy_kernel", "Sample", _logits),
            "reference": _reference("sample"),
        },
        "adjust_logits": {
            "cupy": _made("gpu.adjust_logits.cupy_kernel", "AdjustLogits", _nothing),
            "reference": _reference("adjust_logits"),
        },
    }
)


def pins_of(options: KernelOptions) -> dict[str, str]:
    """By operation, the implementation that the configuration asks for."""
    return {
        "paged_attention": options.paged_attention,
        "prefill_attention": options.prefill_attention,
        "rms_norm": options.rms_norm,
        "rope_write_kv": options.rope_write_kv,
        "silu_mul": options.silu_mul,
        "embed": options.embed,
        "sample": options.sample,
        "adjust_logits": options.adjust_logits,
    }


def choose(context: Context, device: torch.device, options: KernelOptions) -> Chosen:
    """The implementations that `options` name, or the fastest that this device and this model support.

    Compiles what is not compiled yet, several at once. Raises `ModelError` for a pin that cannot be had.
    """
    if device.type == "cpu":
        return Chosen(REFERENCE, _many(context, REFERENCE, device), "kernels: reference, all", False)
    with ThreadPoolExecutor(max_workers=8) as pool:
        waiting = {
            name: pool.submit(_resolve, name, pin, context, device) for name, pin in pins_of(options).items()
        }
        few = pool.submit(_few, context, options.products, device)
        fused = pool.submit(_fused, context, options.decode_attention, device)
        found = {name: future.result() for name, future in waiting.items()}
        products, product_name = few.result()
        short, short_name = fused.result()
    chosen = {name: op for name, (_, op) in found.items()}
    ops = Ops(linear=REFERENCE.linear, decode_attention=short, **chosen)
    by_name: dict[str, list[str]] = {}
    for name, (implementation, _) in found.items():
        by_name.setdefault(implementation, []).append(name)
    by_name.setdefault(product_name, []).append("products")
    by_name.setdefault(short_name, []).append("decode_attention")
    told = "; ".join(f"{implementation} for {', '.join(names)}" for implementation, names in by_name.items())
    many = _many(context, ops, device)
    return Chosen(
        ops,
        many if products is None else ByRows(products, FEW_ROWS, many),
        f"kernels: {told}",
        capturable=found["paged_attention"][0] != "reference",
    )


def _resolve(name: str, pin: str, context: Context, device: torch.device) -> tuple[str, Any]:
    """The name and the callable of what computes the operation `name`."""
    with torch.cuda.device(device):
        obstacles = []
        for implementation, make in MAKERS[name].items():
            if pin not in ("auto", implementation):
                continue
            try:
                return implementation, make(context)
            except (ImportError, ValueError, RuntimeError) as error:
                obstacles.append(f"{implementation}: {_first_line(error)}")
        raise ModelError(f"[kernels] {name} = {pin!r} cannot be had: {'; '.join(obstacles)}; use 'auto'")


def _few(context: Context, pin: str, device: torch.device) -> tuple[Products | None, str]:
    """What multiplies few rows, if that is not what multiplies many."""
    if pin == "torch":
        return None, "torch"
    try:
        with torch.cuda.device(device):
            module = importlib.import_module("gpu.linear.cupy_kernel")
            wide = context.dtype != RESIDUAL
            return module.FewRowsProducts(context.dtype, context.spec.norm_eps, wide=wide), "cupy"
    except (ImportError, ValueError, RuntimeError) as error:
        if pin == "cupy":
            told = _first_line(error)
            raise ModelError(f"[kernels] products = 'cupy' cannot be had: {told}; use 'auto'") from error
        return None, "torch"


def _fused(context: Context, pin: str, device: torch.device) -> tuple[DecodeAttention | None, str]:
    """What rotates, writes and attends in one kernel, for rows of one token and short contexts."""
    if pin == "apart":
        return None, "apart"
    spec = context.spec
    try:
        (heads,) = _heads(context)
        with torch.cuda.device(device):
            module = importlib.import_module("gpu.decode_attention.cupy_kernel")
            # What it reads early was written before the graph began that it is captured in.
            op = module.DecodeAttention(heads, context.pairs, normed=spec.qk_norm, settled=True)
            return op.enqueue, "cupy"
    except (ImportError, ValueError, RuntimeError) as error:
        if pin == "cupy":
            told = _first_line(error)
            raise ModelError(
                f"[kernels] decode_attention = 'cupy' cannot be had: {told}; use 'auto'"
            ) from error
        return None, "apart"


def _many(context: Context, ops: Ops, device: torch.device) -> Products:
    spec = context.spec
    like = torch.empty(0, dtype=context.dtype, device=device)
    return ManyRows(
        ops,
        tokens=context.bounds.tokens,
        hidden=spec.hidden_size,
        inner=spec.intermediate_size,
        eps=spec.norm_eps,
        like=like,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
