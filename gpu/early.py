"""Launches of kernels that may start before the kernel ahead of them in the stream has ended.

The CUDA driver calls this programmatic dependent launch; CuPy has no way to ask for it. Such a kernel must
execute `griddepcontrol.wait` before it reads what the kernel ahead writes, or writes what that one reads.
Needs sm_90.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_...


class _Attribute(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class _Configuration(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


class EarlyLauncher:
    """The driver's own launch, with that attribute."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._attribute = _Attribute(id=PROGRAMMATIC_STREAM_SERIALIZATION, value=1)

    def launch(
        self,
        function: int,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[np.generic],
        shared_bytes: int,
        stream: int,
    ) -> None:
        """Enqueue the function at that handle, on the stream at that handle."""
        kept = [np.array(argument) for argument in arguments]
        addresses = (ctypes.c_void_p * len(kept))(*(argument.ctypes.data for argument in kept))
        configuration = _Configuration(
            grid=(*grid, 1, 1)[:3],
            block=(*block, 1, 1)[:3],
            shared_bytes=shared_bytes,
            stream=stream,
            attributes=ctypes.pointer(self._attribute),
            attribute_count=1,
        )
        handle = ctypes.c_void_p(function)
        if status := self._driver.cuLaunchKernelEx(ctypes.byref(configuration), handle, addresses, None):
            raise RuntimeError(f"the CUDA driver refused to launch a kernel: error {status}")
