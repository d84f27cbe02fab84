"""The CUDA driver itself, for what every step asks of it.

Through torch a copy or the launch of a graph takes the host several times as long, and some versions of torch
write the state of their random numbers to the device before every graph, with two more kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

INVALID_CONTEXT = 201  # CUDA_ERROR_...
_ADDRESS, _HANDLE = ctypes.c_uint64, ctypes.c_void_p


class Driver:
    """Enqueues on torch's current stream of one device. Any threads may call."""

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            torch.cuda.synchronize()  # the device has a context then, and this thread is in it
            self._device = torch.cuda.current_device()
            library = ctypes.CDLL("libcuda.so.1")
            self._context = ctypes.c_void_p()
            library.cuCtxGetCurrent(ctypes.byref(self._context))
        self._enter = library.cuCtxSetCurrent
        self._copy, self._launch_graph = library.cuMemcpyAsync, library.cuGraphLaunch
        self._copy.argtypes = (_ADDRESS, _ADDRESS, ctypes.c_size_t, _HANDLE)
        self._launch_graph.argtypes = (_HANDLE, _HANDLE)
        self._stream = torch._C._cuda_getCurrentRawStream

    def copy(self, to: int, source: int, size: int) -> None:
        """Enqueue a copy of `size` bytes between addresses of the device or of pinned memory, which stays
        allocated until the copy is done."""
        self._call(self._copy, "copy", to, source, size)

    def launch_graph(self, executable: int) -> None:
        """Enqueue a graph, by its handle."""
        self._call(self._launch_graph, "launch a graph", executable)

    def _call(self, function: Callable[..., int], told: str, *arguments: int) -> None:
        stream = self._stream(self._device)
        status = function(*arguments, stream)
        if status == INVALID_CONTEXT:  # a thread that has not used the device yet
            self._enter(self._context)
            status = function(*arguments, stream)
        if status:
            raise RuntimeError(f"the CUDA driver refused to {told}: error {status}")
