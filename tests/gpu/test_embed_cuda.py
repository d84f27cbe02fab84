"""embed in CUDA C++ against its definition, the angles in float64, on a device."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("cupy")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from gpu.embed.cupy_kernel import Embed

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NEAR = 1e-6  # of an angle's cosine, in all


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["same", "float32"])
@pytest.mark.parametrize(
    ("count", "dim", "pairs"), [(1, 8, 1), (1, 4096, 64), (257, 1024, 32), (40, 7168, 300)]
)
def test_a_step_begins(dtype: torch.dtype, wide: bool, count: int, dim: int, pairs: int) -> None:
    hidden_dtype = torch.float32 if wide else dtype
    op, vocab, rows = Embed(dtype, hidden_dtype), 1000, 30
    embedding = torch.randn(vocab, dim, device="cuda").to(dtype)
    given = torch.randint(vocab, (count,), device="cuda", dtype=torch.int32)
    sources = torch.randint(-rows, rows, (count,), device="cuda", dtype=torch.int32)
    sampled = torch.randint(vocab, (rows,), device="cuda", dtype=torch.int32)
    positions = torch.randint(1_000_001, (count,), device="cuda", dtype=torch.int32)
    positions[0] = 1_000_000
    frequencies = 500_000.0 ** -(torch.arange(pairs, device="cuda") / pairs)
    hidden = torch.full((count, dim + 8), torch.nan, device="cuda", dtype=hidden_dtype)
    cos, sin = torch.full((2, count, pairs), torch.nan, device="cuda")
    tokens = given.clone()

    def call() -> None:
        op(tokens, sources, sampled, positions, embedding, frequencies, 1.25, hidden[:, :dim], cos, sin)

    def check() -> None:
        ids = torch.where(sources >= 0, sampled[sources.clamp(min=0).long()], given)
        assert torch.equal(tokens, ids)
        assert torch.equal(hidden[:, :dim], embedding[ids.long()].to(hidden_dtype))
        assert hidden[:, dim:].isnan().all()
        angles = (positions[:, None].float() * frequencies).double()
        assert (cos.double() - 1.25 * angles.cos()).abs().max() <= 1.25 * NEAR
        assert (sin.double() - 1.25 * angles.sin()).abs().max() <= 1.25 * NEAR

    call()
    check()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    sampled.random_(vocab)
    given.random_(vocab)
    tokens.copy_(given)
    for spoilt in (hidden, cos, sin):
        spoilt.fill_(torch.nan)
    graph.replay()
    check()


@pytest.mark.parametrize("top", [1.0, 50.0, 1e6, 2.0**31])
def test_angles_are_right_at_any_position(top: float) -> None:
    count, pairs = 2000, 256
    positions = (top * torch.rand(count, device="cuda", dtype=torch.float64)).clamp(max=2**31 - 1).int()
    frequencies = torch.rand(pairs, device="cuda")
    zeros, none = torch.zeros_like(positions), torch.empty(0, device="cuda", dtype=torch.int32)
    cos, sin = torch.full((2, count, pairs), torch.nan, device="cuda")
    hidden, embedding = torch.empty(count, 4, device="cuda"), torch.zeros(1, 4, device="cuda")
    Embed(torch.float32)(zeros, zeros - 1, none, positions, embedding, frequencies, 1.0, hidden, cos, sin)
    angles = (positions[:, None].float() * frequencies).double()
    assert (cos.double() - angles.cos()).abs().max() <= NEAR
    assert (sin.double() - angles.sin()).abs().max() <= NEAR


def test_what_does_not_fit_is_refused_before_a_launch() -> None:
    op = Embed(torch.bfloat16)
    embedding = torch.zeros(3, 16, device="cuda", dtype=torch.bfloat16)
    one, angles = torch.zeros(1, device="cuda", dtype=torch.int32), torch.zeros(1, 4, device="cuda")
    hidden = torch.empty(1, 16, device="cuda", dtype=torch.bfloat16)
    arguments = (one, one, one, one, embedding, angles[0], 1.0, hidden, angles, angles)
    op(*arguments)
    with pytest.raises(ValueError, match=r"hidden is torch.float32; make it torch.bfloat16"):
        op(*arguments[:7], hidden.float(), angles, angles)
    with pytest.raises(ValueError, match=r"positions is torch.int64\[1\]"):
        op(*arguments[:3], one.long(), *arguments[4:])
    with pytest.raises(ValueError, match="need a multiple of 8"):
        op(*arguments[:4], embedding[:, :12].contiguous(), *arguments[5:])
    with pytest.raises(ValueError, match=r"writes rows of torch.float32 or torch.float32"):
        Embed(torch.float32, torch.float16)
    with pytest.raises(ValueError, match=r"torch.int8 has no kernel"):
        Embed(torch.int8)
