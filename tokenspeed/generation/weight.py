"""How much work a prompt is before it is tokens: what is long is rendered and tokenised in a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from tokenspeed.generation.request import ChatPrompt, FillPrompt, Prompt, TextPrompt, TokenPrompt
from tokenspeed.text.formats import Format

# Longer texts are tokenised in a thread, so that no stream waits for them; about 5 ms of work.
INLINE_CHARACTERS = 50_000
PUNCTUATION = 4  # characters that a value in JSON costs beside its text, at least


def is_long(prompts: Sequence[Prompt], most: int = INLINE_CHARACTERS) -> bool:
    """Whether all of them are more than `most` characters to tokenise, or ids to check."""
    return sum(weight(prompt, most) for prompt in prompts) > most


def is_long_format(wanted: Format | None, most: int = INLINE_CHARACTERS) -> bool:
    """The same of what an answer is held to."""
    if wanted is None:
        return False
    return _written([getattr(wanted, field.name) for field in fields(wanted)], most) > most


def weight(prompt: Prompt, most: int) -> int:
    """Characters or ids, roughly; of a conversation, whose tools may be the most of it, counted no further
    than to `most`."""
    match prompt:
        case TokenPrompt(ids):
            return len(ids)
        case TextPrompt(text):
            return len(text)
        case FillPrompt(prefix, suffix, extra):
            return len(prefix) + len(suffix) + sum(len(file.text) for file in extra)
        case ChatPrompt():
            return _written([prompt.messages, prompt.tools, prompt.extra], most)


def _written(values: list[Any], most: int) -> int:
    """What they come to as JSON; any of them may be nested deeply."""
    found = 0
    while values and found <= most:
        value = values.pop()
        found += PUNCTUATION
        if isinstance(value, str):
            found += len(value)
        elif isinstance(value, Mapping):
            found += sum(map(len, value))
            values.extend(value.values())
        elif isinstance(value, Sequence):
            values.extend(value)
    return found
