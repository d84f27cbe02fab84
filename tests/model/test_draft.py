"""A draft model must mean by its tokens what the model means; the first difference is told."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tokenspeed import builtin
from tokenspeed.errors import ModelError
from tokenspeed.model.checkpoint import Checkpoint, from_folder, no_weights
from tokenspeed.model.draft import MEND, check_draft
from tokenspeed.model.loading import described
from tokenspeed.model.spec import ModelSpec

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def model() -> Checkpoint:
    return from_folder(builtin.MODEL, name="the model")


@pytest.fixture
def spec(model: Checkpoint) -> ModelSpec:
    return described(model).family.spec


@pytest.fixture
def draft(tmp_path: Path) -> Checkpoint:
    """The small files of the built-in draft model, to spoil."""
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(builtin.DRAFT / name, tmp_path)
    return from_folder(tmp_path, name="drafty", weights=no_weights)


def rewrite(path: Path | None, edit: Edit) -> None:
    assert path is not None
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def told_of(draft: Checkpoint, model: Checkpoint, spec: ModelSpec) -> str:
    with pytest.raises(ModelError) as caught:
        check_draft(draft, model, spec)
    told = str(caught.value)
    assert "\n" not in told
    return told


def unchanged(values: dict[str, Any]) -> None:
    """Written anew, with other spaces."""


def pairs_as_text(values: dict[str, Any]) -> None:
    """As older files write merges."""
    values["model"]["merges"] = [" ".join(merge) for merge in values["model"]["merges"]]


def another_post_processor(values: dict[str, Any]) -> None:
    values["padding"] = None
    values["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}


@pytest.mark.parametrize("edit", [None, unchanged, pairs_as_text, another_post_processor])
def test_the_same_tokens_may_be_written_in_another_way(
    draft: Checkpoint, model: Checkpoint, spec: ModelSpec, edit: Edit | None
) -> None:
    if edit:
        rewrite(draft.tokenizer, edit)
    check_draft(draft, model, spec)


def exchange_tokens(values: dict[str, Any]) -> None:
    vocabulary = values["model"]["vocab"]
    names = {token: name for name, token in vocabulary.items()}
    vocabulary[names[1234]], vocabulary[names[2345]] = 2345, 1234


def rename_added(values: dict[str, Any]) -> None:
    token = values["added_tokens"][7]
    vocabulary = values["model"]["vocab"]
    vocabulary["<|mine|>"] = vocabulary.pop(token["content"])
    token["content"] = "<|mine|>"


def add_token(values: dict[str, Any]) -> None:
    values["added_tokens"].append({**values["added_tokens"][0], "id": 12_288, "content": "<|more|>"})


def exchange_merges(values: dict[str, Any]) -> None:
    merges = values["model"]["merges"]
    merges[40], merges[41] = merges[41], merges[40]


def drop_merge(values: dict[str, Any]) -> None:
    values["model"]["merges"].pop()


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (exchange_tokens, r"token 1234 is '\S+' in its tokenizer and '\S+' in the model's"),
        (rename_added, r"token 7 is '<\|mine\|>' in its tokenizer and '<\|reserved_0\|>' in the model's"),
        (add_token, "its vocabulary has 12289 tokens, the model's has 12288"),
        (exchange_merges, r"its tokenizer's merge 40 is '\S+ \S+', the model's is '\S+ \S+'"),
        (drop_merge, r"its tokenizer's merge 12015 is None, the model's is '\S+ \S+'"),
    ],
)
def test_the_first_difference_of_tokenizers_is_told_with_the_mend(
    draft: Checkpoint, model: Checkpoint, spec: ModelSpec, edit: Edit, told: str
) -> None:
    rewrite(draft.tokenizer, edit)
    whole = f"draft model drafty: {told}; {re.escape(MEND)}"
    assert re.fullmatch(whole, told_of(draft, model, spec))


def test_an_id_that_only_one_of_them_has_is_a_difference(
    draft: Checkpoint, model: Checkpoint, spec: ModelSpec
) -> None:
    def move(values: dict[str, Any]) -> None:
        vocabulary = values["model"]["vocab"]
        last = next(name for name, token in vocabulary.items() if token == 12_287)
        vocabulary[last] = 12_290

    rewrite(draft.tokenizer, move)
    assert "token 12287 is none in its tokenizer and '" in told_of(draft, model, spec)


@pytest.mark.parametrize("size", [12_288, 12_300])
def test_embeddings_may_be_padded_to_different_sizes(
    draft: Checkpoint, model: Checkpoint, spec: ModelSpec, size: int
) -> None:
    rewrite(draft.config, lambda values: values.update(vocab_size=size))
    check_draft(draft, model, spec)
    check_draft(draft, model, replace(spec, vocab_size=12_352))


def test_an_embedding_without_a_row_for_every_token_is_refused(
    draft: Checkpoint, model: Checkpoint, spec: ModelSpec
) -> None:
    rewrite(draft.config, lambda values: values.update(vocab_size=12_287))
    told = "draft model drafty: its embedding has 12287 rows, too few for token 12287; "
    assert told_of(draft, model, spec) == told + MEND


def test_what_cannot_be_compared_is_told(draft: Checkpoint, model: Checkpoint, spec: ModelSpec) -> None:
    assert draft.tokenizer is not None
    assert told_of(replace(draft, tokenizer=None), model, spec) == (
        f"draft model drafty: {draft.folder} has no tokenizer.json, so nothing tells whether its tokens "
        "are the model's; fetch it"
    )
    draft.tokenizer.write_text("{}")
    assert told_of(draft, model, spec).startswith(f"{draft.tokenizer}: is no tokenizer: ")
    draft.tokenizer.unlink()
    assert told_of(draft, model, spec) == f"{draft.tokenizer}: cannot be read: No such file or directory"
