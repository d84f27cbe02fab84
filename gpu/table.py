"""The operations that a decoder is composed of, as a frozen table of callables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gpu.adjust_logits.reference import adjust_logits
from gpu.decode_attention.reference import decode_attention
from gpu.embed.reference import embed
from gpu.follow_drafts.reference import follow_drafts
from gpu.linear.reference import linear
from gpu.paged_attention.reference import paged_attention
from gpu.prefill_attention.reference import prefill_attention
from gpu.rms_norm.reference import rms_norm
from gpu.rope_write_kv.norms import HeadNorms
from gpu.rope_write_kv.reference import rope_write_kv
from gpu.sample.reference import sample
from gpu.silu_mul.reference import silu_mul

Linear = Callable[[Tensor, Tensor, Tensor | None, Tensor], None]
PagedAttention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float, int | None, Tensor], None]
SiluMul = Callable[[Tensor, Tensor, Tensor], None]


class AdjustLogits(Protocol):
    """See `gpu.adjust_logits`."""

    def __call__(
        self,
        logits: Tensor,
        starts: Tensor,
        tokens: Tensor,
        counts: Tensor,
        biases: Tensor,
        repetition: Tensor,
        frequency: Tensor,
        presence: Tensor,
        mask: Tensor | None,
        kept: Tensor,
    ) -> None: ...


class Embed(Protocol):
    """See `gpu.embed`."""

    def __call__(
        self,
        tokens: Tensor,
        sources: Tensor,
        sampled: Tensor,
        positions: Tensor,
        embedding: Tensor,
        inverse_frequencies: Tensor,
        scaling: float,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> None: ...


class DecodeAttention(Protocol):
    """See `gpu.decode_attention`."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        key_pool: Tensor,
        value_pool: Tensor,
        block_tables: Tensor,
        contexts: Tensor,
        scale: float,
        window: int | None,
        out: Tensor,
        norms: HeadNorms | None = None,
    ) -> None: ...


class FollowDrafts(Protocol):
    """See `gpu.follow_drafts`."""

    def __call__(
        self,
        verified: Tensor,
        drawn: Tensor,
        rows: Tensor,
        tables: Tensor,
        block_size: int,
        spare_block: int,
        vocab: int,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        contexts: Tensor,
        draw_positions: Tensor,
    ) -> None: ...


class GatedLinear(Protocol):
    """See `gpu.gated_linear`; `pays` where it is faster than a product and `silu_mul`."""

    def pays(self, rows: int, inputs: int, outputs: int) -> bool: ...

    def enqueue(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None: ...


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


class Sample(Protocol):
    """See `gpu.sample`."""

    def __call__(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        seeds: Tensor,
        positions: Tensor,
        tokens: Tensor,
        status: Tensor,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of each operation; the contract of `name` is the docstring of `gpu.name`.

    `paged_attention` is for rows of one token, `verify_attention` and `prefill_attention` obey the same
    contract for rows of a few, and of many.
    `decode_attention` is `rope_write_kv` and `paged_attention` in one, for few rows and short contexts, where
    there is such a thing; `gated_linear` is `linear` and `silu_mul` in one, for many rows.
    """

    adjust_logits: AdjustLogits
    decode_attention: DecodeAttention | None
    embed: Embed
    follow_drafts: FollowDrafts
    gated_linear: GatedLinear | None
    linear: Linear
    paged_attention: PagedAttention
    prefill_attention: PagedAttention
    rms_norm: RmsNorm
    rope_write_kv: RopeWriteKv
    sample: Sample
    silu_mul: SiluMul
    verify_attention: PagedAttention


REFERENCE = Ops(
    adjust_logits=adjust_logits,
    decode_attention=decode_attention,
    embed=embed,
    follow_drafts=follow_drafts,
    gated_linear=None,
    linear=linear,
    paged_attention=paged_attention,
    prefill_attention=prefill_attention,
    rms_norm=rms_norm,
    rope_write_kv=rope_write_kv,
    sample=sample,
    silu_mul=silu_mul,
    verify_attention=paged_attention,
)
