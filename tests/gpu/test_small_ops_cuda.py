"""rms_norm, silu_mul and rope_write_kv in CUDA C++ against their definitions in float64, on a device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("cupy")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from gpu.rms_norm.cupy_kernel import RmsNorm
from gpu.rope_write_kv.cupy_kernel import RopeWriteKv
from gpu.rope_write_kv.norms import HeadNorms
from gpu.rope_write_kv.source import HEADS
from gpu.silu_mul.cupy_kernel import SiluMul

pytestmark = pytest.mark.gpu

# By dtype: the largest error of the whole, ||found - expected|| / ||expected||; numbers are rounded twice.
DTYPES = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}
EPS = 1e-5


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, device="cuda")).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan"), device="cuda", dtype=dtype)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """As a whole, and no element off by more than ten times that of the largest."""
    assert found.isfinite().all()
    error = found.double() - expected
    assert error.norm() <= DTYPES[found.dtype] * expected.norm()
    assert error.abs().max() <= 10 * DTYPES[found.dtype] * expected.abs().max()


def replayed(call: Callable[[], None], *spoilt: Tensor) -> None:
    """Capture the call, poison what it writes, and replay it once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for tensor in spoilt:
        tensor.fill_(float("nan"))
    graph.replay()


def normed(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return weight.double() * wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt()


@pytest.mark.parametrize(
    ("rows", "dim"),
    [(1, 8), (3, 264), (1, 1024), (257, 1024), (1, 4096), (257, 4096), (2, 8192), (300, 5120)],
)
def test_rms_norm(rows: int, dim: int, dtype: torch.dtype) -> None:
    op = RmsNorm(dtype)
    x, weight = random(rows, dim, dtype=dtype, scale=30), random(dim, dtype=dtype)
    kept, out = x.clone(), poisoned(rows, dim, dtype=dtype)
    op(x, weight, EPS, out)
    assert_near(out, normed(x, weight))
    assert torch.equal(x, kept)
    once = out.clone()
    replayed(lambda: op(x, weight, EPS, out), out)
    assert torch.equal(out, once)
    op(x, weight, EPS, x)
    assert torch.equal(x, once)


@pytest.mark.parametrize(("rows", "dim"), [(1, 8), (3, 264), (257, 1024), (1, 4096), (300, 8192)])
def test_rms_norm_of_wide_rows(rows: int, dim: int, dtype: torch.dtype) -> None:
    op = RmsNorm(dtype)
    x, weight = random(rows, dim, dtype=torch.float32, scale=30), random(dim, dtype=dtype)
    kept, out = x.clone(), poisoned(rows, dim, dtype=dtype)
    op(x, weight, EPS, out)
    assert_near(out, normed(x, weight))
    assert torch.equal(x, kept)
    once = out.clone()
    replayed(lambda: op(x, weight, EPS, out), out)
    assert torch.equal(out, once)


@pytest.mark.parametrize(("rows", "dim"), [(1, 1024), (1, 4096), (257, 4096), (300, 8192), (5, 24)])
def test_rms_norm_adds_first(rows: int, dim: int, dtype: torch.dtype) -> None:
    op = RmsNorm(dtype)
    stream, delta = random(rows, dim, dtype=dtype), random(rows, dim, dtype=dtype)
    weight, out = random(dim, dtype=dtype), poisoned(rows, dim, dtype=dtype)
    x = stream.clone()
    op(x, weight, EPS, out, delta)
    assert torch.equal(x, stream + delta)
    assert_near(out, normed(x, weight))
    again, into = stream.clone(), delta.clone()
    op(again, weight, EPS, into, into)
    assert torch.equal(again, x)
    assert torch.equal(into, out)


def test_rms_norm_of_rows_that_lie_apart(dtype: torch.dtype) -> None:
    wide, out = random(9, 3 * 1024, dtype=dtype), poisoned(9, 2 * 1024, dtype=dtype)
    weight = random(1024, dtype=dtype)
    RmsNorm(dtype)(wide[:, 1024:2048], weight, EPS, out[:, 1024:])
    assert_near(out[:, 1024:], normed(wide[:, 1024:2048], weight))
    assert out[:, :1024].isnan().all()


@pytest.mark.parametrize(("rows", "dim"), [(1, 8), (1, 14336), (257, 3072), (16, 3080), (2000, 264)])
def test_silu_mul(rows: int, dim: int, dtype: torch.dtype) -> None:
    op = SiluMul(dtype)
    both, out = random(rows, 2 * dim, dtype=dtype, scale=5), poisoned(rows, dim, dtype=dtype)
    gate, up = both[:, :dim], both[:, dim:]
    expected = gate.double() / (1 + (-gate.double()).exp()) * up.double()
    op(gate, up, out)
    assert_near(out, expected)
    once = out.clone()
    replayed(lambda: op(gate, up, out), out)
    assert torch.equal(out, once)
    op(gate, up, gate)
    assert torch.equal(gate, once)


def test_silu_mul_of_large_numbers() -> None:
    gate = torch.tensor([[-1e4, -100.0, -90.0, 90.0, 100.0, 1e4, 0.0, 1.0]], device="cuda")
    out = torch.empty_like(gate)
    SiluMul(torch.float32)(gate, torch.ones_like(gate), out)
    torch.testing.assert_close(out, torch.nn.functional.silu(gate))


@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("tokens", [1, 257])
@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 8), (5, 1)])
@pytest.mark.parametrize(("head_dim", "pairs"), HEADS)
def test_rope_write_kv(
    head_dim: int,
    pairs: int,
    heads: int,
    kv_heads: int,
    tokens: int,
    normalised: bool,
    dtype: torch.dtype,
) -> None:
    op = RopeWriteKv(dtype, head_dim, pairs)
    drawn = random(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
    together = drawn.clone()
    query, key, value = together.split([heads, kv_heads, kv_heads], dim=1)
    angles = 1000 * torch.rand(tokens, pairs, device="cuda")
    slots = torch.randperm(2 * tokens + 30, device="cuda")[:tokens].int()
    pools = poisoned(2, tokens + 15, 2, kv_heads, head_dim, dtype=dtype)
    weights = random(2, head_dim, dtype=dtype)
    norms = HeadNorms(weights[0], weights[1], EPS) if normalised else None

    cos, sin = angles.cos(), angles.sin()

    def call() -> None:
        op(query, key, value, cos, sin, slots, pools[0], pools[1], norms)

    call()
    turned, stored = together.clone(), pools.clone()
    of_query, of_key, of_value = drawn.split([heads, kv_heads, kv_heads], dim=1)
    assert_near(turned[:, :heads], rotated(of_query, angles, norms and norms.query))
    assert torch.equal(turned[:, heads:], drawn[:, heads:])
    keys, values = stored.flatten(1, 2)[:, slots.long()]
    assert_near(keys, rotated(of_key, angles, norms and norms.key))
    assert torch.equal(values, of_value)
    others = torch.ones(2 * tokens + 30, dtype=torch.bool, device="cuda")
    others[slots.long()] = False
    assert stored.flatten(1, 2)[:, others].isnan().all()

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    together.copy_(drawn)
    pools.fill_(float("nan"))
    graph.replay()
    assert torch.equal(together, turned)
    assert torch.equal(pools.nan_to_num(7.0), stored.nan_to_num(7.0))


def rotated(heads: Tensor, angles: Tensor, norm: Tensor | None) -> Tensor:
    """Element i of a head and element i + pairs as a complex number, turned; in float64."""
    wide = heads.double() if norm is None else normed(heads, norm)
    pairs = angles.shape[1]
    numbers = torch.complex(wide[..., :pairs], wide[..., pairs : 2 * pairs])
    wheel = torch.complex(angles.cos().double(), angles.sin().double())  # as exact as what the op is given
    turned = numbers * wheel[:, None]
    return torch.cat([turned.real, turned.imag, wide[..., 2 * pairs :]], dim=-1)


def test_what_does_not_fit_is_refused_before_a_launch() -> None:
    norm, gate = RmsNorm(torch.bfloat16), SiluMul(torch.bfloat16)
    x = random(2, 12, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="need a multiple of 8"):
        norm(x, x[0], EPS, x)
    with pytest.raises(ValueError, match="need a multiple of 8"):
        gate(x, x, x)
    x = random(2, 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"weight is torch.float32; make it torch.bfloat16"):
        norm(x, x[0].float(), EPS, x)
    with pytest.raises(ValueError, match="65 pairs turn in heads of 128"):
        RopeWriteKv(torch.bfloat16, 128, 65)
    with pytest.raises(ValueError, match=r"torch.int8 has no kernel"):
        RmsNorm(torch.int8)
