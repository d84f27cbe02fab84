"""The resolver takes the fastest decoder that serves, and says which and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tokenspeed.errors import ModelError
from tokenspeed.model.checkpoint import resolve
from tokenspeed.model.cpu.decoder import CpuDecoder
from tokenspeed.model.kernels import choose_decoder
from tokenspeed.model.loading import Model, load
from tokenspeed.model.torch_decoder import TorchDecoder


@pytest.fixture
def model(llama: Any) -> Model:
    return load(resolve(str(llama.folder)))


def choose(model: Model, block_size: int = 16, **options: str) -> Any:
    return choose_decoder(model.spec, model.weights, block_size=block_size, threads=1, **options)


def test_auto_takes_the_compiled_decoder(model: Model) -> None:
    chosen = choose(model)
    assert isinstance(chosen.decoder, CpuDecoder)
    assert chosen.description == "decoder: numba, float32, 1 thread (the fastest for this CPU)"
    chosen.decoder.close()


def test_auto_falls_back_where_the_compiled_decoder_cannot_serve(model: Model) -> None:
    chosen = choose(model, block_size=8)
    assert isinstance(chosen.decoder, TorchDecoder)
    assert chosen.description == (
        "decoder: reference (torch), float32 (it needs a [cache] block_size that is a multiple of 16, not 8)"
    )


def test_a_pin_takes_that_decoder_or_fails(model: Model) -> None:
    chosen = choose(model, pin="reference")
    assert isinstance(chosen.decoder, TorchDecoder)
    assert chosen.description == "decoder: reference (torch), float32 (pinned)"
    with pytest.raises(ModelError, match=r"decoder = 'numba' cannot be had: .*; use 'auto' or 'reference'"):
        choose(model, block_size=8, pin="numba")


def test_unknown_pins_and_dtypes_name_what_there_is(model: Model) -> None:
    with pytest.raises(ModelError, match="no 'cuda'; there are auto, numba, reference"):
        choose(model, pin="cuda")
    with pytest.raises(ModelError, match="no 'int8' on the CPU; there are auto, bfloat16, float32"):
        choose(model, dtype="int8")


@pytest.mark.parametrize(
    ("stored", "asked", "held"),
    [
        ("bfloat16", "auto", "bfloat16"),
        ("float16", "auto", "float32"),
        ("float32", "auto", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_the_dtype_follows_the_checkpoint_unless_it_is_asked_for(
    model: Model, stored: str, asked: str, held: str
) -> None:
    chosen = choose(Model(replace(model.spec, dtype=stored), model.weights, model.defaults), dtype=asked)
    assert chosen.description.startswith(f"decoder: numba, {held}, ")
    chosen.decoder.close()
