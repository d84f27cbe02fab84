"""Small tokenizers of both kinds, trained on the spot, and the checkpoints' files around them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tokenspeed.text.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "def main(arguments):\n    return  arguments + 1\n",
    "Größe, naïve, Ærøskøbing, éèê, 你好,世界, 🙂👩‍👩‍👧",
] * 4
SPECIAL = ["<s>", "</s>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}


def byte_level(special: list[str] = SPECIAL) -> tokenizers.Tokenizer:
    """Byte-level BPE, as Llama 3, Qwen and GPT-2 have it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
        ),
    )
    return _with_bos(tokenizer)


def metaspace(special: list[str] = SPECIAL) -> tokenizers.Tokenizer:
    """SentencePiece-style BPE with byte fallback, as Llama 2 and Mistral have it."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=names, limit_alphabet=60, show_progress=False
    )
    tokenizer.train_from_iterator([line.replace(" ", "▁") for line in CORPUS], trainer)
    # The trainer makes the byte tokens special, which in a real vocabulary they are not.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    return _with_bos(tokenizers.Tokenizer.from_str(json.dumps(state)))


def _with_bos(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def wrap(tokenizer: tokenizers.Tokenizer) -> Tokenizer:
    """Our tokenizer over the same data."""
    return Tokenizer(tokenizer.to_str().encode(), CONFIG)


def write(folder: Path, tokenizer: tokenizers.Tokenizer, **config: Any) -> Path:
    """A checkpoint's folder with the tokenizer's files."""
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session", params=[byte_level, metaspace], ids=["byte level", "metaspace"])
def backend(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    """Both kinds of tokenizer, as the library sees them: the oracle."""
    made: tokenizers.Tokenizer = request.param()
    return made


@pytest.fixture(scope="session")
def tokenizer(backend: tokenizers.Tokenizer) -> Tokenizer:
    """The same tokenizers as we see them."""
    return wrap(backend)


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    """A byte-level tokenizer, for what does not depend on the kind."""
    return wrap(byte_level())


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    """A SentencePiece-style tokenizer."""
    return wrap(metaspace())


@pytest.fixture(scope="session")
def with_special() -> Callable[..., Tokenizer]:
    """Makes a tokenizer of either kind with special tokens of one's own."""
    kinds = {"byte level": byte_level, "metaspace": metaspace}
    return lambda kind, *special: wrap(kinds[kind](["<s>", "</s>", *special]))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Makes a checkpoint's folder with the files of a tokenizer."""
    return lambda **config: write(tmp_path, byte_level(), **config)
