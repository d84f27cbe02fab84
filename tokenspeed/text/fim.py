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
    """How one family of code models writes the three marks; a mark that it does without is None.

    `ends` are tokens that end a file or a gap in its training; a vocabulary need not have them all. Of those
    `repo` and `file` are what a repository's name and a file's stand behind.
    """

    prefix: str
    suffix: str
    middle: str | None
    order: Order = Order.PREFIX_FIRST
    ends: tuple[str, ...] = ()
    repo: str | None = None
    file: str | None = None


class File(NamedTuple):
    """Another file of the repository that the gap is in, or a part of one."""

    name: str
    text: str


class FimTokens(NamedTuple):
    """The marks' ids. A prompt is a mark and a part, twice, and the middle's mark if there is one.

    Only a vocabulary that has both of `repo` and `file` has either.
    """

    prefix: int
    suffix: int
    middle: int | None
    order: Order = Order.PREFIX_FIRST
    ends: tuple[int, ...] = ()
    repo: int | None = None
    file: int | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """All marks and ends; a completion that draws one of them has left the gap."""
        return (*(mark for mark in (self.prefix, self.suffix, self.middle) if mark is not None), *self.ends)


_QWEN_ENDS = ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>")
_STAR_ENDS = ("<fim_pad>", "<repo_name>", "<reponame>", "<filename>", "<file_sep>")

FIM_SPELLINGS = (
    # Qwen-Coder, CodeGemma
    FimSpelling(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ends=_QWEN_ENDS,
        repo="<|repo_name|>",
        file="<|file_sep|>",
    ),
    # StarCoder, Granite, StableCode
    FimSpelling(
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        ends=_STAR_ENDS,
        repo="<repo_name>",
        file="<file_sep>",
    ),
    # SantaCoder
    FimSpelling("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ends=("<fim-pad>",)),
    # DeepSeek-Coder
    FimSpelling("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    # CodeLlama, which ends a gap with a token of its own
    FimSpelling("▁<PRE>", "▁<SUF>", "▁<MID>", ends=("▁<EOT>",)),
    FimSpelling("<PRE>", "<SUF>", "<MID>", ends=("<EOT>",)),
    # Seed-Coder
    FimSpelling("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", Order.SUFFIX_FIRST),
    # Codestral
    FimSpelling("[PREFIX]", "[SUFFIX]", None, Order.SUFFIX_FIRST, ends=("[MIDDLE]",)),
)


def find_fim(vocabulary: Mapping[str, int]) -> FimTokens | None:
    """The marks of the first family whose every mark is in the vocabulary."""
    for row in FIM_SPELLINGS:
        marks = [mark for mark in (row.prefix, row.suffix, row.middle) if mark is not None]
        if all(mark in vocabulary for mark in marks):
            middle = None if row.middle is None else vocabulary[row.middle]
            ends = tuple(vocabulary[end] for end in row.ends if end in vocabulary)
            repo, file = vocabulary.get(row.repo or ""), vocabulary.get(row.file or "")
            if repo is None or file is None:
                repo = file = None
            prefix, suffix = vocabulary[row.prefix], vocabulary[row.suffix]
            return FimTokens(prefix, suffix, middle, row.order, ends, repo, file)
    return None
