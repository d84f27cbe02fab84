"""The reference decoder's own promises; what it computes is held against transformers elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.errors import ModelError
from tokenspeed.model.checkpoint import resolve
from tokenspeed.model.loading import Model, load
from tokenspeed.model.torch_decoder import TorchDecoder

TOKENS = torch.randint(0, 131, (50,), generator=torch.Generator().manual_seed(9)).tolist()


@pytest.fixture(scope="module")
def model(save: Any) -> Model:
    windowed = save("qwen3", use_sliding_window=True, sliding_window=9, max_window_layers=1, head_dim=20)
    return load(resolve(str(windowed.folder)))


@pytest.fixture(scope="module")
def whole(model: Model, run_on: Any) -> torch.Tensor:
    """The logits of all tokens in one step."""
    return run_on(TorchDecoder(model.spec, model.weights, block_size=16)).feed(TOKENS)


@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, len(TOKENS) - 1)))
def test_logits_do_not_depend_on_how_a_prompt_is_cut(
    model: Model, whole: torch.Tensor, run_on: Any, cuts: set[int]
) -> None:
    running = run_on(TorchDecoder(model.spec, model.weights, block_size=16))
    ends = [*sorted(cuts), len(TOKENS)]
    found = torch.cat([running.feed(TOKENS[running.length : end]) for end in ends])
    torch.testing.assert_close(found, whole, atol=2e-5, rtol=0)


def test_bfloat16_is_near_float32(model: Model, whole: torch.Tensor, run_on: Any) -> None:
    decoder = TorchDecoder(model.spec, model.weights, block_size=16, dtype=torch.bfloat16)
    found = run_on(decoder).feed(TOKENS)
    assert found.dtype == torch.float32
    assert float((found - whole).abs().mean()) < 0.03 * float(whole.abs().mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_block_takes_the_bytes_that_it_is_said_to(model: Model, dtype: torch.dtype) -> None:
    decoder = TorchDecoder(model.spec, model.weights, block_size=16, dtype=dtype)
    # key and value of 2 heads of 20 elements for 16 tokens, on each of 3 layers
    assert decoder.block_bytes == 2 * 2 * 20 * 16 * 3 * dtype.itemsize


def test_memory_that_cannot_be_had_is_told_with_its_mend(model: Model) -> None:
    decoder = TorchDecoder(model.spec, model.weights, block_size=16)
    with pytest.raises(
        ModelError, match=r"\d+.\d GiB of KV memory cannot be allocated; lower \[cache\] memory"
    ):
        decoder.allocate(2**45)
