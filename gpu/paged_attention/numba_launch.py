"""What the Numba kernels of paged_attention ask of a device or the CUDA simulator: bits and launches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import config, cuda
from torch import Tensor

SIMULATED = bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]
LANES = 8 if SIMULATED else 32  # of a warp: each is a Python thread in the simulator
BIT_TYPES = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.float32}

if SIMULATED:

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

else:
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


def launch(kernel: Any, grid: tuple[int, ...], threads: int, *arguments: Tensor | int | float) -> None:
    """Enqueue on torch's current stream; as `gpu.numba_launch.enqueue`, with numbers among the arguments."""
    if SIMULATED:
        kernel[grid, threads](*(x.numpy() if isinstance(x, Tensor) else x for x in arguments))
        return
    stream = cuda.external_stream(torch.cuda.current_stream().cuda_stream)
    passed = (cuda.as_cuda_array(x, sync=False) if isinstance(x, Tensor) else x for x in arguments)
    kernel[grid, threads, stream](*passed)
