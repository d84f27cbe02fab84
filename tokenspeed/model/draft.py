"""The draft model of speculative decoding: what a device needs to know of it, and whether it fits a model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import tokenizers

from tokenspeed.errors import ModelError
from tokenspeed.model.batch import Decoder
from tokenspeed.model.checkpoint import Checkpoint
from tokenspeed.model.fields import read_json
from tokenspeed.model.loading import described
from tokenspeed.model.spec import ModelSpec

MEND = "name one with the model's own tokenizer as [speculation] draft, or none"


class Draft(NamedTuple):
    """A draft model; it computes tokens below `vocab_size` at positions below `max_context`."""

    decoder: Decoder
    vocab_size: int
    max_context: int


def check_draft(draft: Checkpoint, model: Checkpoint, spec: ModelSpec) -> None:
    """Raise a `ModelError` that tells the first difference, unless a token is to `draft` what it is to
    `model`, whose shape is `spec`. Reads no weights.

    Embeddings may be padded to different sizes, as long as the draft's has a row for every token.
    """
    rows = described(draft).family.spec.vocab_size
    own, known = _tokenizer_file(draft, draft), _tokenizer_file(model, draft)
    if rows >= spec.vocab_size and _bytes_of(own) == _bytes_of(known):
        return
    if difference := _difference(own, known, rows):
        raise ModelError(f"draft model {draft.name}: {difference}; {MEND}")


def _tokenizer_file(checkpoint: Checkpoint, draft: Checkpoint) -> Path:
    if checkpoint.tokenizer is None:
        raise ModelError(
            f"draft model {draft.name}: {checkpoint.folder} has no tokenizer.json, so nothing tells "
            "whether its tokens are the model's; fetch it"
        )
    return checkpoint.tokenizer


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def _difference(own: Path, known: Path, rows: int) -> str:
    """The first difference of the draft's tokenizer, which its embedding has `rows` for, from the model's;
    empty where there is none."""
    ours, theirs = _tokens_of(own), _tokens_of(known)
    if len(ours) != len(theirs):
        return f"its vocabulary has {len(ours)} tokens, the model's has {len(theirs)}"
    for token in sorted(ours.keys() | theirs.keys()):
        if ours.get(token) != theirs.get(token):
            return (
                f"token {token} is {_named(ours, token)} in its tokenizer "
                f"and {_named(theirs, token)} in the model's"
            )
    for rank, (merge, other) in enumerate(zip_longest(_merges_of(own), _merges_of(known))):
        if merge != other:
            return f"its tokenizer's merge {rank} is {merge!r}, the model's is {other!r}"
    if rows <= max(ours, default=-1):
        return f"its embedding has {rows} rows, too few for token {max(ours)}"
    return ""


def _named(tokens: Mapping[int, str], token: int) -> str:
    return repr(tokens[token]) if token in tokens else "none"


def _tokens_of(path: Path) -> dict[int, str]:
    """The spelling of every token, added ones included."""
    try:
        vocabulary = tokenizers.Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises bare exceptions for whatever it cannot read
        raise ModelError(f"{path}: is no tokenizer: {' '.join(str(error).split())}") from error
    return {token: spelling for spelling, token in vocabulary.items()}


def _merges_of(path: Path) -> list[str]:
    """Pairs that are merged, the first of all first, however the file writes a pair; none where the
    tokenizer does not merge."""
    merges = read_json(path).part("model").values.get("merges") or []
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
