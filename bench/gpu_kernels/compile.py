"""Compile the CUDA sources of `gpu/` without a GPU, and tell what registers and memory each function takes.

    python -m bench.gpu_kernels.compile gpu/rms_norm                  every variant in its source.py
    python -m bench.gpu_kernels.compile gpu/rms_norm -DDIM=1024       one variant
    python -m bench.gpu_kernels.compile kernel.cu -DDIM=1024          a file, put after each `--shared FILE`

Needs the packages `nvidia-cuda-nvrtc` and `cuda-bindings`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from cuda.bindings import nvrtc

from gpu.source import Constants, Source, compiler_options

ROOT = Path(__file__).parents[2]
_FUNCTION = re.compile(
    r"Compiling entry function '(?P<name>\w+)'"
    r"(?:(?!Compiling).)*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
    r"(?:(?!Compiling).)*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_SHARED = re.compile(r"(\d+) bytes smem")
_CHATTER = re.compile(r"ptxas (info|  +\.)")  # what ptxas says of every function


class CompilationError(Exception):
    """The compiler's own words."""


@dataclass(frozen=True, slots=True)
class Function:
    """What a compiled function takes."""

    name: str
    registers: int  # a thread
    spilled: int  # bytes stored and loaded, a thread
    stack: int  # bytes of local memory, a thread
    shared: int  # bytes of it, a block


@dataclass(frozen=True, slots=True)
class Compiled:
    """The functions of one source for one architecture, and what the compiler complained of."""

    functions: tuple[Function, ...]
    warnings: str


def sources() -> dict[str, Source]:
    """By the name of the folder in `gpu/`, every source there is."""
    return {path.parent.name: source(path.parent.name) for path in sorted((ROOT / "gpu").glob("*/source.py"))}


def source(op: str) -> Source:
    """The source of an operation."""
    found = import_module(f"gpu.{op}.source").SOURCE
    assert isinstance(found, Source)
    return found


def compiled(text: str, constants: Constants, architecture: str) -> Compiled:
    """Compile to machine code. `CompilationError` where that fails."""
    status, program = nvrtc.nvrtcCreateProgram(text.encode(), b"kernel.cu", 0, [], [])
    _check(status)
    options = [*compiler_options(constants), f"-arch={architecture}", "--ptxas-options=-v"]
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])[0]
        log = _log(program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompilationError(f"{architecture}: {log}")
    warnings = "\n".join(line for line in log.splitlines() if line.strip() and not _CHATTER.match(line))
    return Compiled(tuple(_functions(log)), warnings)


def _functions(log: str) -> Iterator[Function]:
    for match in _FUNCTION.finditer(log):
        shared = _SHARED.search(match["rest"])
        yield Function(
            name=match["name"],
            registers=int(match["registers"]),
            spilled=int(match["stores"]) + int(match["loads"]),
            stack=int(match["stack"]),
            shared=int(shared[1]) if shared else 0,
        )


def _log(program: nvrtc.nvrtcProgram) -> str:
    status, size = nvrtc.nvrtcGetProgramLogSize(program)
    _check(status)
    log = bytearray(size)
    _check(*nvrtc.nvrtcGetProgramLog(program, log))
    return log.rstrip(b"\0 ").decode(errors="replace")


def _check(status: nvrtc.nvrtcResult) -> None:
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompilationError(str(status))


def _given(path: Path, shared: Sequence[Path]) -> Source:
    """A folder or its kernel by its source.py where there is one, else the file alone."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    if (folder / "source.py").exists() and folder.parent == ROOT / "gpu":
        return source(folder.name)
    file = path / "kernel.cu" if path.is_dir() else path
    return Source(file, functions=(), variants=({},), shared=tuple(shared))


def main() -> int:
    """Print a line for each function of each variant; 1 where a function spills or does not compile."""
    parser = argparse.ArgumentParser(description="Compile CUDA sources without a GPU.")
    parser.add_argument("source", type=Path, help="a folder of gpu/ or a .cu file")
    parser.add_argument("-D", dest="constants", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--shared", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--arch", action="append", metavar="sm_90")
    arguments = parser.parse_args()
    given = _given(arguments.source, arguments.shared)
    asked = {name: int(value) for name, _, value in (text.partition("=") for text in arguments.constants)}
    variants = (asked,) if asked else given.variants
    failed = False
    for constants in variants:
        print(" ".join(f"{name}={value}" for name, value in constants.items()) or "(no constants)")
        for architecture in arguments.arch or given.architectures:
            failed |= not _reported(given, constants, architecture)
    return int(failed)


def _reported(given: Source, constants: Constants, architecture: str) -> bool:
    try:
        done = compiled(given.text(), constants, architecture)
    except CompilationError as error:
        print(error)
        return False
    if done.warnings:
        print(done.warnings)
    for function in done.functions:
        print(
            f"  {architecture} {function.name:32} {function.registers:3} registers, "
            f"{function.shared:6} B shared, {function.stack:4} B stack, {function.spilled:4} B spilled"
        )
    missing = set(given.functions) - {function.name for function in done.functions}
    if missing:
        print(f"  not found: {', '.join(sorted(missing))}")
    return not missing and not any(function.spilled or function.stack for function in done.functions)


if __name__ == "__main__":
    sys.exit(main())
