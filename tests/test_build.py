"""A whole server put together by `build`, over checkpoints as transformers saves them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers

from tokenspeed import builtin, config
from tokenspeed.build import Server, build
from tokenspeed.core.request import Request, Sampling, TokenDelta

SHAPE = {
    "vocab_size": 12_288,  # the built-in tokenizer's
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 24}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 32}),
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def built(*overrides: str) -> Server:
    said: list[str] = []
    return build(config.load(None, overrides), stage=lambda name: lambda done, total: None, say=said.append)


async def greedy(server: Server, prompt: list[int], count: int) -> list[int]:
    server.engine.start()
    try:
        stream = server.engine.submit(Request("r", tuple(prompt), count, Sampling(temperature=0.0)))
        events = [event async for batch in stream for event in batch]
    finally:
        await server.engine.stop()
    return [token for event in events if isinstance(event, TokenDelta) for token in event.tokens]


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_checkpoint_saved_by_transformers_serves_with_its_greedy_tokens(
    family: str, tmp_path: Path
) -> None:
    torch.manual_seed(11)
    kind, features = FAMILIES[family]
    model = transformers.AutoModelForCausalLM.from_config(kind(**SHAPE, **features)).eval()
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    for name in TOKENIZER:
        shutil.copy(builtin.MODEL / name, tmp_path)
    prompt = torch.randint(16, 12_288, (1, 60))
    generated = model.generate(prompt, max_new_tokens=64, do_sample=False)[0, 60:].tolist()
    server = built(f"model.path={tmp_path}", "cache.memory_mib=8", "scheduler.step_tokens=32")
    assert await greedy(server, prompt[0].tolist(), 64) == generated


async def test_the_tokens_do_not_depend_on_how_many_threads_compute_them() -> None:
    prompt = list(range(40, 90))
    one, two = [
        await greedy(built("cache.memory_mib=64", f"device.threads={threads}"), prompt, 24)
        for threads in (1, 2)
    ]
    assert one == two


def test_a_device_without_memory_for_a_block_is_an_error_with_the_mend() -> None:
    with pytest.raises(config.ConfigError, match="memory_mib"):
        built("cache.memory_mib=1", "cache.block_size=256")


async def test_the_pool_bounds_the_context_that_is_served() -> None:
    server = built("cache.memory_mib=2")
    assert 0 < server.generator.max_context < 8192
    assert server.generator.max_context == server.engine.max_context
    await server.engine.stop()
