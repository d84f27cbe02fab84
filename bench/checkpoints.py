"""Checkpoints for benches: the shapes of known models, random weights, and a vocabulary of made-up words.

    python -m bench.checkpoints m135 FOLDER
    python -m bench.checkpoints llama8b FOLDER --without-weights

What a token costs does not depend on what it says, so nothing needs to be downloaded. Without weights a
folder is written at once: `tokenspeed serve --random-weights` makes them up.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import string
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

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
    max_context: int = 4096
    tied: bool = True  # the embedding is also the head

    @property
    def qk_norm(self) -> bool:
        return self.architecture == "Qwen3ForCausalLM"


SHAPES = {
    "m135": Shape("LlamaForCausalLM", 576, 30, 9, 3, 64, 1536, 49152, 1e5),  # SmolLM2-135M
    "m600": Shape("Qwen3ForCausalLM", 1024, 28, 16, 8, 128, 3072, 151936, 1e6),  # Qwen3-0.6B
    "qwen600m": Shape(
        "Qwen3ForCausalLM", 1024, 28, 16, 8, 128, 3072, 151936, 1e6, 40960
    ),  # the same, all of it
    "llama8b": Shape(  # Llama-3.1-8B
        "LlamaForCausalLM", 4096, 32, 32, 8, 128, 14336, 128256, 5e5, 131072, tied=False
    ),
    "draft600m": Shape(  # a draft model for it: qwen600m with its vocabulary and context
        "Qwen3ForCausalLM", 1024, 28, 16, 8, 128, 3072, 128256, 1e6, 131072
    ),
    "tiny": Shape("LlamaForCausalLM", 128, 2, 2, 1, 64, 256, 8448, 1e4),  # no known model: to try things
}
REPEATED = frozenset(
    {"qwen600m", "llama8b", "draft600m"}
)  # whose layers all hold the same numbers: written faster
SHARD_BYTES = 5_000_000_000  # of one file, at most
INDEX = "model.safetensors.index.json"
Tensor = tuple[str, tuple[int, ...]]  # its name and its sizes


def checkpoint(name: str, cache: Path) -> Path:
    """The folder of the checkpoint of that shape, written into `cache` unless it is there."""
    shape = SHAPES[name]
    write_weights = write_shards if name in REPEATED else write_file

    def write(folder: Path) -> None:
        write_description(shape, folder)
        write_weights(shape, folder)

    return _once(cache / name, write)


def weightless(name: str, cache: Path) -> Path:
    """The same without weights: what `--random-weights` serves."""
    return _once(cache / f"{name}-weightless", lambda folder: write_description(SHAPES[name], folder))


def _once(folder: Path, write: Callable[[Path], None]) -> Path:
    """The folder, written unless it is there; one that was not finished is none."""
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        unfinished.rename(folder)
    return folder


def weight_bytes(folder: Path) -> int:
    """Bytes that a step reads, of a shape whose embedding is also the head: all weights once."""
    return (folder / "model.safetensors").stat().st_size


def step_bytes(shape: Shape) -> int:
    """Bytes of weights that a token reads: all but an embedding that is no head, which is one row."""
    elements = sum(math.prod(sizes) for _, sizes in tensors(shape))
    return 2 * (elements - (0 if shape.tied else shape.vocab * shape.hidden))


def random_prompt(tokens: int, random: Random) -> str:
    """Text of exactly so many tokens: every word is one."""
    letters = random.choices(string.ascii_lowercase, k=tokens * WORD_LETTERS)
    return "".join(
        " " + "".join(letters[at : at + WORD_LETTERS]) for at in range(0, len(letters), WORD_LETTERS)
    )


def write_description(shape: Shape, folder: Path) -> None:
    """Configuration and tokenizer in the Hugging Face layout."""
    _write_json(folder / "config.json", config(shape))
    _write_json(folder / "tokenizer.json", tokenizer(shape.vocab))
    _write_json(folder / "tokenizer_config.json", {"eos_token": END, "model_max_length": shape.max_context})


def write_file(shape: Shape, folder: Path) -> None:
    """Weights of their own for every layer, in one file."""
    save_file(dict(weights(shape)), folder / "model.safetensors", metadata={"format": "pt"})


def write_shards(shape: Shape, folder: Path) -> None:
    """Weights in files of `SHARD_BYTES` at most, every layer with the same numbers: as fast as the disk."""
    shards = _shards(shape)
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    made: dict[str, NDArray[np.uint16]] = {}
    for file, shard in zip(files, shards, strict=True):
        with (folder / file).open("wb") as out:
            out.write(_header(shard))
            for name, sizes in shard:
                key = name.partition("layers.")[2].partition(".")[2] or name  # without the layer's number
                out.write((made[key] if key in made else made.setdefault(key, _bits(sizes, key))).data)
    placed = {name: file for file, shard in zip(files, shards, strict=True) for name, _ in shard}
    total = sum(2 * math.prod(sizes) for shard in shards for _, sizes in shard)
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})


def _shards(shape: Shape) -> list[list[Tensor]]:
    """The tensors of each file."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for name, sizes in tensors(shape):
        needed = 2 * math.prod(sizes)
        if size + needed > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, sizes))
        size += needed
    return shards


def _header(shard: list[Tensor]) -> bytes:
    """What a safetensors file begins with: the length of a JSON object, and that."""
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, sizes in shard:
        end = at + 2 * math.prod(sizes)
        described[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [at, end]}
        at = end
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bits(sizes: tuple[int, ...], key: str) -> NDArray[np.uint16]:
    """bf16 numbers without the cost of a normal distribution: random sign and digits, one exponent.

    Norms are around one, projections keep about the size of what they are given.
    """
    random = np.frombuffer(np.random.default_rng(list(key.encode())).bytes(2 * math.prod(sizes)), np.uint16)
    if len(sizes) == 1:
        return (random & np.uint16(0x001F)) | np.uint16(127 << 7)
    exponent = 126 + math.floor(math.log2(1 / math.sqrt(sizes[-1])))
    return (random & np.uint16(0x807F)) | np.uint16(exponent << 7)


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
        "max_position_embeddings": shape.max_context,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "eos_token_id": shape.vocab - 1,
    }


def weights(shape: Shape) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor; projections keep the size of what they are given, so that logits are of order one."""
    generator = torch.Generator().manual_seed(0)
    for name, sizes in tensors(shape):
        drawn = torch.randn(sizes, generator=generator)
        scaled = 1 + 0.1 * drawn if len(sizes) == 1 else drawn / math.sqrt(sizes[-1])
        yield name, scaled.bfloat16()


def tensors(shape: Shape) -> Iterator[Tensor]:
    """Every tensor's name and sizes; a matrix is [out, in]."""
    hidden, inner = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{prefix}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inner)
        if shape.qk_norm:
            yield f"{prefix}.self_attn.q_norm.weight", (shape.head_dim,)
            yield f"{prefix}.self_attn.k_norm.weight", (shape.head_dim,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocab, hidden)


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
    parser.add_argument("--without-weights", action="store_true", help="Configuration and tokenizer only.")
    given = parser.parse_args()
    print((weightless if given.without_weights else checkpoint)(given.shape, given.cache))


if __name__ == "__main__":
    main()
