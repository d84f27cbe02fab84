"""From what a client says to text: templates, tokens, the engine, and text again.

Neutral to protocols: an adapter parses its wire format into a `GenerationRequest` and writes what a
`Generation` yields.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenspeed.core.request import Request, Sampling
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.streams import Stream
from tokenspeed.errors import RequestError
from tokenspeed.generation.generation import EncodedPrompt, Generation
from tokenspeed.generation.holding import Holder, MakeConstraint
from tokenspeed.generation.request import (
    ChatPrompt,
    FillPrompt,
    GenerationRequest,
    Limits,
    Prompt,
    TextPrompt,
    TokenPrompt,
    check_ids,
    check_request,
    invalid,
    resolve_sampling,
    room_for,
)
from tokenspeed.generation.style import Style
from tokenspeed.generation.weight import is_long, is_long_format
from tokenspeed.generation.wording import Wording
from tokenspeed.text.grammar import Grammars
from tokenspeed.text.template import ChatTemplate
from tokenspeed.text.tokenizer import Tokenizer

FOLLOWING = 256  # tokens that other files leave room for behind a gap, where the client does not say


class Load(NamedTuple):
    """Sequences that run, of `most` that can at once, and those that wait."""

    running: int
    most: int
    waiting: int


class Generator:
    """Validates requests, turns them into tokens and starts them in the engine."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        eos_ids: Iterable[int],
        defaults: Sampling,
        limits: Limits,
        model_max_context: int,
        vocab_size: int,
        style: Style,
        grammars: Grammars,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._defaults = defaults
        self._limits = limits
        self._vocab_size = vocab_size
        self._style = style
        self._holder = Holder(grammars, style, tokenizer)
        self._tokenising = asyncio.Semaphore(1)  # long prompts take one core, never all that decode
        self._compiling = asyncio.Semaphore(1)  # and so do new grammars
        self.max_context = min(model_max_context, engine.max_context)
        self.wording = Wording(tokenizer, template, style, self._tokenising)

    @property
    def defaults(self) -> Sampling:
        """How tokens are drawn where a request does not say."""
        return self._defaults

    @property
    def load(self) -> Load:
        """What is going on."""
        scheduler = self._engine.scheduler
        return Load(scheduler.running, scheduler.options.max_running, scheduler.waiting)

    def now(self) -> float:
        """Seconds of the engine's clock."""
        return self._engine.now()

    async def start(self, request: GenerationRequest, arrival: float | None = None) -> Generation:
        """Submit a request; whatever is wrong with it is raised here, before anything is generated.

        It arrived at `arrival`, by `now()`; None is this moment. The first prompt has the request's id in the
        engine, the others have it with "-1", "-2", ... behind it.
        """
        arrival = self.now() if arrival is None else arrival
        check_request(request, self._limits, self._vocab_size)
        sampling = resolve_sampling(request, self._defaults, secrets.randbits(62), self._vocab_size)
        prompts = await self._encoded(request)
        constraint = await self._constraint(request, opened=any(prompt.opened for prompt in prompts))
        asked = [
            self._core_request(request, index, prompt, sampling, arrival, constraint)
            for index, prompt in enumerate(prompts)
        ]
        streams = self._submit(request, asked)
        return Generation(
            request, self._tokenizer, prompts, streams, self._style, arrival=arrival, now=self.now
        )

    async def _constraint(self, request: GenerationRequest, *, opened: bool) -> MakeConstraint | None:
        """What holds the answers. In a thread a long grammar is written, and one that is new is compiled."""
        if request.tools is None and request.format is None:
            return None
        if is_long(request.prompts) or is_long_format(request.format):
            async with self._compiling:
                return await asyncio.to_thread(self._constraint_at_once, request, opened)
        hold = self._holder.hold(request, opened=opened)
        if hold is None:
            return None
        if self._holder.knows(hold):
            return self._holder.follow(request, hold, opened=opened)
        async with self._compiling:
            return await asyncio.to_thread(self._holder.follow, request, hold, opened=opened)

    def _constraint_at_once(self, request: GenerationRequest, opened: bool) -> MakeConstraint | None:
        hold = self._holder.hold(request, opened=opened)
        return None if hold is None else self._holder.follow(request, hold, opened=opened)

    async def count(self, request: GenerationRequest) -> int:
        """How many tokens its prompts have, as `start` would count them."""
        return sum(len(prompt.ids) for prompt in await self._encoded(request))

    def _submit(self, request: GenerationRequest, asked: Sequence[Request]) -> list[Stream]:
        """All of them, or none; an error names the field as the client does."""
        streams: list[Stream] = []
        try:
            for each in asked:
                streams.append(self._engine.submit(each))  # noqa: PERF401 (what is in it is cancelled below)
        except RequestError as error:
            error.param = error.param and request.name(error.param)
            raise
        finally:
            if len(streams) < len(asked):
                for stream in streams:
                    stream.cancel()
        return streams

    def _core_request(
        self,
        request: GenerationRequest,
        index: int,
        prompt: EncodedPrompt,
        sampling: Sampling,
        arrival: float,
        constraint: MakeConstraint | None,
    ) -> Request:
        max_tokens = room_for(request, prompt.ids, self._limits, self.max_context)
        ends = set(self._eos_ids)
        if isinstance(request.prompts[index], FillPrompt) and self._tokenizer.fim is not None:
            ends.update(self._tokenizer.fim.ids)  # drawing a mark is leaving the gap
        if request.ignore_eos and constraint is None:  # a grammar has an end of its own
            ends.clear()
        return Request(
            id=f"{request.id}-{index}" if index else request.id,
            prompt=prompt.ids,
            max_tokens=max_tokens,
            sampling=sampling,
            n=request.n,
            stop_ids=frozenset(ends.union(request.stop_token_ids)),
            min_tokens=min(request.min_tokens, max_tokens),
            priority=request.priority,
            account=request.account,
            arrival=arrival,
            deadline=None if request.deadline is None else arrival + request.deadline,
            prompt_logprobs=request.logprobs if request.echo else None,
            speculation=request.speculation,
            constraint=constraint,
        )

    async def _encoded(self, request: GenerationRequest) -> list[EncodedPrompt]:
        if not is_long(request.prompts):
            return self._encode_all(request)
        async with self._tokenising:
            return await asyncio.to_thread(self._encode_all, request)

    def _encode_all(self, request: GenerationRequest) -> list[EncodedPrompt]:
        return [self._encode(request, prompt) for prompt in request.prompts]

    def _encode(self, request: GenerationRequest, prompt: Prompt) -> EncodedPrompt:
        name = request.name("prompts")
        tokenizer = self._tokenizer
        match prompt:
            case TokenPrompt(ids):
                check_ids(request, "prompts", ids, self._vocab_size)
                text = tokenizer.decode(ids, skip_special=False) if request.echo else ""
                encoded = EncodedPrompt(ids, text, 0)
            case TextPrompt(text):
                ids = tuple(tokenizer.encode(text, add_special=True, param=name))
                if not ids and tokenizer.bos_id is not None:
                    ids = (tokenizer.bos_id,)
                silent = int(ids[:1] == (tokenizer.bos_id,) and not self._starts_with_bos(text))
                encoded = EncodedPrompt(ids, text, silent)
            case FillPrompt(prefix, suffix, extra):
                ids = tuple(tokenizer.fim_prompt(prefix, suffix, extra, most=self._room_for_files(request)))
                encoded = EncodedPrompt(ids, prefix, 0)
            case ChatPrompt():
                text = self.wording.render(prompt)
                ids = tuple(tokenizer.encode(text, add_special=False, param=name))
                encoded = EncodedPrompt(ids, text, 0, self._style.opened(text))
        if not encoded.ids:
            raise invalid(request, "prompts", "must not be empty")
        return encoded

    def _starts_with_bos(self, text: str) -> bool:
        bos = self._tokenizer.bos_id
        return bos is not None and text[:64].encode().startswith(self._tokenizer.token_bytes(bos))

    def _room_for_files(self, request: GenerationRequest) -> int:
        """How long a prompt may be that leaves room for what is to follow, if that takes half of the context
        at most."""
        wanted = next((n for n in (request.max_tokens, request.most_tokens) if n is not None), FOLLOWING)
        room = self.max_context - min(max(wanted, 1), self.max_context // 2)
        return min(room, self._limits.max_prompt_tokens)
