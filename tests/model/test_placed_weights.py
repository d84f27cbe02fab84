"""Weights as a GPU has them: what is multiplied together lies together, and takes what the ledger says."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from tokenspeed.model.checkpoint import resolve
from tokenspeed.model.cuda.weights import PlacedWeights, empty, fill, matrix_bytes, randomise, weight_bytes
from tokenspeed.model.loading import load, random_weights
from tokenspeed.model.spec import ModelSpec

CPU = torch.device("cpu")


@pytest.fixture(params=["llama", "tied", "qwen3", "qwen2"])
def spec(request: pytest.FixtureRequest, save: Any) -> ModelSpec:
    kind = {"tied": ("llama", {"tie_word_embeddings": True})}.get(request.param, (request.param, {}))
    found: ModelSpec = load(resolve(str(save(kind[0], **kind[1]).folder))).spec
    return found


def tensors_of(placed: PlacedWeights) -> list[torch.Tensor]:
    found = [placed.embedding, placed.norm]
    if placed.head is not placed.embedding:
        found.append(placed.head)
    for layer in placed.layers:
        found += [t for field in fields(layer) if (t := getattr(layer, field.name)) is not None]
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_they_take_what_was_planned_for_them(spec: ModelSpec, dtype: torch.dtype) -> None:
    placed = empty(spec, dtype, CPU)
    assert sum(tensor.nbytes for tensor in tensors_of(placed)) == weight_bytes(spec, dtype)
    unread = 0 if spec.tied_embeddings else placed.embedding.nbytes
    assert matrix_bytes(spec, dtype) == weight_bytes(spec, dtype) - unread


def test_every_tensor_of_a_checkpoint_is_placed_once(spec: ModelSpec) -> None:
    placed, weights = empty(spec, torch.float32, CPU), random_weights(replace(spec, dtype="float32"))
    for tensor in tensors_of(placed):
        tensor.fill_(torch.nan)
    heard: list[int] = []
    fill(placed, weights, heard.append)
    assert heard[-1] == weights.nbytes
    assert not any(tensor.isnan().any() for tensor in tensors_of(placed))
    layer, source = placed.layers[-1], weights.layers[-1]
    assert torch.equal(layer.qkv, torch.cat([source.query, source.key, source.value]))
    assert torch.equal(layer.gate_up, torch.cat([source.gate, source.up]))
    assert (layer.query_norm is None) == (source.query_norm is None)


def test_random_ones_are_the_same_each_time_and_of_a_size_that_stays_finite(spec: ModelSpec) -> None:
    one, other = empty(spec, torch.float32, CPU), empty(spec, torch.float32, CPU)
    randomise(one)
    randomise(other)
    for mine, its in zip(tensors_of(one), tensors_of(other), strict=True):
        assert torch.equal(mine, its)
        assert mine.abs().max() < 2
        assert mine.std() > 0
