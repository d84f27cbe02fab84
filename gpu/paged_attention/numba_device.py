"""What the Numba kernels of paged_attention ask of a device, or of the CUDA simulator: warps and bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import cuda as numba_cuda
from torch import Tensor

from gpu.numba_launch import SIMULATED

LANES = 8 if SIMULATED else 32  # of a warp: each is a Python thread in the simulator
BIT_TYPES = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.float32}

if SIMULATED:
    from numba.cuda.simulator.kernel import _get_kernel_context

    class _Cuda:
        """That of the running kernel: the simulator gives it to the module of the kernel alone."""

        def __getattr__(self, name: str) -> Any:
            return getattr(_get_kernel_context() or numba_cuda, name)

    cuda: Any = _Cuda()

    def inlined(function: Any) -> Any:
        return function

    def exp2(x: Any) -> Any:
        return np.exp2(np.float32(x))

    def float_of_bits(bits: Any) -> Any:
        return np.uint32(int(bits) & 0xFFFFFFFF).view(np.float32)

    def bits_of_float(x: Any) -> Any:
        return int(np.float32(x).view(np.uint32))

    def float_of_half(bits: Any) -> Any:
        return np.float32(np.uint16(bits & 0xFFFF).view(np.float16))

    def half_of_float(x: Any) -> Any:
        return np.float16(x).view(np.int16)

    def int16(bits: Any) -> Any:
        return np.uint16(bits & 0xFFFF).view(np.int16)

    def bounded(threads: int, blocks: int) -> Any:
        return cuda.jit

    def _of_lanes(x: Any) -> Any:
        told = cuda.shared.array(cuda.blockDim.x, np.float32)
        cuda.syncthreads()
        told[cuda.threadIdx.x] = x
        cuda.syncthreads()
        first = cuda.threadIdx.x // LANES * LANES
        return told[first : first + LANES]

    def largest_of_warp(x: Any) -> Any:
        return _of_lanes(x).max()

    def sum_of_warp(x: Any) -> Any:
        return _of_lanes(x).sum()

else:
    cuda = numba_cuda
    libdevice: Any = cuda.libdevice
    inlined = cuda.jit(device=True, forceinline=True)

    def bounded(threads: int, blocks: int) -> Any:
        """A kernel of so many threads, and so many blocks that share a multiprocessor's registers."""
        return cuda.jit(launch_bounds=(threads, blocks))

    @inlined
    def exp2(x: Any) -> Any:
        return libdevice.exp2f(x)

    @inlined
    def float_of_bits(bits: Any) -> Any:
        return libdevice.int_as_float(np.int32(bits))

    @inlined
    def bits_of_float(x: Any) -> Any:
        return libdevice.float_as_int(x)

    @inlined
    def float_of_half(bits: Any) -> Any:
        return libdevice.half2float(np.int16(bits))

    @inlined
    def half_of_float(x: Any) -> Any:
        return libdevice.float2half_rn(x)

    @inlined
    def int16(bits: Any) -> Any:
        return np.int16(bits)

    @inlined
    def largest_of_warp(x: Any) -> Any:
        for power in range(5):
            x = max(x, cuda.shfl_xor_sync(0xFFFFFFFF, x, 1 << power))
        return x

    @inlined
    def sum_of_warp(x: Any) -> Any:
        for power in range(5):
            x += cuda.shfl_xor_sync(0xFFFFFFFF, x, 1 << power)
        return x


@inlined
def own_thread() -> Any:
    """Its number in the block, at most 1023; not negative, which tells the compiler what indices are not."""
    return cuda.threadIdx.x & 1023


def conversions(dtype: torch.dtype) -> tuple[Any, Any]:
    """`widen(word, element)` to float32, and `narrow(x)` to what an output has (see `BIT_TYPES`)."""
    if dtype == torch.float32:
        return inlined(lambda word, element: float_of_bits(word >> (32 * element))), inlined(lambda x: x)
    if dtype == torch.float16:
        return inlined(lambda word, element: float_of_half(word >> (16 * element))), half_of_float

    @inlined
    def widen(word: Any, element: Any) -> Any:
        pair = word >> (element // 2 * 32)
        return float_of_bits(pair << 16 if element % 2 == 0 else pair & 0xFFFF0000)

    @inlined
    def narrow(x: Any) -> Any:
        bits = bits_of_float(x)
        if x != x:
            return int16(0x7FC0)
        return int16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)  # to the nearest, ties to even

    return widen, narrow


def flat(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """All that lies between the first and the last element, in one dimension: kernels index by strides."""
    tensor = tensor.view(dtype)
    length = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((length,), (1,))
