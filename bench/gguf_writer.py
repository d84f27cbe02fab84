"""A checkpoint of `bench.checkpoints` as the GGUF file that llama.cpp serves: the same bf16 numbers.

    PEER_PYTHON -m bench.gguf_writer CHECKPOINT_FOLDER FILE.gguf

Runs in the peer's environment: it needs numpy and the gguf package, nothing of this project.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found]  # only the peer's environment has it
import numpy as np
from numpy.typing import NDArray

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Bits = NDArray[np.uint16]  # bf16 values


def write(folder: Path, path: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, config["model_type"])
    add_sizes(writer, config)
    add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    for name, bits in read_safetensors(folder / "model.safetensors"):
        if bits.ndim == 1:  # norms are float32 in llama.cpp
            writer.add_tensor(gguf_name(name), (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            stored = np.ascontiguousarray(arranged(name, bits, config)).view(np.uint8)
            writer.add_tensor(gguf_name(name), stored, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_sizes(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def add_tokenizer(writer: Any, tokenizer: dict[str, Any]) -> None:
    end = tokenizer["added_tokens"][0]
    ids = tokenizer["model"]["vocab"] | {end["content"]: end["id"]}
    tokens = sorted(ids, key=lambda token: int(ids[token]))
    types = [gguf.TokenType.NORMAL] * len(tokens)
    types[end["id"]] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(end["id"])
    writer.add_add_bos_token(False)


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`"""
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.weight"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[part]}.weight"


def arranged(name: str, bits: Bits, config: dict[str, Any]) -> Bits:
    """llama.cpp rotates neighbours in its llama architecture; Hugging Face rotates halves of a head."""
    heads = {
        "self_attn.q_proj": config["num_attention_heads"],
        "self_attn.k_proj": config["num_key_value_heads"],
    }
    count = heads.get(name.removesuffix(".weight").partition(".layers.")[2].partition(".")[2])
    if config["model_type"] != "llama" or count is None:
        return bits
    halves = bits.reshape(count, 2, -1, bits.shape[1])  # [heads, half, head_dim / 2, hidden]
    return halves.swapaxes(1, 2).reshape(bits.shape)


def read_safetensors(path: Path) -> Iterator[tuple[str, Bits]]:
    """Every tensor of a file of bf16 tensors, mapped from disk."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{path}: {name} is {entry['dtype']}, not BF16")
        begin, end = entry["data_offsets"]
        yield name, np.asarray(data[begin:end]).view(np.uint16).reshape(entry["shape"])


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
