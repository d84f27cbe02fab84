"""The frequencies are those of transformers to the last bit, at the sizes of published checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tokenspeed.errors import ModelError
from tokenspeed.model.fields import Fields
from tokenspeed.model.rope import rope

LLAMA_3_1 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}

PUBLISHED = [
    pytest.param(131072, 128, LLAMA_3_1, id="llama 3.1"),
    pytest.param(131072, 64, LLAMA_3_1 | {"factor": 32.0}, id="llama 3.2"),
    pytest.param(
        16384, 128, {"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0}, id="deepseek coder"
    ),
    pytest.param(4096, 128, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}, id="linear 2.5"),
    pytest.param(32768, 128, YARN, id="qwen2.5 yarn"),
    pytest.param(
        65536, 128, YARN | {"rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 4096}
    ),
    pytest.param(32768, 80, YARN | {"truncate": False, "beta_fast": 64, "beta_slow": 0.5}, id="yarn options"),
    pytest.param(32768, 128, YARN | {"attention_factor": 1.2}, id="yarn attention factor"),
    pytest.param(163840, 64, YARN | {"factor": 40, "mscale": 0.707, "mscale_all_dim": 1.0}, id="yarn mscale"),
    pytest.param(40960, 128, YARN | {"beta_fast": 1, "beta_slow": 1}, id="yarn without a ramp"),
    pytest.param(4096, 96, {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, id="dynamic"),
]


def spec_of(trained: int, dim: int, parameters: dict[str, Any], context: int | None = None) -> Any:
    config = {"max_position_embeddings": trained, "rope_parameters": parameters}
    return rope(Fields(config, "config.json"), dim, context)


@pytest.mark.parametrize(("trained", "dim", "parameters"), PUBLISHED)
def test_scalings_are_those_of_transformers(trained: int, dim: int, parameters: dict[str, Any]) -> None:
    config = LlamaConfig(max_position_embeddings=trained, head_dim=dim, rope_parameters=dict(parameters))
    expected, attention_scaling = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    spec, _ = spec_of(trained, dim, parameters)
    assert spec.inverse_frequencies == tuple(expected.tolist())
    assert spec.attention_scaling == attention_scaling
    assert spec.rotary_dim == dim


def test_dynamic_scaling_takes_the_frequencies_of_the_served_length() -> None:
    parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    config = LlamaConfig(max_position_embeddings=4096, head_dim=128, rope_parameters=dict(parameters))
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=10000)
    assert spec_of(4096, 128, parameters, 10000)[0].inverse_frequencies == tuple(expected.tolist())
    within = spec_of(4096, 128, parameters, 2000)[0]
    assert within == spec_of(4096, 128, {"rope_type": "default", "rope_theta": 10000.0})[0]


def test_an_unscaled_embedding_has_the_base_it_states_or_the_usual_one() -> None:
    powers = torch.arange(0, 128, 2, dtype=torch.float32) / 128
    for theta, parameters in ((10000.0, {}), (1e6, {"rope_theta": 1e6})):
        spec, context = spec_of(4096, 128, parameters)
        assert spec.inverse_frequencies == tuple((1.0 / theta**powers).tolist())
        assert (spec.attention_scaling, context) == (1.0, 4096)


def test_the_original_length_beside_the_scaling_has_the_last_word() -> None:
    config = {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA_3_1 | {"original_max_position_embeddings": 1},
    }
    assert rope(Fields(config, "config.json"), 128, None) == spec_of(131072, 128, LLAMA_3_1)


@pytest.mark.parametrize(
    ("parameters", "served", "reach"),
    [
        ({"rope_type": "default"}, 4096, 4096),
        ({"rope_type": "linear", "factor": 4.0}, 4096, 16384),
        ({"rope_type": "dynamic", "factor": 4.0}, 4096, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384, 16384),
        (LLAMA_3_1 | {"original_max_position_embeddings": 512}, 4096, 4096),
    ],
)
def test_a_context_is_served_as_far_as_the_scaling_reaches(
    parameters: dict[str, Any], served: int, reach: int
) -> None:
    assert spec_of(4096, 128, parameters)[1] == served
    assert spec_of(4096, 128, parameters, reach)[1] == reach
    assert spec_of(4096, 128, parameters, 100)[1] == 100
    with pytest.raises(ModelError, match=f"positions reach {reach} tokens"):
        spec_of(4096, 128, parameters, reach + 1)


@pytest.mark.parametrize(
    ("parameters", "dim", "told"),
    [
        ({"rope_type": "longrope"}, 128, "'rope_type' is 'longrope'; supported are default, dynamic, linear"),
        ({"type": "su"}, 128, "'rope_type' is 'su'"),
        ({"rope_type": 3}, 128, "'rope_type' must be a string"),
        ({"rope_type": "linear"}, 128, "'factor' is missing"),
        ({"rope_type": "linear", "factor": "4"}, 128, "'factor' must be a number, not '4'"),
        ({"rope_type": "linear", "factor": -1}, 128, "'factor' must be finite and more than 0"),
        ({"rope_type": "dynamic", "factor": 2}, 2, "'dynamic' needs heads of at least 4 elements"),
        (
            LLAMA_3_1 | {"high_freq_factor": 1.0},
            128,
            "'high_freq_factor' must be more than low_freq_factor 1",
        ),
        (YARN | {"truncate": 1}, 128, "'truncate' must be true or false"),
        ({"rope_theta": 0}, 128, "'rope_theta' must be finite and more than 0"),
        ({"partial_rotary_factor": 0.5}, 128, "'partial_rotary_factor' must be 1"),
        ({"full_attention": {"rope_type": "default"}}, 128, "differs from layer to layer"),
        ({}, 127, "'head_dim' must be even"),
    ],
)
def test_what_cannot_be_computed_names_its_key(parameters: dict[str, Any], dim: int, told: str) -> None:
    with pytest.raises(ModelError, match=told.replace("(", r"\(")) as caught:
        spec_of(4096, dim, parameters)
    assert str(caught.value).startswith("config.json")
    assert "\n" not in str(caught.value)
