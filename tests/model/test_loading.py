"""Reading weights: mapped, checked before anything is read, and broken files told by name and reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenspeed.errors import ModelError
from tokenspeed.model.checkpoint import resolve
from tokenspeed.model.generation_config import GenerationDefaults
from tokenspeed.model.loading import load

Edit = Callable[[dict[str, Tensor]], None]


@pytest.fixture
def folder(llama: Any, tmp_path: Path) -> Path:
    """A checkpoint of its own, in one file, to spoil."""
    tensors: dict[str, Tensor] = {}
    for path in llama.folder.glob("*.safetensors"):
        tensors |= load_file(path)
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("config.json", "generation_config.json"):
        shutil.copy(llama.folder / name, tmp_path)
    return tmp_path


def rewrite(folder: Path, edit: Edit) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def told_of(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(resolve(str(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_are_views_of_the_mapped_files(llama: Any) -> None:
    weights = load(resolve(str(llama.folder))).weights
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no list of the process's mappings here")
    start = weights.layers[0].query.data_ptr()
    ranges = [
        line.split()[0].split("-") for line in maps.read_text().splitlines() if str(llama.folder) in line
    ]
    assert any(int(low, 16) <= start < int(high, 16) for low, high in ranges)


def test_progress_ends_at_all_bytes(llama: Any) -> None:
    heard: list[tuple[int, int]] = []
    load(resolve(str(llama.folder)), progress=lambda done, total: heard.append((done, total)))
    total = sum(parameter.nbytes for parameter in llama.reference.parameters())
    assert heard[-1] == (total, total)
    assert heard == sorted(heard)


def test_missing_unexpected_and_misshapen_tensors_are_one_error(folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["model.norm.weight"]
        del tensors["lm_head.weight"]
        tensors["model.layers.9.input_layernorm.weight"] = torch.ones(3)
        tensors["model.embed_tokens.weight"] = torch.ones(7, 48)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(80, 48, dtype=torch.int8)

    rewrite(folder, spoil)
    told = told_of(folder)
    assert "2 missing (model.norm.weight, lm_head.weight)" in told
    assert "1 unexpected (model.layers.9.input_layernorm.weight)" in told
    assert "2 wrong (model.embed_tokens.weight is [7, 48], not [131, 48], " in told
    assert "model.layers.0.mlp.up_proj.weight is stored as I8, not as one of BF16, F16, F32)" in told


def test_a_long_list_of_tensors_is_cut_short_but_counted(folder: Path) -> None:
    def drop_layers(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".layers." in name]:
            del tensors[name]

    rewrite(folder, drop_layers)
    told = told_of(folder)
    assert "27 missing (" in told
    assert told.count("model.layers.") == 10


def test_a_bias_that_the_configuration_does_not_state_is_unexpected(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(48)}))
    assert f"1 unexpected ({name})" in told_of(folder)


def test_derived_buffers_and_the_head_of_a_tied_model_may_be_there(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda tensors: tensors.update({buffer: torch.ones(6)}))
    weights = load(resolve(str(folder))).weights
    assert weights.head is weights.embedding


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    assert "which another file of the checkpoint holds too" in told_of(folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"junk")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (cut, r"is truncated: it has \d+ bytes of the \d+ that its header states"),
        (lengthen, "has 4 bytes more than its header states"),
        (lambda path: path.write_bytes(b""), "is truncated: it has 0 bytes, not even a header"),
        (
            lambda path: path.write_bytes(b"\xff" * 40),
            "a header of 18446744073709551615 bytes in a file of 40",
        ),
        (lambda path: path.write_bytes(b"\x04" + b"\0" * 7 + b"{{{{"), "has a broken header"),
        (
            lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
            "is a Git LFS pointer",
        ),
    ],
)
def test_a_broken_file_is_told_by_name_and_reason(folder: Path, spoil: Any, told: str) -> None:
    spoil(folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"model.safetensors: .*{told}.*; fetch the file again"):
        load(resolve(str(folder)))


def test_a_configuration_that_is_not_json_is_told(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe not json")
    assert f"{folder / 'config.json'}: is not JSON" in told_of(folder)


def test_generation_defaults_are_read(folder: Path) -> None:
    stated = {
        "eos_token_id": [5, 6],
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "repetition_penalty": 1.1,
    }
    (folder / "generation_config.json").write_text(json.dumps(stated | {"do_sample": True}))
    assert load(resolve(str(folder))).defaults == GenerationDefaults(
        eos_ids=(5, 6), temperature=0.6, top_p=0.95, top_k=20, min_p=None, repetition_penalty=1.1
    )


def test_ids_that_end_a_choice_come_from_the_configuration_where_nothing_else_names_them(
    folder: Path,
) -> None:
    (folder / "generation_config.json").write_text("{}")
    assert load(resolve(str(folder))).defaults == GenerationDefaults(eos_ids=(2,))
    (folder / "generation_config.json").unlink()
    assert load(resolve(str(folder))).defaults == GenerationDefaults(eos_ids=(2,))


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"eos_token_id": "</s>"}, "'eos_token_id' must be a token id or a list of them, not '</s>'"),
        ({"eos_token_id": [1, 131]}, "'eos_token_id' is beyond the vocabulary of 131: 131"),
        ({"temperature": -1}, "'temperature' must be from 0 to inf, not -1"),
        ({"top_p": 1.5}, "'top_p' must be from 0 to 1, not 1.5"),
        ({"top_k": 1.5}, "'top_k' must be an integer of at least 0, not 1.5"),
        ({"repetition_penalty": 0}, "'repetition_penalty' must be finite and more than 0, not 0"),
    ],
)
def test_wrong_generation_defaults_name_their_key(folder: Path, stated: dict[str, Any], told: str) -> None:
    (folder / "generation_config.json").write_text(json.dumps(stated))
    assert told in told_of(folder)
