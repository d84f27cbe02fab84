"""What a model's tokenizer and template make of text, for those who ask for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tokenspeed.generation.request import ChatPrompt
from tokenspeed.generation.style import Style
from tokenspeed.generation.weight import INLINE_CHARACTERS, is_long
from tokenspeed.text.template import ChatTemplate
from tokenspeed.text.tokenizer import Tokenizer


class Wording:
    """The words of one model."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, style: Style, tokenising: asyncio.Semaphore
    ) -> None:
        """`tokenising` lets one long text at a time through."""
        self._tokenizer = tokenizer
        self._template = template
        self._tokenising = tokenising
        self.thinks = style.think is not None
        self.fills = tokenizer.fim is not None  # in the middle
        self.vocab_size = tokenizer.vocab_size

    @property
    def template(self) -> str:
        """The source of the chat template; empty if there is none."""
        return self._template.source

    @property
    def has_template(self) -> bool:
        return self._template.exists

    def special(self, name: str) -> str:
        """The spelling of the token that the tokenizer's configuration calls so, or nothing."""
        return self._tokenizer.named_tokens.get(name, "")

    def render(self, prompt: ChatPrompt) -> str:
        """The text of the prompt that messages make."""
        return self._template.render(
            prompt.messages,
            tools=prompt.tools,
            add_generation_prompt=prompt.add_generation_prompt,
            continue_final=prompt.continue_final,
            extra=prompt.extra,
        )

    async def render_aside(self, prompt: ChatPrompt) -> str:
        """The same; what is long is rendered in a thread."""
        if not is_long([prompt]):
            return self.render(prompt)
        async with self._tokenising:
            return await asyncio.to_thread(self.render, prompt)

    def encode(
        self, text: str, *, add_special: bool, parse_special: bool = True, param: str | None = None
    ) -> list[int]:
        """As `Tokenizer.encode`, at once."""
        return self._tokenizer.encode(text, add_special=add_special, parse_special=parse_special, param=param)

    async def encode_all(
        self, texts: Sequence[str], *, add_special: bool, parse_special: bool = True, param: str | None = None
    ) -> list[list[int]]:
        """The ids of each text. What the checkpoint puts around a text is added to the first alone."""

        def work() -> list[list[int]]:
            return [
                self.encode(text, add_special=add_special and not i, parse_special=parse_special, param=param)
                for i, text in enumerate(texts)
            ]

        if sum(map(len, texts)) <= INLINE_CHARACTERS:
            return work()
        async with self._tokenising:
            return await asyncio.to_thread(work)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that are all in the vocabulary, special tokens included."""
        return self._tokenizer.decode(ids, skip_special=False)

    async def decode_aside(self, ids: Sequence[int]) -> str:
        """The same; what is long is decoded in a thread."""
        if len(ids) <= INLINE_CHARACTERS:
            return self.decode(ids)
        async with self._tokenising:
            return await asyncio.to_thread(self.decode, ids)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for inside a text."""
        return self._tokenizer.token_bytes(token)
