"""copy_blocks and gather_ids: their references by example, and their Numba kernels against these."""

from __future__ import annotations

import pytest
import torch

from gpu.copy_blocks.reference import copy_blocks
from gpu.gather_ids.reference import gather_ids
from tests.gpu.scripts import ROOT, run_script


def test_kernels_agree_with_the_references_in_the_simulator() -> None:
    run_script("numba_cases.py", NUMBA_ENABLE_CUDASIM="1")


@pytest.mark.gpu
def test_kernels_agree_with_the_references_on_a_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run_script("numba_cases.py", NUMBA_ENABLE_CUDASIM="0")


def test_blocks_are_copied_in_every_plane() -> None:
    pool = torch.arange(2 * 4 * 3).view(2, 4, 3)
    sources, targets = torch.tensor([[2, -1, 3], [0, 1, 1]], dtype=torch.int32)
    expected = pool.clone()
    expected[:, 0], expected[:, 1] = pool[:, 2], pool[:, 3]
    copy_blocks(pool, sources, targets)
    assert torch.equal(pool, expected)


def test_ids_not_yet_drawn_are_filled_in() -> None:
    tokens = torch.tensor([5, 0, 7, 0], dtype=torch.int32)
    sources = torch.tensor([-1, 2, -1, 0], dtype=torch.int32)
    gather_ids(torch.tensor([40, 41, 42], dtype=torch.int32), sources, tokens)
    assert tokens.tolist() == [5, 42, 7, 40]
    gather_ids(torch.tensor([], dtype=torch.int32), torch.full_like(sources, -1), tokens)
    assert tokens.tolist() == [5, 42, 7, 40]


@pytest.mark.parametrize("name", ["copy_blocks", "gather_ids"])
def test_they_have_contracts(name: str) -> None:
    contract = (ROOT / "gpu" / name / "__init__.py").read_text()
    assert contract.startswith(f'"""{name}(')
    assert "| tensor" in contract
