"""What a family of models is to us: how it writes calls, and how it is told by its chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenspeed.text.parsing.lark import Mark
from tokenspeed.text.parsing.parts import Parser, Tool


class CallRules(Protocol):
    """Writes the grammar of a family's calls."""

    def __call__(self, tools: Sequence[Tool], *, most: int | None, mark: Mark) -> str:
        """Lark rules, of which `calls` matches one call or more (at most `most`) of `tools`.

        Their arguments fit the tools' schemas. Other rules' names begin with `call_` or `CALL_`.
        """


def _no_starts(tools: Sequence[Tool]) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Family:
    """One way to write calls.

    `marks` may be special tokens in a vocabulary, and must then be shown in the text that is parsed.
    A model that answers freely opens a call with one of `openers`, or its answer starts with one of `starts`.
    `detects` takes the source of a chat template.
    """

    name: str
    marks: tuple[str, ...]
    openers: tuple[str, ...]
    detects: Callable[[str], bool]
    parser: Callable[[Sequence[Tool]], Parser]
    calls: CallRules
    starts: Callable[[Sequence[Tool]], tuple[str, ...]] = _no_starts
