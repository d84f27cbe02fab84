"""Configurations as they are published, and what is told about those that cannot be served."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.errors import ModelError
from tokenspeed.model.families import FAMILIES, describe
from tokenspeed.model.fields import Fields
from tokenspeed.model.spec import ModelSpec

LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
MISTRAL_7B_V1 = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}
QWEN_2_5_HALF_B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN_3_SMALL = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def spec_of(config: dict[str, Any], **changed: Any) -> ModelSpec:
    return describe(Fields(config | changed, "config.json")).spec


def test_llama_2_is_described() -> None:
    spec = spec_of(LLAMA_2_7B)
    assert (spec.family, spec.layers, spec.heads, spec.kv_heads, spec.head_dim) == ("llama", 32, 32, 32, 128)
    assert (spec.max_context, spec.dtype, spec.norm_eps) == (4096, "float16", 1e-5)
    assert spec.windows == (None,) * 32
    assert spec.rope.inverse_frequencies[:1] == (1.0,)
    assert not any((spec.qkv_bias, spec.output_bias, spec.mlp_bias, spec.qk_norm, spec.tied_embeddings))


def test_llama_3_2_is_described() -> None:
    spec = spec_of(LLAMA_3_2_1B)
    assert (spec.head_dim, spec.max_context, spec.dtype) == (64, 131072, "bfloat16")
    assert spec.tied_embeddings


def test_mistral_slides_on_every_layer_unless_its_window_is_null() -> None:
    assert spec_of(MISTRAL_7B_V1).windows == (4096,) * 32
    assert spec_of(MISTRAL_7B_V1, sliding_window=None).windows == (None,) * 32
    unstated = {key: value for key, value in MISTRAL_7B_V1.items() if key != "sliding_window"}
    assert spec_of(unstated).windows == (4096,) * 32


def test_qwen_2_has_biases_on_query_key_and_value_alone() -> None:
    spec = spec_of(QWEN_2_5_HALF_B)
    assert spec.qkv_bias
    assert not any((spec.output_bias, spec.mlp_bias, spec.qk_norm))
    assert (spec.head_dim, spec.windows) == (64, (None,) * 24)


def test_qwen_2_slides_from_a_layer_on_where_that_is_switched_on() -> None:
    spec = spec_of(QWEN_2_5_HALF_B, use_sliding_window=True, sliding_window=512)
    assert spec.windows == (None,) * 21 + (512,) * 3


def test_qwen_2_5_with_yarn_serves_four_times_its_length() -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    assert spec_of(QWEN_2_5_HALF_B, rope_scaling=scaling).max_context == 131072


def test_qwen_3_has_heads_wider_than_its_hidden_size_and_normalises_them() -> None:
    spec = spec_of(QWEN_3_SMALL)
    assert (spec.heads * spec.head_dim, spec.hidden_size, spec.qk_norm) == (2048, 1024, True)
    unstated = {key: value for key, value in QWEN_3_SMALL.items() if key != "head_dim"}
    assert spec_of(unstated).head_dim == 128


def test_layer_types_say_which_layers_slide() -> None:
    kinds = ["sliding_attention", "full_attention"]
    changed = {"num_hidden_layers": 2, "use_sliding_window": True, "sliding_window": 64, "layer_types": kinds}
    assert spec_of(QWEN_3_SMALL, **changed).windows == (64, None)


def test_key_value_heads_default_to_one_for_each_head() -> None:
    assert spec_of(LLAMA_2_7B, num_key_value_heads=None).kv_heads == 32
    unstated = {key: value for key, value in MISTRAL_7B_V1.items() if key != "num_key_value_heads"}
    assert spec_of(unstated).kv_heads == 8


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            r"'architectures' is \['GPT2LMHeadModel'\]; supported are Llama",
        ),
        ({"architectures": None}, "'architectures' is missing"),
        ({"architectures": "LlamaForCausalLM"}, "'architectures' must be a list of strings"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "4096"}, "'hidden_size' must be an integer of at least 1, not '4096'"),
        ({"hidden_size": True}, "'hidden_size' must be an integer"),
        ({"hidden_size": 4097}, "'hidden_size' must be a multiple of the 32 attention heads, not 4097"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' must be an integer of at least 1"),
        ({"num_key_value_heads": 5}, "'num_key_value_heads' must divide the 32 attention heads"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'; supported is silu"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "'quantization_config' is set, but only unquantised",
        ),
        ({"torch_dtype": "int8"}, "'torch_dtype' is 'int8'; supported are bfloat16, float16, float32"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' must be finite and more than 0"),
        ({"tie_word_embeddings": "no"}, "'tie_word_embeddings' must be true or false"),
        ({"rope_scaling": [1]}, "'rope_scaling' must be an object"),
    ],
)
def test_what_cannot_be_served_names_its_key(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told) as caught:
        spec_of(LLAMA_2_7B, **changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"layer_types": ["full_attention"]}, "'layer_types' must list 28 layers, not 1"),
        (
            {"layer_types": ["chunked_attention"] * 28},
            "'layer_types' names 'chunked_attention'; supported are",
        ),
        ({"layer_types": ["sliding_attention"] * 28}, "'layer_types' names sliding_attention, but"),
    ],
)
def test_layer_types_that_do_not_fit_are_told(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        spec_of(QWEN_3_SMALL, **changed)


keys = st.sampled_from(sorted({*LLAMA_3_2_1B, *QWEN_3_SMALL, "layer_types", "rope_parameters", "mlp_bias"}))
numbers = st.one_of(st.integers(), st.floats(), st.integers(-3, 300))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner)),
    max_leaves=5,
)
scalings = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn"])},
    optional={
        key: st.one_of(numbers, st.sampled_from([0, 1, 1.0, -1.0]))
        for key in (
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "factor",
            "high_freq_factor",
            "low_freq_factor",
            "mscale",
            "mscale_all_dim",
            "original_max_position_embeddings",
            "rope_theta",
        )
    },
)


@given(
    config=st.sampled_from([LLAMA_2_7B, LLAMA_3_2_1B, MISTRAL_7B_V1, QWEN_2_5_HALF_B, QWEN_3_SMALL]),
    changed=st.one_of(st.dictionaries(keys, values, max_size=3), st.builds(dict, rope_parameters=scalings)),
)
def test_any_other_value_is_described_or_told(config: dict[str, Any], changed: dict[str, Any]) -> None:
    try:
        spec = spec_of(config, **changed)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is fine
    else:
        assert all(math.isfinite(frequency) for frequency in spec.rope.inverse_frequencies)
        assert len(spec.windows) == spec.layers


def test_every_family_of_the_table_is_described_here() -> None:
    published = (LLAMA_2_7B, MISTRAL_7B_V1, QWEN_2_5_HALF_B, QWEN_3_SMALL)
    assert {config["architectures"][0] for config in published} == set(FAMILIES)  # type: ignore[index]
