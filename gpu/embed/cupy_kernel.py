"""embed in CUDA C++; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.elements import ACCESS_BYTES, check_rows, dtype_constant
from gpu.embed.source import SOURCE
from gpu.launch import Kernels

THREADS = 256


class Embed:
    """An embedding of one dtype into rows of the same, or of float32: whole numbers of 16-byte chunks."""

    def __init__(self, dtype: torch.dtype, hidden: torch.dtype | None = None) -> None:
        """Compiles for the current device. `hidden` is the dtype of the rows written; None: as `dtype`."""
        dtype_constant(dtype)
        self._dtype, self._hidden = dtype, hidden or dtype
        if self._hidden not in (dtype, torch.float32):
            raise ValueError(f"embed writes rows of {dtype} or torch.float32, not {hidden}")
        self._function = "embed_copied" if self._hidden == dtype else "embed_widened"
        self._kernels = Kernels(SOURCE, {"HALF": int(dtype == torch.float16)})

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
    ) -> None:
        """See the package."""
        count, (vocab, dim), pairs = len(tokens), embedding.shape, len(inverse_frequencies)
        width = ACCESS_BYTES // self._dtype.itemsize
        if dim % width:
            raise ValueError(f"embed: rows of {dim} elements: need a multiple of {width}")
        check_rows("embedding", embedding, self._dtype, (vocab, dim))
        check_rows("hidden", hidden, self._hidden, (count, dim))
        for name, tensor, dtype, shape in (
            ("tokens", tokens, torch.int32, (count,)),
            ("sources", sources, torch.int32, (count,)),
            ("sampled", sampled, torch.int32, (len(sampled),)),
            ("positions", positions, torch.int32, (count,)),
            ("inverse_frequencies", inverse_frequencies, torch.float32, (pairs,)),
            ("cos", cos, torch.float32, (count, pairs)),
            ("sin", sin, torch.float32, (count, pairs)),
        ):
            if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
                found = f"{tensor.dtype}{list(tensor.shape)}"
                raise ValueError(f"embed: {name} is {found}; make it a contiguous {dtype}{list(shape)}")
        if count:
            self.enqueue(
                tokens,
                sources,
                sampled,
                positions,
                embedding,
                inverse_frequencies,
                scaling,
                hidden,
                cos,
                sin,
            )

    def enqueue(
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
    ) -> None:
        """The call, unchecked, for one token or more."""
        width = ACCESS_BYTES // self._dtype.itemsize
        self._kernels.launch_early(
            self._function,
            (len(tokens),),
            (THREADS,),
            tokens,
            sources,
            sampled,
            positions,
            embedding,
            inverse_frequencies,
            hidden,
            cos,
            sin,
            embedding.shape[1] // width,
            len(inverse_frequencies),
            float(scaling),
            embedding.stride(0) // width,
            hidden.stride(0) * hidden.dtype.itemsize // ACCESS_BYTES,
        )
