"""paged_attention in Numba CUDA against float64, in the simulator and on a device, and how it is laid out."""

from __future__ import annotations

import pytest
import torch

from gpu.paged_attention.source import Heads
from gpu.paged_attention.tiling import tiled
from tests.gpu.scripts import run_script

SHARED_BYTES = 48 * 1024  # what a block may have where nothing is asked for
REGISTERS = 255  # of a thread


def test_the_kernel_agrees_with_float64_in_the_simulator() -> None:
    run_script("numba_attention_cases.py", NUMBA_ENABLE_CUDASIM="1")


@pytest.mark.gpu
def test_the_kernel_agrees_with_float64_on_a_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run_script("numba_attention_cases.py", NUMBA_ENABLE_CUDASIM="0")


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
