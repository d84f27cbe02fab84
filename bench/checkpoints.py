"""Checkpoints for benches: the shapes of known models, random weights, and a vocabulary of made-up words.

    python -m bench.checkpoints m135 FOLDER

What a token costs does not depend on what it says, so nothing needs to be downloaded.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import string
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

MAX_CONTEXT = 4096
WORD_LETTERS = 3  # of the words in a prompt; every vocabulary here holds all of them
END = "<|endoftext|>"


class Shape(NamedTuple):
    """The sizes of a published model."""

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    rope_theta: float

    @property
    def qk_norm(self) -> bool:
        return self.architecture == "Qwen3ForCausalLM"


SHAPES = {
    "m135": Shape("LlamaForCausalLM", 576, 30, 9, 3, 64, 1536, 49152, 1e5),  # SmolLM2-135M
    "m600": Shape("Qwen3ForCausalLM", 1024, 28, 16, 8, 128, 3072, 151936, 1e6),  # Qwen3-0.6B
}


def checkpoint(name: str, cache: Path) -> Path:
    """The folder of the checkpoint of that shape, written into `cache` unless it is there."""
    folder = cache / name
    if not folder.exists():
        unfinished = cache / f"{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        write_checkpoint(SHAPES[name], unfinished)
        unfinished.rename(folder)
    return folder


def weight_bytes(folder: Path) -> int:
    """Bytes that a step reads: all weights once, for the embedding is also the head."""
    return (folder / "model.safetensors").stat().st_size


def random_prompt(tokens: int, random: Random) -> str:
    """Text of exactly so many tokens: every word is one."""
    letters = random.choices(string.ascii_lowercase, k=tokens * WORD_LETTERS)
    return "".join(
        " " + "".join(letters[at : at + WORD_LETTERS]) for at in range(0, len(letters), WORD_LETTERS)
    )


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """Configuration, weights and tokenizer in the Hugging Face layout."""
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", config(shape))
    _write_json(folder / "tokenizer.json", tokenizer(shape.vocab))
    _write_json(folder / "tokenizer_config.json", {"eos_token": END, "model_max_length": MAX_CONTEXT})
    save_file(dict(weights(shape)), folder / "model.safetensors", metadata={"format": "pt"})


def config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": [shape.architecture],
        "model_type": "qwen3" if shape.qk_norm else "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": MAX_CONTEXT,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "eos_token_id": shape.vocab - 1,
    }


def weights(shape: Shape) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor; projections keep the size of what they are given, so that logits are of order one."""
    generator = torch.Generator().manual_seed(0)

    def matrix(out: int, into: int) -> torch.Tensor:
        return (torch.randn(out, into, generator=generator) / math.sqrt(into)).bfloat16()

    def norm(size: int) -> torch.Tensor:
        return (1 + 0.1 * torch.randn(size, generator=generator)).bfloat16()

    hidden, inner = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", matrix(shape.vocab, hidden)
    yield "model.norm.weight", norm(hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", norm(hidden)
        yield f"{prefix}.post_attention_layernorm.weight", norm(hidden)
        yield f"{prefix}.self_attn.q_proj.weight", matrix(queries, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", matrix(keys, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", matrix(keys, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", matrix(hidden, queries)
        yield f"{prefix}.mlp.gate_proj.weight", matrix(inner, hidden)
        yield f"{prefix}.mlp.up_proj.weight", matrix(inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", matrix(hidden, inner)
        if shape.qk_norm:
            yield f"{prefix}.self_attn.q_norm.weight", norm(shape.head_dim)
            yield f"{prefix}.self_attn.k_norm.weight", norm(shape.head_dim)


def tokenizer(size: int) -> dict[str, Any]:
    """A byte-level BPE of `size` tokens: the bytes, words of a space and lower-case letters, and an end."""
    spellings = byte_spellings()
    words = list(islice(_words(spellings[ord(" ")]), size - len(spellings) - 1))
    vocabulary = {spelling: token for token, spelling in enumerate([*spellings, *words])}
    end = {"id": size - 1, "content": END, "special": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | flags],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [[word[:-1], word[-1]] for word in words],
        },
    }


def byte_spellings() -> list[str]:
    """How byte-level BPE writes each byte: printable ones as themselves, others as letters from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _words(space: str) -> Iterator[str]:
    """A space and one letter, a space and two, and so on: each is the one before it and a letter more."""
    length = 1
    while True:
        for letters in product(string.ascii_lowercase, repeat=length):
            yield space + "".join(letters)
        length += 1


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("cache", type=Path, help="The folder to put the checkpoint's folder into.")
    given = parser.parse_args()
    print(checkpoint(given.shape, given.cache))


if __name__ == "__main__":
    main()
