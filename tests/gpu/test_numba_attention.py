"""paged_attention in Numba CUDA against its reference: in the simulator, and on a device in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpu.paged_attention.source import Heads
from gpu.paged_attention.tiling import tiled

ROOT = Path(__file__).parents[2]
SHARED_BYTES = 48 * 1024  # what a block may have where nothing is asked for
REGISTERS = 255  # of a thread


def run_cases(**environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "tests/gpu/numba_attention_cases.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_kernel_agrees_with_the_reference_in_the_simulator() -> None:
    done = run_cases(NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_the_kernel_agrees_with_float64_on_a_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    done = run_cases(NUMBA_ENABLE_CUDASIM="0")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("group", [1, 3, 4, 7, 8, 16])
@pytest.mark.parametrize("most_tokens", [1, 5])
def test_every_head_dim_fits_a_block(dtype: torch.dtype, group: int, most_tokens: int) -> None:
    for head_dim in range(8, 257, 8):
        tiling = tiled(Heads(2 * group, 2, head_dim, dtype), most_tokens, 512, 132, 32)
        assert tiling.threads == 128 >= tiling.words
        assert tiling.chunks * tiling.queries >= group * most_tokens
        asked, products = tiling.queries * tiling.padded, 8 * tiling.pitch
        assert 4 * (asked + products + tiling.tile * tiling.queries + 4 * tiling.tile + 200) < SHARED_BYTES
        held = 2 * (tiling.steps * tiling.slice_words + tiling.turns) + tiling.queries * tiling.elements
        assert held + tiling.steps * tiling.queries < REGISTERS
