"""The small JSON files that lie beside a tokenizer in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from tokenspeed.errors import ModelError

# The tokens with a name of their own; chat templates see them as variables under these names.
NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_bytes(path: Path) -> bytes:
    """The file's bytes, or a `ModelError` that names it."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path} is missing") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """The file's text, or a `ModelError` that names it."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text (byte {error.start})") from None


def parse_object(data: bytes, path: Path) -> dict[str, Any]:
    """`data` as a JSON object, or a `ModelError` that names the file it came from."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that has to be there."""
    return parse_object(read_bytes(path), path)


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, completed from the older `special_tokens_map.json`; both may be absent."""
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.exists():
            merged |= {key: value for key, value in read_object(path).items() if value is not None}
    return merged


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The spellings of the special tokens that a tokenizer's configuration names."""
    extra = config.get("extra_special_tokens")
    named = {name: config.get(name) for name in NAMED_TOKENS}
    if isinstance(extra, dict):
        named |= extra
    spelled = {name: _spelling(token) for name, token in named.items()}
    return {name: spelling for name, spelling in spelled.items() if spelling is not None}


def _spelling(token: Any) -> str | None:
    """A token is written as its text, or as an object that holds the text beside its flags."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
