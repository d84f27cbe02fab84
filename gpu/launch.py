"""Compiled sources as functions, launched on torch's current stream. Needs CuPy and a CUDA device."""

from __future__ import annotations

from collections.abc import Mapping

import cupy
import numpy as np
import torch
from torch import Tensor

from gpu.early import EarlyLauncher
from gpu.source import Constants, Source, compiler_options

Argument = Tensor | int | float | None
Grid = tuple[int, ...]


class Kernels:
    """The functions of a source for one set of constants, compiled for the current device.

    An argument is a tensor (its address is passed), None (a null address), an int (32 bits) or a float
    (32 bits). Nothing is checked, allocated or waited for at a launch, so launches can be captured in a CUDA
    graph.
    """

    def __init__(
        self, source: Source, constants: Constants, *, shared_bytes: Mapping[str, int] | None = None
    ) -> None:
        """`shared_bytes` of dynamic shared memory by function, where that is more than 48 KiB."""
        module = cupy.RawModule(code=source.text(), options=compiler_options(constants), backend="nvrtc")
        self._raw = {name: module.get_function(name) for name in source.functions}
        for name, size in (shared_bytes or {}).items():
            self._raw[name].max_dynamic_shared_size_bytes = size
        self._functions = {name: raw.kernel for name, raw in self._raw.items()}
        self._streams: dict[int, cupy.cuda.ExternalStream] = {}
        self._early = EarlyLauncher()

    def launch(self, name: str, grid: Grid, block: Grid, *arguments: Argument, shared_bytes: int = 0) -> None:
        """Enqueue one kernel."""
        address = torch.cuda.current_stream().cuda_stream
        stream = self._streams.get(address)
        if stream is None:
            stream = self._streams[address] = cupy.cuda.ExternalStream(address)
        passed = tuple(map(_passed, arguments))
        # Naming the stream costs half of what entering it does.
        self._functions[name](grid, block, passed, shared_mem=shared_bytes, stream=stream)

    def launch_early(
        self, name: str, grid: Grid, block: Grid, *arguments: Argument, shared_bytes: int = 0
    ) -> None:
        """Enqueue one kernel that waits, by itself, for the kernel ahead; see `gpu.early`."""
        passed = tuple(map(_passed, arguments))
        stream = torch.cuda.current_stream().cuda_stream
        self._early.launch(self._functions[name].ptr, grid, block, passed, shared_bytes, stream)

    def attributes(self, name: str) -> dict[str, int]:
        """Registers, local memory (spills) and shared memory of a function, as the driver tells."""
        return dict(self._raw[name].attributes)


def _passed(argument: Argument) -> np.uint64 | np.int32 | np.float32:
    match argument:
        case Tensor():
            return np.uint64(argument.data_ptr())
        case None:
            return np.uint64(0)
        case int():
            return np.int32(argument)
    return np.float32(argument)
