"""Text to token ids and back, as the checkpoint's own `tokenizer.json` says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from tokenspeed.errors import ModelError, RequestError
from tokenspeed.text.files import named_tokens, parse_object, read_bytes, read_tokenizer_config
from tokenspeed.text.fim import File, Order, find_fim
from tokenspeed.text.vocabulary import ByteTable, byte_table, read_spelling, without

# Text behind this is encoded as the inside of a text, for SentencePiece's space goes in front of it. It is a
# private character, which no vocabulary merges with what follows.
_BEFORE = "\ue000"


class Tokenizer:
    """A checkpoint's tokenizer. Safe to use from several threads; `encode` lets other threads run."""

    def __init__(self, data: bytes, config: Mapping[str, Any], *, source: str = "tokenizer.json") -> None:
        self._backend = _backend(data, source)
        self._plain_backend = _without_parsing(self._backend)
        self._ids = self._backend.get_vocab(with_added_tokens=True)
        added = self._backend.get_added_tokens_decoder()
        spelling = read_spelling(parse_object(data, Path(source)).get("decoder"), source)
        self.special_ids = frozenset(token for token, flags in added.items() if flags.special)
        self.vocab_size = max(self._ids.values(), default=-1) + 1
        self.lead = spelling.lead  # spaces that are dropped from the front of a whole text
        self._bytes = byte_table(self._ids, spelling)
        self._visible_bytes = without(self._bytes, self.special_ids)
        self.named_tokens = named_tokens(config)
        self.bos_id = self._named_id("bos_token", source)
        self.eos_id = self._named_id("eos_token", source)
        self.fim = find_fim(self._ids)
        self._adds_space = self.token_bytes(next(iter(self._encode("a", False, True)), -1)).startswith(b" ")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer of the checkpoint in `folder`."""
        path = folder / "tokenizer.json"
        if not path.exists() and (folder / "tokenizer.model").exists():
            raise ModelError(f"{folder} has only a tokenizer.model; convert it to a tokenizer.json first")
        return cls(read_bytes(path), read_tokenizer_config(folder), source=str(path))

    @property
    def eos_ids(self) -> frozenset[int]:
        """The end of a text as the tokenizer knows it; a generation config may know more."""
        return frozenset() if self.eos_id is None else frozenset((self.eos_id,))

    def token_id(self, spelling: str) -> int | None:
        """The id of the token that is spelled exactly so, as the vocabulary spells it."""
        return self._ids.get(spelling)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for inside a text; none for an id without a token."""
        return self._bytes[token]

    def table(self, *, skip_special: bool) -> ByteTable:
        """The bytes of every token, with special tokens standing for nothing if they are to be skipped."""
        return self._visible_bytes if skip_special else self._bytes

    def showing(self, marks: Iterable[str]) -> ByteTable:
        """The bytes of every token, with those special ones that are spelled so, and no others."""
        shown = (token for mark in marks if (token := self._ids.get(mark)) is not None)
        return ByteTable(self._visible_bytes | {token: self._bytes[token] for token in shown})

    def encode(
        self, text: str, *, add_special: bool, parse_special: bool = True, param: str | None = None
    ) -> list[int]:
        """The ids of `text`; `param` names it in an error.

        `add_special` adds what the checkpoint puts around a text (the BOS token, say). Where `parse_special`
        is false, the spelling of a special token in `text` is text as any other.
        """
        try:
            return self._encode(text, add_special, parse_special)
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}; "
                "it is half of a character and cannot be encoded",
                param=param,
            ) from None

    def encode_inside(self, text: str, *, param: str | None = None) -> list[int]:
        """The ids of `text` without the space that SentencePiece sets in front of a text."""
        if not self._adds_space:
            return self.encode(text, add_special=False, parse_special=False, param=param)
        before = self._encode(_BEFORE, False, False)
        return self.encode(_BEFORE + text, add_special=False, parse_special=False, param=param)[len(before) :]

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str:
        """The text of `ids`, with U+FFFD for bytes that are no UTF-8.

        A streamed text is the same, character for character: an invalid byte costs itself alone, never the
        valid characters beside it.
        """
        table = self.table(skip_special=skip_special)
        text = b"".join([table[token] for token in ids]).decode(errors="replace")
        return text[spaces_in_front(text, self.lead) :]

    def fim_prompt(
        self, prefix: str, suffix: str, extra: Sequence[File] = (), *, most: int | None = None
    ) -> list[int]:
        """The prompt that asks for the text between `prefix` and `suffix`, with other files in front.

        Of those the first are left out that would make it longer than `most` tokens.
        """
        marks = self.fim
        if marks is None:
            raise RequestError(
                "this model was not trained to fill in the middle: its tokenizer has no such tokens",
                param="suffix",
            )
        before = [marks.prefix, *self.encode(prefix, add_special=False, parse_special=False, param="prompt")]
        after = [marks.suffix, *self.encode_inside(suffix, param="suffix")]
        middle = [] if marks.middle is None else [marks.middle]
        first, second = (before, after) if marks.order is Order.PREFIX_FIRST else (after, before)
        gap = [*first, *second, *middle]
        opening = self._opening()
        room = None if most is None else most - len(opening) - len(gap)
        return [*opening, *self._files(extra, room), *gap]

    def _files(self, extra: Sequence[File], room: int | None) -> list[int]:
        """The last of the files that fit into `room` tokens, as the family writes a repository: the gap is in
        one more file, whose name nobody told. A family without marks for that gets them as text."""
        if not extra:
            return []
        marks = self.fim
        assert marks is not None
        if marks.repo is None or marks.file is None:
            begin, written = [], [self._text(f"--- {file.name} ---\n{file.text}\n\n") for file in extra]
            end: list[int] = []
        else:
            begin = [marks.repo, *self._text("repository\n")]
            written = [[marks.file, *self._text(f"{file.name}\n{file.text}\n")] for file in extra]
            end = [marks.file, *self._text("file\n")]
        left = None if room is None else room - len(begin) - len(end)
        kept: list[list[int]] = []
        for ids in reversed(written):
            if left is not None and (left := left - len(ids)) < 0:
                break
            kept.append(ids)
        return [*begin, *(token for ids in reversed(kept) for token in ids), *end] if kept else []

    def _text(self, text: str) -> list[int]:
        return self.encode(text, add_special=False, parse_special=False, param="input_extra")

    def _opening(self) -> list[int]:
        """The BOS token, where the checkpoint sets one in front of a text."""
        around = self._encode("", True, True)
        return around[:1] if self.bos_id is not None and around[:1] == [self.bos_id] else []

    def _encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        backend = self._backend if parse_special else self._plain_backend
        text.encode()  # names a lone surrogate, where the library only says that this is no text
        # The batch call, unlike the single one, skips the offsets and lets other threads run meanwhile.
        ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=add_special)[0].ids
        return ids

    def _named_id(self, name: str, source: str) -> int | None:
        """The id of a token that the configuration names."""
        spelling = self.named_tokens.get(name)
        if spelling is None:
            return None
        if spelling not in self._ids:
            raise ModelError(
                f"{source} has no token {spelling!r}, which the tokenizer's config gives as {name}"
            )
        return self._ids[spelling]


def spaces_in_front(text: str, most: int) -> int:
    """How many spaces `text` starts with, up to `most`."""
    return next((index for index in range(most) if text[index : index + 1] != " "), most)


def _backend(data: bytes, source: str) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare exceptions for whatever it cannot read
        raise ModelError(f"{source} is no tokenizer: {' '.join(str(error).split())}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _without_parsing(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer, to which the spelling of a special token is text.

    The library keeps this choice in the tokenizer itself, so each has its own; they share the vocabulary,
    which is what takes the memory. Added tokens get their ids in the order of being added.
    """
    plain = tokenizers.Tokenizer(backend.model)
    plain.normalizer = backend.normalizer
    plain.pre_tokenizer = backend.pre_tokenizer
    plain.post_processor = backend.post_processor
    plain.add_tokens([token for _, token in sorted(backend.get_added_tokens_decoder().items())])
    plain.encode_special_tokens = True
    return plain
