"""What one sequence leaves behind in a block does not reach the next that holds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tokenspeed.model.checkpoint import resolve
from tokenspeed.model.loading import Model, load

BROKEN = 130
TOKENS = list(range(37))


@pytest.fixture
def model(llama: Any) -> Model:
    """A model that embeds one token as not-a-number."""
    model = load(resolve(str(llama.folder)))
    embedding = model.weights.embedding.clone()
    embedding[BROKEN] = torch.nan
    return replace(model, weights=replace(model.weights, embedding=embedding))


def test_blocks_that_held_what_is_not_finite_serve_others_as_ever(
    model: Model, run: Callable[[Model], Any]
) -> None:
    running = run(model)
    expected = torch.cat([running.feed(TOKENS[:30]), *(running.feed([token]) for token in TOKENS[30:])])
    assert expected.isfinite().all()
    running.length = 0
    assert not running.feed([BROKEN] * 64).isfinite().any()
    running.length = 0
    found = torch.cat([running.feed(TOKENS[:30]), *(running.feed([token]) for token in TOKENS[30:])])
    assert torch.equal(found, expected)
