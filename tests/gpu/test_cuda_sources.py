"""Every CUDA source compiles for the architectures that are served, without a GPU, and spills nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.gpu_kernels.compile import ROOT, CompilationError, compiled, sources
from gpu.source import Constants, Source

SOURCES = sources()
# Bytes a thread, by the name of the operation and a part of its constants. Nothing else may spill.
KNOWN_SPILLS = {("paged_attention", ("HEAD_DIM", 256)): 256}
VARIANTS = [
    pytest.param(
        op,
        source,
        constants,
        architecture,
        id=f"{op}-{'-'.join(f'{k}={v}' for k, v in constants.items())}-{architecture}",
    )
    for op, source in SOURCES.items()
    for constants in source.variants
    for architecture in source.architectures
]


def test_every_kernel_file_is_the_source_of_its_folder() -> None:
    files = {path.parent.name: path for path in (ROOT / "gpu").glob("*/kernel.cu")}
    assert {op: source.path for op, source in SOURCES.items()} == files
    assert all(source.variants and source.functions for source in SOURCES.values())


@pytest.mark.parametrize(("op", "source", "constants", "architecture"), VARIANTS)
def test_it_compiles_and_keeps_to_its_registers(
    op: str, source: Source, constants: Constants, architecture: str
) -> None:
    done = compiled(source.text(), constants, architecture)
    assert not done.warnings
    assert {function.name for function in done.functions} == set(source.functions)
    most = max((KNOWN_SPILLS.get((op, item), 0) for item in constants.items()), default=0)
    assert not [function for function in done.functions if max(function.spilled, function.stack) > most]


@pytest.mark.parametrize("path", sorted((ROOT / "gpu").rglob("*.cu*")), ids=lambda path: path.parent.name)
def test_it_needs_no_headers(path: Path) -> None:
    assert "#include" not in path.read_text(encoding="utf-8")


def test_a_function_that_spills_or_warns_is_noticed() -> None:
    text = """
    extern "C" __global__ void indexed(float* a, int n) {
        float held[64];
        for (int i = 0; i < 64; i++) held[i] = a[i * 7];
        for (int i = 0; i < 64; i++) a[i] = held[i * n & 63];
    }
    extern "C" __global__ void __launch_bounds__(1024) crowded(float* a) {
        float held[128];
        for (int i = 0; i < 128; i++) held[i] = a[i * 1024 + threadIdx.x];
        __syncthreads();
        for (int i = 0; i < 128; i++) a[i * 1024 + threadIdx.x] = held[i] * held[127 - i];
    }
    extern "C" __global__ void plain(float* a) {
        __shared__ float b[32];
        int c;
        b[threadIdx.x] = *a;
        *a = b[9];
    }
    """
    done = compiled(text, {}, "sm_90")
    found = {function.name: function for function in done.functions}
    assert found["indexed"].stack == 256
    assert found["crowded"].spilled > 0
    assert found["crowded"].registers == 64
    assert (found["plain"].spilled, found["plain"].stack, found["plain"].shared) == (0, 0, 128)
    assert '"c" was declared but never referenced' in done.warnings


def test_what_does_not_compile_is_told_in_the_words_of_the_compiler() -> None:
    with pytest.raises(CompilationError, match=r'sm_80: kernel.cu.1.: error: identifier "NONE" is undefined'):
        compiled('extern "C" __global__ void f(int* a) { *a = NONE; }', {"SOME": 1}, "sm_80")
