"""What every token stands for in bytes, read off the decoder that a `tokenizer.json` describes.

Two kinds cover the checkpoints we serve. Byte-level BPE spells each byte as one printable character.
SentencePiece-style vocabularies spell a space as U+2581 and a byte without a token of its own as `<0xE4>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenspeed.errors import ModelError

METASPACE = "▁"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte, turned around.

    Printable Latin-1 stands for itself; the other 68 bytes take the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    shown = {chr(byte): byte for byte in printable}
    return shown | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


BYTE_ALPHABET: Mapping[str, int] = _byte_alphabet()


@dataclass(frozen=True, slots=True)
class Spelling:
    """How tokens are written. `lead` spaces are dropped from the front of a whole text."""

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    lead: int = 0

    def to_bytes(self, token: str) -> bytes:
        """The bytes that `token` stands for inside a text."""
        if self.byte_level:
            try:
                return bytes([BYTE_ALPHABET[character] for character in token])
            except KeyError:  # an added token, which is written as plain text
                return token.encode()
        if self.byte_fallback and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode()


class ByteTable(dict[int, bytes]):
    """The bytes of every token; an id without a token (a padded embedding row) has none."""

    def __missing__(self, token: int) -> bytes:
        return b""


def byte_table(vocabulary: Mapping[str, int], spelling: Spelling) -> ByteTable:
    """The bytes of every token of `vocabulary`."""
    return ByteTable({token: spelling.to_bytes(text) for text, token in vocabulary.items()})


def without(table: ByteTable, tokens: Iterable[int]) -> ByteTable:
    """The same table with `tokens` standing for nothing."""
    return ByteTable(table | dict.fromkeys(tokens, b""))


def read_spelling(decoder: Any, source: str) -> Spelling:
    """The spelling that the `decoder` of a `tokenizer.json` describes."""
    steps = decoder.get("decoders", []) if _kind(decoder) == "Sequence" else [decoder]
    kinds = [_kind(step) for step in steps]
    if unknown := [kind for kind in kinds if kind not in _LEADS]:
        raise ModelError(
            f"{source}: the decoder {unknown[0]} is not supported; supported are {', '.join(_LEADS)}"
        )
    return Spelling(
        byte_level="ByteLevel" in kinds,
        byte_fallback="ByteFallback" in kinds,
        replacements=tuple(
            _replacement(step, source) for step in steps if _kind(step) in ("Replace", "Metaspace")
        ),
        lead=sum(_LEADS[kind](step, source) for kind, step in zip(kinds, steps, strict=True)),
    )


def _kind(step: Any) -> str:
    return str(step.get("type")) if isinstance(step, dict) else "none"


def _replacement(step: Mapping[str, Any], source: str) -> tuple[str, str]:
    """What is written for what."""
    if step["type"] == "Metaspace":
        return str(step.get("replacement", METASPACE)), " "
    pattern = step.get("pattern")
    if not isinstance(pattern, dict) or not isinstance(pattern.get("String"), str):
        raise ModelError(
            f"{source}: a Replace decoder with a pattern other than a plain string is not supported"
        )
    return pattern["String"], str(step.get("content", ""))


def _no_lead(step: Mapping[str, Any], source: str) -> int:
    return 0


def _strip_lead(step: Mapping[str, Any], source: str) -> int:
    """A stream cannot take back its end, so only stripping spaces in front can be followed."""
    if step.get("content") != " " or step.get("stop"):
        raise ModelError(f"{source}: a Strip decoder that drops anything but leading spaces is not supported")
    return int(step.get("start", 0))


def _metaspace_lead(step: Mapping[str, Any], source: str) -> int:
    return 0 if step.get("prepend_scheme") == "never" else 1


# The steps a decoder may have, each with the leading spaces that it drops.
_LEADS = {
    "ByteLevel": _no_lead,
    "ByteFallback": _no_lead,
    "Fuse": _no_lead,
    "Replace": _no_lead,
    "Strip": _strip_lead,
    "Metaspace": _metaspace_lead,
}
