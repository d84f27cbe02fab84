"""Every implementation of every operation against its definition in float64, and its contract's edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module

import pytest
import torch
from torch import Tensor

from gpu.rope_write_kv.norms import HeadNorms
from gpu.table import REFERENCE, Ops

IMPLEMENTATIONS = {"reference": REFERENCE}
DTYPES = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # and the relative error allowed


@pytest.fixture(params=list(IMPLEMENTATIONS))
def ops(request: pytest.FixtureRequest) -> Ops:
    return IMPLEMENTATIONS[request.param]


@pytest.fixture
def random() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(4)
    return lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)


def assert_near(found: Tensor, expected: Tensor) -> None:
    tolerance = DTYPES[found.dtype]
    largest = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=2 * tolerance, atol=2 * tolerance * largest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (5, 48), (3, 1001)])
def test_rms_norm(
    ops: Ops, random: Callable[..., Tensor], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    x, weight = 30 * random(*shape, dtype=dtype), random(shape[1], dtype=dtype)
    wide = x.double()
    expected = weight.double() * wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt()
    out = torch.empty_like(x)
    ops.rms_norm(x, weight, 1e-5, out)
    assert_near(out, expected)
    ops.rms_norm(x, weight, 1e-5, x)
    assert torch.equal(x, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_adds_first(ops: Ops, random: Callable[..., Tensor], dtype: torch.dtype) -> None:
    x, delta, weight = random(5, 48, dtype=dtype), random(5, 48, dtype=dtype), random(48, dtype=dtype)
    added, apart, together = x + delta, torch.empty_like(x), delta.clone()
    ops.rms_norm(added, weight, 1e-5, apart)
    ops.rms_norm(x, weight, 1e-5, together, together)
    assert torch.equal(x, added)
    assert torch.equal(together, apart)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_mul(ops: Ops, random: Callable[..., Tensor], dtype: torch.dtype) -> None:
    gate, up = 5 * random(7, 33, dtype=dtype), random(7, 33, dtype=dtype)
    expected = gate.double() / (1 + (-gate.double()).exp()) * up.double()
    out = torch.empty_like(gate)
    ops.silu_mul(gate, up, out)
    assert_near(out, expected)
    ops.silu_mul(gate, up, gate)
    assert torch.equal(gate, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("biased", [False, True])
def test_linear(ops: Ops, random: Callable[..., Tensor], rows: int, biased: bool, dtype: torch.dtype) -> None:
    x, weight = random(rows, 96, dtype=dtype), random(41, 96, dtype=dtype)
    bias = random(41, dtype=dtype) if biased else None
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    out = torch.empty(rows, 41, dtype=dtype)
    ops.linear(x, weight, bias, out)
    assert_near(out, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "pairs"), [(16, 8), (20, 10), (16, 5)])
def test_rope_write_kv(
    ops: Ops, random: Callable[..., Tensor], head_dim: int, pairs: int, dtype: torch.dtype
) -> None:
    query, key = random(5, 4, head_dim, dtype=dtype), random(5, 2, head_dim, dtype=dtype)
    value = random(5, 2, head_dim, dtype=dtype)
    angles = 100 * random(5, pairs)
    slots = torch.tensor([9, 3, 0, 7, 4], dtype=torch.int32)
    pools = torch.full((2, 3, 4, 2, head_dim), 7.0, dtype=dtype)  # of 3 blocks of 4 slots
    expected = [turned_by_complex_numbers(x.double(), angles.double()) for x in (query, key)]
    kept = key.clone()
    ops.rope_write_kv(query, key, value, angles.cos(), angles.sin(), slots, pools[0], pools[1])
    assert_near(query, expected[0])
    keys, values = pools.flatten(1, 2)
    assert_near(keys[slots.long()], expected[1])
    assert torch.equal(values[slots.long()], value)
    assert torch.equal(key, kept)
    untouched = [slot for slot in range(12) if slot not in slots.tolist()]
    assert (pools.flatten(1, 2)[:, untouched] == 7.0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope_write_kv_normalises_heads_first(
    ops: Ops, random: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    query, key, value = (random(3, heads, 32, dtype=dtype) for heads in (4, 2, 2))
    cos, sin = random(3, 16), random(3, 16)
    norms = HeadNorms(random(32, dtype=dtype), random(32, dtype=dtype), 1e-5)
    slots, pools = torch.tensor([2, 0, 3], dtype=torch.int32), random(2, 2, 2, 2, 32, dtype=dtype)
    apart, expected = [torch.empty_like(query), torch.empty_like(key)], pools.clone()
    ops.rms_norm(query.flatten(0, 1), norms.query, norms.eps, apart[0].flatten(0, 1))
    ops.rms_norm(key.flatten(0, 1), norms.key, norms.eps, apart[1].flatten(0, 1))
    ops.rope_write_kv(*apart, value, cos, sin, slots, expected[0], expected[1])
    ops.rope_write_kv(query, key, value, cos, sin, slots, pools[0], pools[1], norms)
    assert torch.equal(query, apart[0])
    assert torch.equal(pools, expected)


def turned_by_complex_numbers(x: Tensor, angles: Tensor) -> Tensor:
    """The first elements of each head, paired with those half the turning part further, as a + bi."""
    pairs = angles.shape[1]
    numbers = torch.complex(x[..., :pairs], x[..., pairs : 2 * pairs])
    turned = numbers * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([turned.real, turned.imag, x[..., 2 * pairs :]], dim=-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 1, 6, 100])
def test_paged_attention(
    ops: Ops, random: Callable[..., Tensor], window: int | None, dtype: torch.dtype
) -> None:
    heads, kv_heads, head_dim, block_size = 6, 2, 20, 4
    counts, contexts = [1, 5, 1, 3], [1, 5, 13, 10]  # a first token, a whole prompt, a decode, a later chunk
    tables = torch.tensor([[3, 0, 0, 0], [9, 1, 0, 0], [4, 8, 0, 2], [7, 5, 6, 0]], dtype=torch.int32)
    pools = random(2, 10, block_size, kv_heads, head_dim, dtype=dtype)
    query = random(sum(counts), heads, head_dim, dtype=dtype)
    starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
    out = torch.empty_like(query)
    ops.paged_attention(
        query,
        pools[0],
        pools[1],
        tables,
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(contexts, dtype=torch.int32),
        0.3,
        window,
        out,
    )
    for row, (count, context) in enumerate(zip(counts, contexts, strict=True)):
        for ahead in range(count):
            token, position = starts[row] + ahead, context - count + ahead
            first = 0 if window is None else max(position - window + 1, 0)
            seen = [(int(tables[row, p // block_size]), p % block_size) for p in range(first, position + 1)]
            for head in range(heads):
                expected = attended(query[token, head], pools, seen, head * kv_heads // heads, 0.3)
                assert_near(out[token, head], expected)


def attended(query: Tensor, pools: Tensor, seen: list[tuple[int, int]], head: int, scale: float) -> Tensor:
    """One query of one head over the (block, offset) that it sees, in float64."""
    keys = torch.stack([pools[0, block, offset, head].double() for block, offset in seen])
    values = torch.stack([pools[1, block, offset, head].double() for block, offset in seen])
    weights = (scale * keys @ query.double()).softmax(0)
    return weights @ values


def test_attention_of_large_scores_stays_finite(ops: Ops) -> None:
    query = torch.full((1, 1, 4), 1e4)
    pools = torch.full((2, 1, 4, 1, 4), 1e4)
    out = torch.empty_like(query)
    table, one = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([4], dtype=torch.int32)
    starts = torch.tensor([0, 1], dtype=torch.int32)
    ops.paged_attention(query, pools[0], pools[1], table, starts, one, 1 / math.sqrt(4), None, out)
    assert torch.equal(out, query)


def test_every_operation_has_a_contract() -> None:
    for name in {field.name for field in fields(Ops)} - {"verify_attention"}:  # whose is paged_attention's
        contract = import_module(f"gpu.{name}").__doc__ or ""
        assert contract.startswith(f"{name}(")
        assert "| tensor" in contract
