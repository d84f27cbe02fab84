"""Compiled sources as functions, launched on torch's current stream. Needs CuPy and a CUDA device.

CuPy loads the machine code; launches go straight to the CUDA driver, which takes the host a fraction of the
time and can start a kernel early.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from itertools import accumulate, islice
from struct import Struct, calcsize
from struct import error as StructError
from threading import Lock
from typing import Any

import cupy
import torch
from cupy.cuda import nvrtc
from torch import Tensor

from gpu.cubins import cubin
from gpu.source import Constants, Source

Argument = Tensor | int | float | bytes | None
Grid = tuple[int, ...]

EARLY_CAPABILITY = (9, 0)
INVALID_CONTEXT = 201  # CUDA_ERROR_...
PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_...
_AS_IT_IS = frozenset((int, float, bytes))  # types of arguments that are passed so
# CUlaunchConfig: grid, block, bytes of shared memory, stream, address and number of attributes.
_CONFIGURATION = Struct("=7I4xQQI4x")
_ATTRIBUTE = Struct("=i4xi60x")  # CUlaunchAttribute


class CompilationError(RuntimeError):
    """What the compiler said first."""


class Nvrtc:
    """The compiler that comes with CuPy. It lets other threads run, so several sources compile at once."""

    def __init__(self) -> None:
        self.version = "nvrtc {}.{} cupy {}".format(*nvrtc.getVersion(), cupy.__version__)

    def compile(self, text: str, name: str, options: tuple[str, ...]) -> bytes:
        """A cubin; raises `CompilationError`."""
        program = nvrtc.createProgram(text, name, (), ())
        try:
            nvrtc.compileProgram(program, options)
            # CuPy cuts off the last byte, as if it ended a string.
            return bytes(nvrtc.getCUBIN(program)) + b"\0"
        except nvrtc.NVRTCError as error:
            lines = str(nvrtc.getProgramLog(program)).splitlines()
            told = next((line for line in lines if "error" in line), str(error))
            raise CompilationError(f"{name} does not compile: {told}") from error
        finally:
            nvrtc.destroyProgram(program)


class Kernels:
    """The functions of a source for one set of constants, compiled for the device current at construction.

    An argument is a tensor (its address is passed), None (a null address), an int (32 bits) or a float
    (32 bits), or bytes, a multiple of 8, as they are; each argument of a function is of the same kind at
    every launch. Nothing is checked, allocated or waited for at a launch, so launches can be captured in a
    CUDA graph. Any threads may launch.
    """

    def __init__(
        self,
        source: Source,
        constants: Constants,
        *,
        shared_bytes: Mapping[str, int] | None = None,
        shared_percent: int | None = None,
    ) -> None:
        """`shared_bytes` of dynamic shared memory by function, where that is more than 48 KiB.

        `shared_percent` of a multiprocessor's own memory as shared memory, the rest for the L1: kernels that
        differ in it never run on a multiprocessor at once. None leaves it to the driver.
        """
        self._device = torch.cuda.current_device()
        capability = torch.cuda.get_device_capability(self._device)
        with cupy.cuda.Device(self._device):
            module = cupy.RawModule(path=str(cubin(source, constants, capability, Nvrtc())))
            self._raw = {name: module.get_function(name) for name in source.functions}
            for name, size in (shared_bytes or {}).items():
                self._raw[name].max_dynamic_shared_size_bytes = size
            for raw in self._raw.values():
                if shared_percent is not None:
                    raw.preferred_shared_memory_carveout = shared_percent
            handles = {name: raw.kernel.ptr for name, raw in self._raw.items()}
        self._functions = {name: _Function(name, handle) for name, handle in handles.items()}
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._context = ctypes.c_void_p()
        self._driver.cuCtxGetCurrent(ctypes.byref(self._context))
        self._enqueue = self._driver.cuLaunchKernelEx
        self._stream = torch._C._cuda_getCurrentRawStream
        self._early = int(capability >= EARLY_CAPABILITY)
        self._lock = Lock()

    def launch(self, name: str, grid: Grid, block: Grid, *arguments: Argument, shared_bytes: int = 0) -> None:
        """Enqueue one kernel."""
        self._launch(self._functions[name], grid, block, arguments, shared_bytes, 0)

    def launch_early(
        self, name: str, grid: Grid, block: Grid, *arguments: Argument, shared_bytes: int = 0
    ) -> None:
        """Enqueue one kernel that may start before the kernel ahead of it in the stream has ended.

        It must wait by itself (`griddepcontrol.wait`), in every thread that goes on to read what a kernel
        ahead writes, or to write what one reads; and every kernel must, lest the one behind it overtake those
        before. The CUDA driver calls this programmatic dependent launch. Before sm_90 it is a plain launch.
        """
        self._launch(self._functions[name], grid, block, arguments, shared_bytes, self._early)

    def attributes(self, name: str) -> dict[str, int]:
        """Registers, local memory (spills) and shared memory of a function, as the driver tells."""
        return dict(self._raw[name].attributes)

    def _launch(
        self,
        function: _Function,
        grid: Grid,
        block: Grid,
        arguments: tuple[Any, ...],
        shared_bytes: int,
        attributes: int,
    ) -> None:
        # Asking for the very type takes half as long as isinstance().
        values = [0 if a is None else a if type(a) in _AS_IT_IS else a.data_ptr() for a in arguments]
        sizes = (*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3], shared_bytes)
        rest = (self._stream(self._device), function.attribute, attributes)
        with self._lock:  # the storage is the function's; the driver has copied it when it returns
            packed = function.packed or function.prepared(arguments)
            _CONFIGURATION.pack_into(function.configuration, 0, *sizes, *rest)
            try:
                packed.pack_into(function.storage, 0, *values)
            except StructError as error:
                raise TypeError(
                    f"{function.name}: {error}; arguments keep the kinds of its first launch"
                ) from error
            status = self._enqueue(*function.passed)
            if status == INVALID_CONTEXT:  # a thread that has not used the device yet
                self._driver.cuCtxSetCurrent(self._context)
                status = self._enqueue(*function.passed)
        if status:
            where = f"{function.name} as {grid} blocks of {block} threads"
            raise RuntimeError(f"the CUDA driver refused to launch {where}: error {status}")


class _Function:
    """A function, and the memory that its launches are described in."""

    def __init__(self, name: str, handle: int) -> None:
        self.name = name
        self.packed: Struct | None = None  # from its arguments to `storage`
        self.configuration = bytearray(_CONFIGURATION.size)
        self.storage = bytearray()
        self._attribute = bytearray(_ATTRIBUTE.pack(PROGRAMMATIC_STREAM_SERIALIZATION, 1))
        self.attribute = _address(self._attribute)
        self._handle = handle
        self.passed: tuple[object, ...] = ()  # to the driver

    def prepared(self, arguments: tuple[Argument, ...]) -> Struct:
        """Make room for arguments of these kinds."""
        kinds = [_kind(a) for a in arguments]
        packed = Struct("=" + "".join(kinds))
        self.storage = bytearray(packed.size)
        first = _address(self.storage)
        places = accumulate((calcsize(f"={kind}") for kind in kinds), initial=first)
        addresses = (ctypes.c_void_p * len(arguments))(*islice(places, len(arguments)))
        configuration = ctypes.c_void_p(_address(self.configuration))
        self.passed = (configuration, ctypes.c_void_p(self._handle), addresses, None)
        self.packed = packed
        return packed


def _kind(argument: Argument) -> str:
    """As what it is packed, 8 bytes or a multiple."""
    if isinstance(argument, bytes):
        return f"{len(argument)}s"
    return "f4x" if isinstance(argument, float) else "i4x" if isinstance(argument, int) else "Q"


def _address(memory: bytearray) -> int:
    """Of its first byte; it stays there as long as nothing resizes it."""
    return ctypes.addressof((ctypes.c_char * len(memory)).from_buffer(memory))
