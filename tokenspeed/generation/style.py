"""How a model writes what is more than text: its tool calls and its thinking."""

from __future__ import annotations

from dataclasses import dataclass

from tokenspeed.generation.request import ToolUse
from tokenspeed.options import option
from tokenspeed.text.parsing.families import FAMILIES, detect
from tokenspeed.text.parsing.family import Family
from tokenspeed.text.parsing.hermes import HERMES
from tokenspeed.text.parsing.parts import Parser, PlainText
from tokenspeed.text.parsing.thinking import THINKS, Think, Thinking, find_think
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.vocabulary import ByteTable

THINKING = {"off": None, "think": THINKS[0], "mistral": THINKS[1]}


@dataclass(frozen=True, slots=True)
class ParsingOptions:
    """`[parsing]`. How answers are told apart; auto reads it off the chat template."""

    tools: str = option("auto", choices=("auto", *FAMILIES))
    reasoning: str = option("auto", choices=("auto", *THINKING))


@dataclass(frozen=True, slots=True)
class Style:
    """`think` is None for a model that does not think aloud. In the text that is parsed the special tokens
    that carry a meaning are shown, as `shown` spells them."""

    family: Family
    think: Think | None
    shown: ByteTable

    @classmethod
    def find(cls, template: str, tokenizer: Tokenizer, options: ParsingOptions = ParsingOptions()) -> Style:
        """What the source of a chat template shows, or what the options name instead.

        A template that knows of no calls gets the most common ones.
        """
        name = detect(template) if options.tools == "auto" else options.tools
        family = HERMES if name is None else FAMILIES[name]
        think = find_think(template) if options.reasoning == "auto" else THINKING[options.reasoning]
        marks = (*family.marks, *(() if think is None else think.marks))
        return cls(family, think, tokenizer.showing(marks))

    def opened(self, prompt: str) -> bool:
        """Whether the answer begins amid its thinking."""
        return self.think is not None and self.think.opened(prompt)

    def parser(self, tools: ToolUse | None, *, opened: bool) -> Parser | None:
        """What tells the parts of an answer apart; None where it can only be text."""
        calls = None if tools is None else self.family.parser(tools.tools)
        if self.think is None:
            return calls
        return Thinking(self.think, calls or PlainText(), opened=opened)
