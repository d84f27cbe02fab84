"""From what a client says to text: templates, tokens, the engine, and text again.

Neutral to protocols: an adapter parses its wire format into a `GenerationRequest` and writes what a
`Generation` yields.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenspeed.core.request import (
    Event,
    Finished,
    FinishReason,
    PromptScored,
    Request,
    Sampling,
    TokenDelta,
)
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.streams import Stream
from tokenspeed.errors import EngineError, RequestError
from tokenspeed.generation.merge import Merged
from tokenspeed.generation.outputs import Delta, Ended, Output, Reason, Usage
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
from tokenspeed.generation.text import ChoiceText, ScoredToken, score_prompt
from tokenspeed.text.template import ChatTemplate
from tokenspeed.text.tokenizer import Tokenizer

# Longer prompts are tokenised in a thread, so that no stream waits for them; about 5 ms of work.
INLINE_CHARACTERS = 50_000


class EncodedPrompt(NamedTuple):
    """A prompt's ids, and the text that an echo shows for them."""

    ids: tuple[int, ...]
    text: str
    silent: int  # tokens in front that the text does not show


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
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._template = template
        self._eos_ids = frozenset(eos_ids)
        self._defaults = defaults
        self._limits = limits
        self._vocab_size = vocab_size
        self._tokenising = asyncio.Semaphore(1)  # long prompts take one core, never all that decode
        self.max_context = min(model_max_context, engine.max_context)

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
        asked = [
            self._core_request(request, index, prompt, sampling, arrival)
            for index, prompt in enumerate(prompts)
        ]
        return Generation(request, self._tokenizer, prompts, self._submit(request, asked))

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
    ) -> Request:
        max_tokens = room_for(request, prompt.ids, self._limits, self.max_context)
        ends = set(self._eos_ids)
        if isinstance(request.prompts[index], FillPrompt) and self._tokenizer.fim is not None:
            ends.update(self._tokenizer.fim.ids)  # drawing a mark is leaving the gap
        if request.ignore_eos:
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
        )

    async def _encoded(self, request: GenerationRequest) -> list[EncodedPrompt]:
        if sum(map(_size, request.prompts)) <= INLINE_CHARACTERS:
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
            case FillPrompt(prefix, suffix):
                encoded = EncodedPrompt(tuple(tokenizer.fim_prompt(prefix, suffix)), prefix, 0)
            case ChatPrompt():
                text = self._render(prompt)
                ids = tuple(tokenizer.encode(text, add_special=False, param=name))
                encoded = EncodedPrompt(ids, text, 0)
        if not encoded.ids:
            raise invalid(request, "prompts", "must not be empty")
        return encoded

    def _starts_with_bos(self, text: str) -> bool:
        bos = self._tokenizer.bos_id
        return bos is not None and text[:64].encode().startswith(self._tokenizer.token_bytes(bos))

    def _render(self, prompt: ChatPrompt) -> str:
        return self._template.render(
            prompt.messages,
            tools=prompt.tools,
            add_generation_prompt=prompt.add_generation_prompt,
            continue_final=prompt.continue_final,
            extra=prompt.extra,
        )


def _size(prompt: Prompt) -> int:
    """Characters to tokenise, roughly, or ids to check."""
    match prompt:
        case TokenPrompt(ids):
            return len(ids)
        case TextPrompt(text):
            return len(text)
        case FillPrompt(prefix, suffix):
            return len(prefix) + len(suffix)
        case ChatPrompt(messages):
            return sum(len(str(message.get("content", ""))) for message in messages)


class Generation:
    """What a request yields: an async iterator of lists of `Output`, those of one engine step together.

    Choice c of prompt p is choice p * n + c. Whoever iterates closes it in the end; that returns its
    blocks at once if it is not over. A failed step raises `EngineError`.
    """

    def __init__(
        self,
        request: GenerationRequest,
        tokenizer: Tokenizer,
        prompts: Sequence[EncodedPrompt],
        streams: Sequence[Stream],
    ) -> None:
        self.choices = request.n * len(prompts)
        self._request = request
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._streams = streams
        self._merged = Merged(streams) if len(streams) > 1 else None
        self._texts = [
            ChoiceText(
                tokenizer,
                request,
                continues=_continues(request.prompts[index]),
                offset=len(prompt.text) if request.echo else 0,
            )
            for index, prompt in enumerate(prompts)
            for _ in range(request.n)
        ]
        self._generated = [0] * self.choices
        self._over = [False] * self.choices
        self._cached = [0] * len(prompts)
        self._echoes: list[Delta] = []
        if request.echo and request.logprobs is None:
            self._echoes = [
                Delta(choice, prompts[choice // request.n].text, ()) for choice in range(self.choices)
            ]

    @property
    def predicted(self) -> float:
        """Seconds from arrival until every prompt has its first token, as it was forecast at admission."""
        return max(stream.predicted for stream in self._streams)

    @property
    def usage(self) -> Usage:
        """Tokens so far; final once the iteration has ended."""
        prompt = sum(len(prompt.ids) for prompt in self._prompts)
        return Usage(prompt, sum(self._generated), sum(self._cached))

    def close(self) -> None:
        """Cancel whatever is not over."""
        for stream in self._streams:
            stream.cancel()

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[Output]:
        while True:
            if self._merged is None:
                prompt, events = 0, await anext(self._streams[0])
            else:
                prompt, events = await anext(self._merged)
            if outputs := self._take(prompt, events):
                return outputs

    def _take(self, prompt: int, events: Sequence[Event]) -> list[Output]:
        """The outputs of a batch: the text of each choice in one piece, then the ends."""
        deltas: dict[int, Delta] = {}
        ends: list[Output] = []
        first = prompt * self._request.n
        for event in events:
            if isinstance(event, TokenDelta):
                self._take_tokens(first + event.choice, event, deltas, ends)
            elif isinstance(event, Finished):
                self._take_end(prompt, first + event.choice, event, deltas, ends)
            else:
                self._take_prompt_scores(prompt, event)
        if self._echoes:
            echoes, self._echoes = self._echoes, []
            return [*echoes, *deltas.values(), *ends]
        return [*deltas.values(), *ends]

    def _take_tokens(
        self, choice: int, event: TokenDelta, deltas: dict[int, Delta], ends: list[Output]
    ) -> None:
        if self._over[choice]:
            return  # sampled before the engine learnt of the stop string
        state = self._texts[choice]
        text = state.push(event.tokens, event.logprobs)
        self._generated[choice] = state.tokens
        stop = state.stop
        _add(deltas, choice, text, state.take_scores(text, ended=stop is not None), event.held)
        if stop is not None:
            n = self._request.n
            self._over[choice] = True
            self._streams[choice // n].cancel(choice % n)
            ends.append(Ended(choice, "stop", stop))

    def _take_end(
        self, prompt: int, choice: int, event: Finished, deltas: dict[int, Delta], ends: list[Output]
    ) -> None:
        self._cached[prompt] = max(self._cached[prompt], event.cached_tokens)
        if self._over[choice]:
            return
        if event.reason in (FinishReason.ERROR, FinishReason.CANCELLED):
            raise EngineError(event.error or "the request was cancelled")
        self._over[choice] = True
        self._generated[choice] = event.completion_tokens
        state = self._texts[choice]
        text = state.flush()
        _add(deltas, choice, text, state.take_scores(text, ended=True))
        asked_for = event.stop_id in self._request.stop_token_ids
        if state.stop is not None:  # the held-back end of a character completed it
            ends.append(Ended(choice, "stop", state.stop))
        else:
            reason: Reason = "stop" if event.reason is FinishReason.STOP else "length"
            ends.append(Ended(choice, reason, event.stop_id if asked_for else None))

    def _take_prompt_scores(self, prompt: int, event: PromptScored) -> None:
        encoded = self._prompts[prompt]
        scores = score_prompt(self._tokenizer, encoded.ids, event.logprobs, encoded.silent)
        n = self._request.n
        self._echoes += [Delta(prompt * n + choice, encoded.text, scores) for choice in range(n)]


def _continues(prompt: Prompt) -> bool:
    """Whether the reader has the text in front already; a reply in a chat is a text of its own."""
    return prompt.continue_final if isinstance(prompt, ChatPrompt) else True


def _add(
    deltas: dict[int, Delta], choice: int, text: str, scores: tuple[ScoredToken, ...], held: int = 0
) -> None:
    """Append to what a choice has in this batch."""
    if text or scores:
        before = deltas.get(choice)
        if before is None:
            deltas[choice] = Delta(choice, text, scores, held)
        else:
            text, scores = before.text + text, before.scores + scores
            deltas[choice] = Delta(choice, text, scores, before.held + held)
