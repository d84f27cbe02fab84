"""Every family and feature, loaded from what transformers wrote, computes what transformers computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenspeed.model.checkpoint import resolve
from tokenspeed.model.loading import Model, load

PROMPT = torch.randint(0, 131, (45,), generator=torch.Generator().manual_seed(1)).tolist()
NEW = 64  # tokens of the greedy continuation
CHUNKS = (1, 17, 5, 22)  # of the prompt
TOLERANCE = 1e-4

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LAYERS = ["full_attention", "sliding_attention", "full_attention"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama without grouped heads": ("llama", {"num_key_value_heads": 4}),
    "llama with heads of 20": ("llama", {"head_dim": 20}),
    "llama with llama3 scaling": ("llama", {"rope_parameters": LLAMA3}),
    "llama with linear scaling": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    ),
    "llama with dynamic scaling": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "llama with yarn": ("llama", {"rope_parameters": YARN}),
    "llama with yarn in full": (
        "llama",
        {
            "rope_parameters": YARN
            | {"beta_fast": 20.0, "beta_slow": 2.0, "mscale": 0.8, "mscale_all_dim": 0.5, "truncate": False}
        },
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", {"sliding_window": 24, "head_dim": 10}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 sliding from layer 1": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "qwen2 sliding on one layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "layer_types": LAYERS},
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3 with biases and windows": (
        "qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 24,
            "layer_types": LAYERS,
        },
    ),
}


def greedy(logits_after: Callable[[list[int]], torch.Tensor]) -> tuple[list[int], torch.Tensor]:
    """The tokens that continue the prompt, and the logits of the last token of every step."""
    tokens, rows = list(PROMPT), []
    for _ in range(NEW):
        rows.append(logits_after(tokens)[-1])
        tokens.append(int(rows[-1].argmax()))
    return tokens, torch.stack(rows)


@pytest.fixture(scope="module")
def saved(save: Any) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def saved(case: str) -> Any:
        if case not in made:
            family, keys = CASES[case]
            checkpoint = save(family, **keys)
            made[case] = checkpoint, greedy(checkpoint.logits)
        return made[case]

    return saved


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_are_those_of_transformers(case: str, saved: Any, run: Any) -> None:
    checkpoint, (tokens, rows) = saved(case)
    model = load(resolve(str(checkpoint.folder)))
    assert model.spec.parameters == sum(tensor.numel() for tensor in model.weights.tensors())
    running = run(model)
    ends = list(accumulate(CHUNKS))
    after_prompt = torch.cat(
        [running.feed(PROMPT[end - size : end]) for size, end in zip(CHUNKS, ends, strict=True)]
    )
    torch.testing.assert_close(after_prompt, checkpoint.logits(PROMPT), atol=TOLERANCE, rtol=0)

    found, continued = list(PROMPT), [after_prompt[-1]]
    for _ in range(NEW - 1):
        found.append(int(continued[-1].argmax()))
        continued.append(running.feed(found[-1:])[-1])
    found.append(int(continued[-1].argmax()))
    torch.testing.assert_close(torch.stack(continued), rows, atol=TOLERANCE, rtol=0)
    assert found == tokens


def test_dynamic_scaling_beyond_the_original_length_is_that_of_transformers_at_the_served_length(
    save: Any, run: Any
) -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    checkpoint = save("llama", max_position_embeddings=64, rope_parameters=scaling)
    tokens = torch.randint(0, 131, (150,), generator=torch.Generator().manual_seed(2)).tolist()
    model = load(resolve(str(checkpoint.folder)), max_context=len(tokens))
    assert model.spec.max_context == len(tokens)
    running = run(model)
    found = torch.cat([running.feed(tokens[:100]), running.feed(tokens[100:])])
    torch.testing.assert_close(found, checkpoint.logits(tokens), atol=TOLERANCE, rtol=0)


def as_written_before_transformers_5(folder: Path) -> None:
    """Rewrite config.json to the older form of the same facts."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "case", ["llama", "llama with llama3 scaling", "llama with yarn", "mistral", "qwen2 sliding from layer 1"]
)
def test_both_forms_of_a_configuration_mean_the_same(case: str, save: Any) -> None:
    family, keys = CASES[case]
    folder = save(family, **keys).folder
    newer: Model = load(resolve(str(folder)))
    as_written_before_transformers_5(folder)
    assert load(resolve(str(folder))).spec == newer.spec


def test_half_precision_weights_stay_as_they_are_stored(save: Any) -> None:
    checkpoint = save("qwen2")
    checkpoint.reference.to(torch.bfloat16).save_pretrained(checkpoint.folder)
    model = load(resolve(str(checkpoint.folder)))
    assert model.spec.dtype == "bfloat16"
    stored = checkpoint.reference.state_dict()["model.layers.1.self_attn.q_proj.bias"]
    assert model.weights.layers[1].query_bias is not None
    assert torch.equal(model.weights.layers[1].query_bias, stored)
