"""A whole server put together by `build`, over checkpoints as transformers saves them."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from tokenspeed import builtin, config
from tokenspeed.build import Server, build
from tokenspeed.core.request import Request, Sampling, TokenDelta
from tokenspeed.errors import ModelError

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


async def tokens_of(server: Server, name: str, prompt: list[int], n: int = 1, count: int = 48) -> list[int]:
    """The greedy tokens of a request, the same for each of its choices."""
    request = Request(name, tuple(prompt), count, Sampling(temperature=0.0), n=n)
    choices: dict[int, list[int]] = {choice: [] for choice in range(n)}
    async for events in server.engine.submit(request):
        for event in events:
            if isinstance(event, TokenDelta):
                choices[event.choice] += event.tokens
    assert all(tokens == choices[0] for tokens in choices.values())
    return choices[0]


async def alone(server: Server, prompt: list[int], count: int) -> list[int]:
    server.engine.start()
    try:
        return await tokens_of(server, "alone", prompt, count=count)
    finally:
        await server.engine.stop()


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
    assert await alone(server, prompt[0].tolist(), 64) == generated


async def test_the_tokens_do_not_depend_on_how_many_threads_compute_them() -> None:
    prompt = list(range(40, 90))
    one, two = [
        await alone(built("cache.memory_mib=64", f"device.threads={threads}"), prompt, 24)
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


@pytest.mark.parametrize("drafts", ["off", "adaptive", "always"])
async def test_greedy_tokens_of_the_real_model_survive_batching_chunks_preemption_hits_and_choices(
    drafts: str,
) -> None:
    prompts = [[100 + 7 * i + j % 50 for j in range(40 + 9 * i)] for i in range(8)]
    roomy = built("cache.memory_mib=64", "speculation.drafter=off")
    roomy.engine.start()
    expected = [await tokens_of(roomy, f"r{i}", prompt) for i, prompt in enumerate(prompts)]
    await roomy.engine.stop()

    crowded = built(
        *("cache.memory_mib=3", "scheduler.step_tokens=24", "scheduler.run_ahead=1"),
        "speculation.drafter=off" if drafts == "off" else f"speculation.control={drafts}",
    )
    crowded.engine.start()
    names = [f"{kind}{i}" for kind in ("first", "again") for i in range(8)]
    got = await asyncio.gather(
        *(tokens_of(crowded, name, prompts[i % 8], n=1 + 3 * (i % 3 == 0)) for i, name in enumerate(names))
    )
    scheduler = crowded.engine.scheduler
    scheduler.check()
    assert got == [*expected, *expected]
    assert scheduler.preemptions > 0 or drafts != "off"
    assert scheduler.cached_tokens > 0
    assert scheduler.speculation.counts.accepted.total() > 0 or drafts != "always"
    await crowded.engine.stop()


async def test_a_folder_without_weights_serves_with_random_ones(tmp_path: Path) -> None:
    config_type, _ = FAMILIES["qwen3"]
    config_type(**SHAPE, head_dim=32, dtype="bfloat16", architectures=["Qwen3ForCausalLM"]).save_pretrained(
        tmp_path
    )
    for name in TOKENIZER:
        shutil.copy(builtin.MODEL / name, tmp_path)
    with pytest.raises(ModelError, match="no weights"):
        built(f"model.path={tmp_path}")
    server = built(f"model.path={tmp_path}", "model.weights=random", "cache.memory_mib=8")
    assert len(await alone(server, [5, 6, 7], 9)) == 9
