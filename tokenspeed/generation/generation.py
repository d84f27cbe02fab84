"""What a request yields while the engine works on it: outputs, in the order in which they become certain."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tokenspeed.core.request import Event, Finished, FinishReason, PromptScored, TokenDelta
from tokenspeed.engine.streams import Stream
from tokenspeed.errors import EngineError, RequestError, TokenSpeedError
from tokenspeed.generation.holding import named
from tokenspeed.generation.lines import Lines
from tokenspeed.generation.merge import Merged
from tokenspeed.generation.outputs import (
    CallDelta,
    CallStart,
    Delta,
    Ended,
    Output,
    Reason,
    ReasoningDelta,
    Usage,
)
from tokenspeed.generation.request import ChatPrompt, GenerationRequest, Prompt
from tokenspeed.generation.style import Style
from tokenspeed.generation.text import ChoiceText, ScoredToken, score_prompt
from tokenspeed.text.grammar import TOO_COMPLEX
from tokenspeed.text.parsing.parts import Arguments, Call, Parser, Part, Reasoning, Text
from tokenspeed.text.tokenizer import Tokenizer


class EncodedPrompt(NamedTuple):
    """A prompt's ids, and the text that an echo shows for them. With it `opened` the answer begins amid its
    thinking."""

    ids: tuple[int, ...]
    text: str
    silent: int  # tokens in front that the text does not show
    opened: bool = False


class Outputs:
    """What one batch of events gave; pieces of one kind that follow each other are one, ends come last."""

    def __init__(self) -> None:
        self._pieces: list[Output] = []
        self._ends: list[Output] = []
        self._last: dict[int, int] = {}  # by choice: where its last piece is

    def add(self, piece: Delta | ReasoningDelta | CallStart | CallDelta) -> None:
        at = self._last.get(piece.choice)
        joined = None if at is None else _joined(self._pieces[at], piece)
        if at is not None and joined is not None:
            self._pieces[at] = joined
            return
        self._last[piece.choice] = len(self._pieces)
        self._pieces.append(piece)

    def end(self, ended: Ended) -> None:
        self._ends.append(ended)

    def all(self) -> list[Output]:
        return self._pieces + self._ends


def _joined(before: Output, piece: Output) -> Output | None:
    """Both as one, where they are of one kind."""
    match before, piece:
        case Delta(), Delta():
            text, scores = before.text + piece.text, before.scores + piece.scores
            return Delta(piece.choice, text, scores, before.held + piece.held)
        case ReasoningDelta(), ReasoningDelta():
            return ReasoningDelta(piece.choice, before.text + piece.text)
        case CallDelta(), CallDelta() if before.call == piece.call:
            return CallDelta(piece.choice, piece.call, before.arguments + piece.arguments)
    return None


class Parsed:
    """The parts of one choice's text as outputs.

    `reasoning` counts the tokens of its thinking. Scores are told of the text alone, and come with it.
    """

    __slots__ = ("_choice", "_parser", "_scores", "_thinking", "calls", "reasoning")

    def __init__(self, choice: int, parser: Parser, *, thinking: bool) -> None:
        self._choice = choice
        self._parser = parser
        self._thinking = thinking
        self._scores: tuple[ScoredToken, ...] = ()
        self.calls = 0
        self.reasoning = 0

    def push(
        self, text: str, tokens: int, scores: tuple[ScoredToken, ...], held: int, outputs: Outputs
    ) -> None:
        """`text` came with so many tokens."""
        self._add(self._parser.push(text) if text else [], scores, held, outputs)
        if self._thinking:
            self.reasoning += tokens

    def flush(self, outputs: Outputs) -> None:
        """No more text comes."""
        self._add(self._parser.flush(), (), 0, outputs)
        if self._scores:
            outputs.add(Delta(self._choice, "", self._scores))

    def _add(
        self, parts: Sequence[Part], scores: tuple[ScoredToken, ...], held: int, outputs: Outputs
    ) -> None:
        self._scores += scores
        choice = self._choice
        for part in parts:
            self._thinking = isinstance(part, Reasoning)
            match part:
                case Text(text):
                    outputs.add(Delta(choice, text, self._scores, held))
                    self._scores, held = (), 0
                case Reasoning(text):
                    outputs.add(ReasoningDelta(choice, text))
                case Call(name):
                    outputs.add(CallStart(choice, self.calls, "call_" + secrets.token_hex(12), name))
                    self.calls += 1
                case Arguments(text):
                    outputs.add(CallDelta(choice, self.calls - 1, text))


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
        style: Style,
        *,
        arrival: float,
        now: Callable[[], float],
    ) -> None:
        """It arrived at `arrival`; `now` is the clock of that, in seconds."""
        self.choices = request.n * len(prompts)
        self._arrival = arrival
        self._now = now
        self._first = self._last = 0.0  # tokens, in seconds from arrival
        self._request = request
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._streams = streams
        self._merged = Merged(streams) if len(streams) > 1 else None
        self._texts: list[ChoiceText] = []
        self._parsed: list[Parsed | None] = []
        self._lines = [None if request.lines is None else Lines(request.lines) for _ in range(self.choices)]
        for index, prompt in enumerate(prompts):
            for _ in range(request.n):
                self._begin(request.prompts[index], prompt, style)
        self._prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        self._generated = [0] * self.choices
        self._over = [False] * self.choices
        self._cached = [0] * len(prompts)
        self._echoes: list[Output] = []
        if request.echo and request.logprobs is None:
            self._echoes = [
                Delta(choice, prompts[choice // request.n].text, ()) for choice in range(self.choices)
            ]

    def _begin(self, prompt: Prompt, encoded: EncodedPrompt, style: Style) -> None:
        """One more choice of that prompt."""
        chat = isinstance(prompt, ChatPrompt)
        parser = style.parser(self._request.tools, opened=encoded.opened) if chat else None
        choice = len(self._texts)
        self._parsed.append(None if parser is None else Parsed(choice, parser, thinking=encoded.opened))
        self._texts.append(
            ChoiceText(
                self._tokenizer,
                self._request,
                continues=_continues(prompt),
                offset=len(encoded.text) if self._request.echo else 0,
                table=None if parser is None else style.shown,
            )
        )

    @property
    def predicted(self) -> float:
        """Seconds from arrival until every prompt has its first token, as it was forecast at admission."""
        return max(stream.predicted for stream in self._streams)

    @property
    def usage(self) -> Usage:
        """Tokens so far; final once the iteration has ended."""
        reasoning = sum([parsed.reasoning for parsed in self._parsed if parsed is not None])
        generated = tuple(self._generated)
        cached = sum(self._cached)
        return Usage(
            self._prompt_tokens, sum(generated), cached, reasoning, generated, self._first, self._last
        )

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
        """The outputs of a batch."""
        outputs = Outputs()
        self._last = self._now() - self._arrival
        self._first = self._first or self._last
        first = prompt * self._request.n
        for event in events:
            if isinstance(event, TokenDelta):
                self._take_tokens(first + event.choice, event, outputs)
            elif isinstance(event, Finished):
                self._take_end(prompt, first + event.choice, event, outputs)
            elif isinstance(event, PromptScored):
                self._take_prompt_scores(prompt, event)
        echoes, self._echoes = self._echoes, []
        return echoes + outputs.all() if echoes else outputs.all()

    def _take_tokens(self, choice: int, event: TokenDelta, outputs: Outputs) -> None:
        if self._over[choice]:
            return  # sampled before the engine learnt of the stop string
        state = self._texts[choice]
        text = state.push(event.tokens, event.logprobs)
        before, self._generated[choice] = self._generated[choice], state.tokens
        stop = state.stop
        lines = self._lines[choice]
        over = False
        if lines is not None:
            text = lines.push(text, self._last - self._first, ended=stop is not None)
            over = lines.over
        scores = state.take_scores(text, ended=stop is not None or over)
        self._show(choice, text, state.tokens - before, scores, event.held, outputs)
        if stop is not None or over:
            n = self._request.n
            self._streams[choice // n].cancel(choice % n)
            self._end(choice, "length" if over else "stop", None if over else stop, outputs)

    def _show(
        self,
        choice: int,
        text: str,
        tokens: int,
        scores: tuple[ScoredToken, ...],
        held: int,
        outputs: Outputs,
    ) -> None:
        """More of a choice's text, as what it is."""
        parsed = self._parsed[choice]
        if parsed is not None:
            parsed.push(text, tokens, scores, held, outputs)
        elif text or scores:
            outputs.add(Delta(choice, text, scores, held))

    def _end(self, choice: int, reason: Reason, stop: str | int | None, outputs: Outputs) -> None:
        self._over[choice] = True
        parsed = self._parsed[choice]
        if parsed is not None:
            parsed.flush(outputs)
            if parsed.calls and reason == "stop" and stop is None:
                reason = "tool_calls"
        outputs.end(Ended(choice, reason, stop))

    def _take_end(self, prompt: int, choice: int, event: Finished, outputs: Outputs) -> None:
        self._cached[prompt] = max(self._cached[prompt], event.cached_tokens)
        if self._over[choice]:
            return
        if event.reason in (FinishReason.ERROR, FinishReason.CANCELLED):
            raise _failed(self._request, event.error or "the request was cancelled")
        self._generated[choice] = event.completion_tokens
        state = self._texts[choice]
        text = state.flush()
        lines = self._lines[choice]
        if lines is not None:
            text = lines.push(text, 0.0, ended=True)
        self._show(choice, text, 0, state.take_scores(text, ended=True), 0, outputs)
        asked_for = event.stop_id in self._request.stop_token_ids
        if state.stop is not None:  # the held-back end of a character completed it
            self._end(choice, "stop", state.stop, outputs)
        else:
            reason: Reason = "stop" if event.reason is FinishReason.STOP else "length"
            self._end(choice, reason, event.stop_id if asked_for else None, outputs)

    def _take_prompt_scores(self, prompt: int, event: PromptScored) -> None:
        encoded = self._prompts[prompt]
        scores = score_prompt(self._tokenizer, encoded.ids, event.logprobs, encoded.silent)
        n = self._request.n
        self._echoes += [Delta(prompt * n + choice, encoded.text, scores) for choice in range(n)]


def _failed(request: GenerationRequest, why: str) -> TokenSpeedError:
    """Who has to act: a grammar that turns out to be too complex amid the answer is the client's to mend."""
    if why == TOO_COMPLEX:
        return named(request, RequestError(f"cannot be held to: {why}", code="invalid_grammar"))
    return EngineError(why)


def _continues(prompt: Prompt) -> bool:
    """Whether the reader has the text in front already; a reply in a chat is a text of its own."""
    return prompt.continue_final if isinstance(prompt, ChatPrompt) else True
