"""The resolver for GPUs: which implementation of each operation serves; only here are they known by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch

from gpu.batch_linear.source import ROWS as BATCH_ROWS
from gpu.paged_attention.source import TILE, Heads
from gpu.table import REFERENCE, DecodeAttention, GatedLinear, Ops
from tokenspeed.errors import ModelError
from tokenspeed.model.cuda.network import ATTENDED_AT_ONCE, RESIDUAL, Bounds
from tokenspeed.model.cuda.products import AfterNorm, ByRows, Matrices, Products, many_rows
from tokenspeed.model.options import KernelOptions
from tokenspeed.model.spec import ModelSpec

FEW_ROWS = 16
CAPTURABLE = ("cupy", "numba")  # the others ask the device for the lengths of rows


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
    warnings: tuple[str, ...]  # a line for each faster implementation that could not be had
    captures_decode: bool  # whether steps that decode can be captured in graphs
    captures_prefill: bool  # and those that prefill


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


def _few_tokens(context: Context) -> Any:
    """Attention of rows that carry drafts."""
    (heads,) = _heads(context)
    module = importlib.import_module("gpu.paged_attention.cupy_kernel")
    return module.PagedAttention(heads, most_tokens=context.bounds.few).enqueue


def _numba_few_tokens(context: Context) -> Any:
    return _numba_attention(context, context.bounds.few)


def _embedding(context: Context) -> tuple[Any, ...]:
    return (context.dtype, RESIDUAL)


def _nothing(context: Context) -> tuple[Any, ...]:
    return ()


def _rope(context: Context) -> tuple[Any, ...]:
    return (context.dtype, context.spec.head_dim, context.pairs)


def _numba_attention(context: Context, most_tokens: int = 1) -> Any:
    """Any heads and blocks; its workspace is for as many rows as are attended at once."""
    module = importlib.import_module("gpu.paged_attention.numba_kernel")
    rows = min(context.bounds.rows, ATTENDED_AT_ONCE)
    return module.PagedAttention(context.heads, most_tokens=most_tokens, most_rows=rows).enqueue


def _few(context: Context) -> Products:
    """Products of few rows, with what stands next to them."""
    module = importlib.import_module("gpu.linear.cupy_kernel")
    products: Products = module.FewRowsProducts(
        context.dtype, context.spec.norm_eps, wide=context.dtype != RESIDUAL
    )
    return products


def _batch(context: Context) -> Matrices:
    """Products of a batch that decodes, compiled for the matrices of this model."""
    spec, module = context.spec, importlib.import_module("gpu.batch_linear.cupy_kernel")
    queries = spec.heads * spec.head_dim
    matrices = module.BatchMatrices(context.dtype, wide=context.dtype != RESIDUAL)
    matrices.prepare(
        hidden=spec.hidden_size,
        queries=queries,
        qkv=queries + 2 * spec.kv_heads * spec.head_dim,
        inner=spec.intermediate_size,
        vocab=spec.vocab_size,
    )
    return cast(Matrices, matrices)


def _fused(context: Context) -> DecodeAttention:
    """Rotation, cache and attention in one kernel, for rows of one token and short contexts."""
    (heads,) = _heads(context)
    module = importlib.import_module("gpu.decode_attention.cupy_kernel")
    # What it reads early was written before the graph began that it is captured in.
    op = module.DecodeAttention(heads, context.pairs, normed=context.spec.qk_norm, settled=True)
    enqueue: DecodeAttention = op.enqueue
    return enqueue


def _gated(context: Context) -> GatedLinear:
    """Products of many rows with gates and ups, in one kernel."""
    module = importlib.import_module("gpu.gated_linear.cupy_kernel")
    op: GatedLinear = module.GatedLinear(context.dtype)
    return op


def _none(context: Context) -> None:
    """Nothing of its own."""


def _logits(context: Context) -> tuple[Any, ...]:
    return (context.bounds.logits, context.spec.vocab_size)


# Of each operation, the implementations from the fastest to the plainest, as measured on an H200.
MAKERS: Mapping[str, Mapping[str, Maker]] = MappingProxyType(
    {
        "paged_attention": {
            "cupy": _made("gpu.paged_attention.cupy_kernel", "PagedAttention", _heads),
            "numba": _numba_attention,
            "reference": _reference("paged_attention"),
        },
        "verify_attention": {
            "cupy": _few_tokens,
            "numba": _numba_few_tokens,
            "reference": _reference("verify_attention"),
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
        "follow_drafts": {
            "cupy": _made("gpu.follow_drafts.cupy_kernel", "FollowDrafts", _nothing),
            "reference": _reference("follow_drafts"),
        },
        "products": {"cupy": _few, "torch": _none},  # none: few rows are multiplied as many are
        "batch_products": {"cupy": _batch, "torch": _none},
        "decode_attention": {"cupy": _fused, "apart": _none},
        "gated_linear": {"cupy": _gated, "apart": _none},
    }
)


def pins_of(options: KernelOptions) -> dict[str, str]:
    """By operation, the implementation that the configuration asks for."""
    return {
        "paged_attention": options.paged_attention,
        "verify_attention": options.verify_attention,
        "prefill_attention": options.prefill_attention,
        "rms_norm": options.rms_norm,
        "rope_write_kv": options.rope_write_kv,
        "silu_mul": options.silu_mul,
        "embed": options.embed,
        "sample": options.sample,
        "adjust_logits": options.adjust_logits,
        "follow_drafts": options.follow_drafts,
        "products": options.products,
        "batch_products": options.batch_products,
        "decode_attention": options.decode_attention,
        "gated_linear": options.gated_linear,
    }


def choose(context: Context, device: torch.device, options: KernelOptions) -> Chosen:
    """The implementations that `options` name, or the fastest that this device and this model support.

    Compiles what is not compiled yet, several at once. Raises `ModelError` for a pin that cannot be had.
    """
    if device.type == "cpu":
        return Chosen(
            REFERENCE, _many(context, REFERENCE, device), "kernels: reference, all", (), False, False
        )
    with ThreadPoolExecutor(max_workers=8) as pool:
        waiting = {
            name: pool.submit(_resolve, name, MAKERS[name], pin, context, device)
            for name, pin in pins_of(options).items()
        }
        found = {name: future.result() for name, future in waiting.items()}
    operations = {name: one.operation for name, one in found.items()}
    few: Products | None = operations.pop("products")
    batch: Matrices | None = operations.pop("batch_products")
    ops = Ops(linear=REFERENCE.linear, **operations)
    products: Products = (many := _many(context, ops, device))
    if batch is not None:
        products = ByRows(replace(many, matrices=batch), BATCH_ROWS, many)
    if few is not None:
        products = ByRows(few, FEW_ROWS, products)
    return Chosen(
        ops,
        products,
        _told(found),
        tuple(warning for one in found.values() for warning in one.obstacles),
        captures_decode=found["paged_attention"].name in CAPTURABLE,
        captures_prefill=found["prefill_attention"].name in CAPTURABLE,
    )


class _Found(NamedTuple):
    """What computes one operation, by name, and why nothing faster does."""

    name: str
    operation: Any
    obstacles: tuple[str, ...] = ()


def _told(found: Mapping[str, _Found]) -> str:
    by_name: dict[str, list[str]] = {}
    for operation, one in found.items():
        by_name.setdefault(one.name, []).append(operation)
    return "kernels: " + "; ".join(f"{name} for {', '.join(those)}" for name, those in by_name.items())


def _resolve(
    operation: str, makers: Mapping[str, Maker], pin: str, context: Context, device: torch.device
) -> _Found:
    """The first of `makers` that can be had, or the one that `pin` names."""
    obstacles: list[str] = []
    with torch.cuda.device(device):
        for name, make in makers.items():
            if pin not in ("auto", name):
                continue
            try:
                return _Found(name, make(context), tuple(obstacles))
            except (ImportError, ValueError, RuntimeError) as error:
                obstacles.append(f"[kernels] {operation} = '{name}' cannot be had: {_first_line(error)}")
    raise ModelError(f"{'; '.join(obstacles)}; use 'auto'")


def _many(context: Context, ops: Ops, device: torch.device) -> AfterNorm:
    spec = context.spec
    like = torch.empty(0, dtype=context.dtype, device=device)
    return many_rows(
        ops,
        tokens=context.bounds.tokens,
        hidden=spec.hidden_size,
        inner=spec.intermediate_size,
        eps=spec.norm_eps,
        like=like,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
