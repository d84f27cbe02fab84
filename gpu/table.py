"""The operations that a decoder is composed of, as a frozen table of callables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gpu.linear.reference import linear
from gpu.paged_attention.reference import paged_attention
from gpu.rms_norm.reference import rms_norm
from gpu.rope_write_kv.norms import HeadNorms
from gpu.rope_write_kv.reference import rope_write_kv
from gpu.silu_mul.reference import silu_mul

Linear = Callable[[Tensor, Tensor, Tensor | None, Tensor], None]
PagedAttention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float, int | None, Tensor], None]
SiluMul = Callable[[Tensor, Tensor, Tensor], None]


class RmsNorm(Protocol):
    """See `gpu.rms_norm`."""

    def __call__(
        self, x: Tensor, weight: Tensor, eps: float, out: Tensor, delta: Tensor | None = None
    ) -> None: ...


class RopeWriteKv(Protocol):
    """See `gpu.rope_write_kv`."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        key_pool: Tensor,
        value_pool: Tensor,
        norms: HeadNorms | None = None,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of each operation; the contract of `name` is the docstring of `gpu.name`."""

    linear: Linear
    paged_attention: PagedAttention
    rms_norm: RmsNorm
    rope_write_kv: RopeWriteKv
    silu_mul: SiluMul


REFERENCE = Ops(
    linear=linear,
    paged_attention=paged_attention,
    rms_norm=rms_norm,
    rope_write_kv=rope_write_kv,
    silu_mul=silu_mul,
)
