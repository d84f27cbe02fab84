"""CUDA C++ sources: which file, which functions, compiled with which constants.

Importing this needs no GPU, no compiler and no CuPy, so that sources can be compiled where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Constants = Mapping[str, int]

_FOLDER = Path(__file__).parent
# What is put before sources: before all of them, before most, before those for Hopper (sm_90a).
BASE = _FOLDER / "base.cuh"
COMMON = (BASE, _FOLDER / "common.cuh")
HOPPER = (*COMMON, _FOLDER / "hopper.cuh")


@dataclass(frozen=True, slots=True)
class Source:
    """A file of CUDA C++ that includes nothing but what is before it here.

    `functions` are its `extern "C"` kernels. Constants become macros; each of `variants` is a set of them
    that is worth compiling in a test. `shared` files, if any, are put before it. It compiles for each of
    `architectures`; one that ends in "a" runs on that very capability alone.
    """

    path: Path
    functions: tuple[str, ...]
    variants: tuple[Constants, ...]
    shared: tuple[Path, ...] = ()
    architectures: tuple[str, ...] = ("sm_80", "sm_89", "sm_90")

    def text(self) -> str:
        """What is compiled."""
        return "\n".join(path.read_text(encoding="utf-8") for path in (*self.shared, self.path))


def compiler_options(constants: Constants) -> tuple[str, ...]:
    """For NVRTC; the architecture is up to who compiles."""
    return ("-std=c++17", "-lineinfo", *(f"-D{name}={value}" for name, value in sorted(constants.items())))
