"""Fill in the middle: how a code model is told the text before and after the gap."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple


class Order(Enum):
    """Which part of the file comes first in the prompt."""

    PREFIX_FIRST = "prefix first"
    SUFFIX_FIRST = "suffix first"


class FimSpelling(NamedTuple):
    """How one family of code models writes the three marks; a mark that it does without is None."""

    prefix: str
    suffix: str
    middle: str | None
    order: Order = Order.PREFIX_FIRST


class FimTokens(NamedTuple):
    """The marks' ids. A prompt is a mark and a part, twice, and the middle's mark if there is one."""

    prefix: int
    suffix: int
    middle: int | None
    order: Order = Order.PREFIX_FIRST

    @property
    def ids(self) -> tuple[int, ...]:
        """All marks; a completion that draws one of them has left the gap."""
        return tuple(mark for mark in (self.prefix, self.suffix, self.middle) if mark is not None)


FIM_SPELLINGS = (
    FimSpelling("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen-Coder, CodeGemma
    FimSpelling("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite, StableCode
    FimSpelling("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    FimSpelling("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    FimSpelling("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    FimSpelling("<PRE>", "<SUF>", "<MID>"),
    FimSpelling("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", Order.SUFFIX_FIRST),  # Seed-Coder
    FimSpelling("[PREFIX]", "[SUFFIX]", None, Order.SUFFIX_FIRST),  # Codestral
)


def find_fim(vocabulary: Mapping[str, int]) -> FimTokens | None:
    """The marks of the first family whose every mark is in the vocabulary."""
    for row in FIM_SPELLINGS:
        marks = [mark for mark in (row.prefix, row.suffix, row.middle) if mark is not None]
        if all(mark in vocabulary for mark in marks):
            middle = None if row.middle is None else vocabulary[row.middle]
            return FimTokens(vocabulary[row.prefix], vocabulary[row.suffix], middle, row.order)
    return None
