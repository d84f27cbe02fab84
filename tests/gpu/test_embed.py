"""The reference of embed, by example."""

from __future__ import annotations

import pytest
import torch

import gpu.embed
from gpu.embed.reference import embed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["same", "float32"])
def test_a_step_begins(dtype: torch.dtype, wide: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    embedding = torch.randn(50, 16, generator=generator).to(dtype)
    tokens, sources = torch.tensor([5, 0, 7, 0], dtype=torch.int32), torch.tensor([-1, 2, -1, 0]).int()
    positions = torch.tensor([0, 3, 100, 1_000_000], dtype=torch.int32)
    frequencies = 0.5 ** torch.arange(8.0)
    hidden = torch.full((4, 16), 9.0, dtype=torch.float32 if wide else dtype)
    cos, sin = torch.empty(2, 4, 8)
    sampled = torch.tensor([40, 41, 42], dtype=torch.int32)
    embed(tokens, sources, sampled, positions, embedding, frequencies, 1.5, hidden, cos, sin)
    assert tokens.tolist() == [5, 42, 7, 40]
    assert torch.equal(hidden, embedding[[5, 42, 7, 40]].to(hidden.dtype))
    angles = (positions[:, None] * frequencies).double()
    torch.testing.assert_close(cos.double(), 1.5 * angles.cos(), rtol=0, atol=2e-6)
    torch.testing.assert_close(sin.double(), 1.5 * angles.sin(), rtol=0, atol=2e-6)


def test_nothing_may_have_been_sampled() -> None:
    tokens, none = torch.tensor([1], dtype=torch.int32), torch.empty(0, dtype=torch.int32)
    hidden, angles = torch.empty(1, 4), torch.empty(1, 2)
    one = torch.tensor([-1], dtype=torch.int32)
    embed(tokens, one, none, one + 1, torch.eye(4), torch.ones(2), 1.0, hidden, angles, angles.clone())
    assert hidden.tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_it_has_a_contract() -> None:
    assert (gpu.embed.__doc__ or "").startswith("embed(")
    assert "| tensor" in (gpu.embed.__doc__ or "")
