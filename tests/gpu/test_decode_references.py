"""The references of what a decode step fuses are the references of its parts, one after the other."""

from __future__ import annotations

import pytest
import torch

from gpu.decode_attention.reference import decode_attention
from gpu.decode_attention.source import constants
from gpu.linear.reference import fused_linear, linear
from gpu.linear.source import PLANS, Form, Into, planned
from gpu.paged_attention.reference import paged_attention
from gpu.paged_attention.source import Heads
from gpu.rms_norm.reference import rms_norm
from gpu.rope_write_kv.norms import HeadNorms
from gpu.rope_write_kv.reference import rope_write_kv
from gpu.silu_mul.reference import silu_mul

EPS = 1e-5


@pytest.mark.parametrize("into", list(Into))
def test_a_fused_product_is_a_norm_a_product_and_what_becomes_of_it(into: Into) -> None:
    x, norm, weight, bias = torch.randn(3, 16), torch.randn(16), torch.randn(24, 16), torch.randn(24)
    normed, sums = torch.empty_like(x), torch.empty(3, 24)
    rms_norm(x, norm, EPS, normed)
    linear(normed, weight, bias, sums)
    out = torch.randn(3, 12 if into is Into.GATED else 24)
    expected = sums
    if into is Into.ADDED:
        expected = out + sums
    if into is Into.GATED:
        expected = torch.empty_like(out)
        silu_mul(sums[:, :12], sums[:, 12:], expected)
    form = Form(normed=True, into=into)
    fused_linear(form, x, weight, out, bias=bias, norm=norm, eps=EPS)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("window", [None, 6])
def test_decode_attention_turns_stores_and_attends(window: int | None) -> None:
    shape = Heads(4, 2, 8, torch.float32)
    contexts = torch.tensor([5, 0, 17], dtype=torch.int32)
    tables = torch.tensor([[3, 0], [0, 0], [1, 2]], dtype=torch.int32)
    pools, expected_pools = torch.randn(2, 4, 16, 2, 8), torch.empty(2, 4, 16, 2, 8)
    expected_pools.copy_(pools)
    query, key, value = torch.randn(3, 4, 8), torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    angles = torch.rand(3, 4)
    norms = HeadNorms(torch.randn(8), torch.randn(8), EPS)
    out = torch.full((3, 4, 8), 7.0)
    cos, sin = angles.cos(), angles.sin()
    decode_attention(query, key, value, cos, sin, *pools, tables, contexts, 0.3, window, out, norms)
    live, turned = torch.tensor([0, 2]), query[[0, 2]]
    slots = torch.tensor([3 * 16 + 4, 2 * 16], dtype=torch.int32)
    rope_write_kv(turned, key[live], value[live], cos[live], sin[live], slots, *expected_pools, norms)
    starts, found = torch.arange(3, dtype=torch.int32), torch.empty_like(turned)
    paged_attention(turned, *expected_pools, tables[live], starts, contexts[live], 0.3, window, found)
    torch.testing.assert_close(out[live], found)
    torch.testing.assert_close(pools, expected_pools)
    assert (out[1] == 7.0).all()
    assert shape.group == 2


def test_every_matrix_has_a_plan_that_its_form_compiles() -> None:
    forms = [Form(), Form(normed=True), Form(into=Into.ADDED), Form(normed=True, into=Into.GATED)]
    for form in forms:
        for rows in (1, 8, 9, 16):
            for inputs, outputs in ((64, 16), (1024, 3072), (4096, 28672), (14336, 4096)):
                plan = planned(form, rows, inputs, outputs, 132)
                assert plan in form.plans
                assert plan in PLANS


@pytest.mark.parametrize(
    ("shape", "pairs"),
    [
        (Heads(8, 8, 96, torch.bfloat16), 48),
        (Heads(8, 8, 128, torch.float32), 64),
        (Heads(34, 2, 64, torch.bfloat16), 32),
        (Heads(8, 8, 128, torch.bfloat16), 65),
        (Heads(8, 8, 128, torch.bfloat16), 6),
    ],
    ids=str,
)
def test_heads_that_the_kernel_does_not_take_are_refused(shape: Heads, pairs: int) -> None:
    with pytest.raises(ValueError, match="decode_attention"):
        constants(shape, pairs, normed=False)
