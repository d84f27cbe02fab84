"""One choice's tokens as text: whole characters, stop strings held back, scores beside their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenspeed.core.request import TokenLogprob
from tokenspeed.generation.request import GenerationRequest
from tokenspeed.text.detokenizer import Detokenizer
from tokenspeed.text.stops import StopStrings
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.vocabulary import ByteTable

LEAST_LOGPROB = -9999.0  # what JSON, which has no infinity, says for the logarithm of zero


class Alternative(NamedTuple):
    """A token that could have stood there."""

    token: str
    data: bytes
    logprob: float


class ScoredToken(NamedTuple):
    """A token as text and as bytes; the first of a prompt has no log-probability.

    `offset` is where its text starts in the text of its choice, the echoed prompt included.
    """

    token: str
    data: bytes
    logprob: float | None
    top: tuple[Alternative, ...]
    offset: int


class ChoiceText:
    """Turns a choice's tokens into the text that may be shown, up to its first stop string.

    `tokens` counts what was generated, up to the token that completed `stop`.
    """

    __slots__ = ("_detokenizer", "_min_tokens", "_scores", "_stops", "tokens")

    def __init__(
        self,
        tokenizer: Tokenizer,
        request: GenerationRequest,
        *,
        continues: bool,
        offset: int,
        table: ByteTable | None = None,
    ) -> None:
        """`table` gives the bytes of every token, where special ones are to be shown."""
        self._detokenizer = Detokenizer(tokenizer, continues=continues, table=table)
        self._stops = StopStrings(request.stops, include=request.include_stop) if request.stops else None
        self._scores = None if request.logprobs is None else _ScoredText(tokenizer, offset)
        self._min_tokens = request.min_tokens
        self.tokens = 0

    @property
    def stop(self) -> str | None:
        """The stop string that was found."""
        return None if self._stops is None else self._stops.hit

    def push(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob] | None) -> str:
        """The text that may be shown now that `tokens` are known."""
        if self._stops is None and self._scores is None:
            self.tokens += len(tokens)
            return self._detokenizer.push(tokens)
        shown = []
        for index, token in enumerate(tokens):
            piece = self._detokenizer.push((token,))
            self.tokens += 1
            if self._scores is not None and logprobs is not None:
                self._scores.add(logprobs[index], piece)
            shown.append(self._let_through(piece))
            if self.stop is not None:
                break
        return "".join(shown)

    def flush(self) -> str:
        """What was held back, once no more tokens come."""
        if self._stops is None:
            return self._detokenizer.flush()
        return self._stops.push(self._detokenizer.flush()) + self._stops.flush()

    def take_scores(self, shown: str, *, ended: bool) -> tuple[ScoredToken, ...]:
        """The scores of the tokens whose text ends in, or before, `shown`: the text shown just now."""
        if self._scores is None:
            return ()
        return self._scores.take(len(shown), ended=ended)

    def _let_through(self, piece: str) -> str:
        if self._stops is None or self.tokens <= self._min_tokens:
            return piece
        return self._stops.push(piece)


class _ScoredText:
    """Scores that wait for their text. Tokens that only together make a character share its place."""

    __slots__ = ("_known", "_pending", "_ready", "_shown", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, offset: int) -> None:
        self._tokenizer = tokenizer
        self._known = offset  # characters of text that tokens so far have given
        self._shown = offset  # and that were shown
        self._pending: list[TokenLogprob] = []  # of tokens amid a character
        self._ready: list[tuple[int, ScoredToken]] = []  # with the end of its text

    def add(self, score: TokenLogprob, piece: str) -> None:
        self._pending.append(score)
        if piece:
            self._place(self._known + len(piece))

    def take(self, shown: int, *, ended: bool) -> tuple[ScoredToken, ...]:
        self._shown += shown
        if ended:
            self._place(self._known)
        taken = []
        for end, score in self._ready:
            if end > self._shown and not (ended and score.offset < self._shown):
                break
            taken.append(score)
        self._ready = self._ready[len(taken) :]
        return tuple(taken)

    def _place(self, end: int) -> None:
        for score in self._pending:
            self._ready.append((end, scored(self._tokenizer, score, self._known)))
        self._pending.clear()
        self._known = end


def score_prompt(
    tokenizer: Tokenizer, ids: Sequence[int], scores: Sequence[TokenLogprob], silent: int
) -> tuple[ScoredToken, ...]:
    """The tokens of an echoed prompt with their scores; the first `silent` are not part of its text."""
    detokenizer = Detokenizer(tokenizer, skip_special=False)
    offset = 0
    entries = []
    for index, token in enumerate(ids):
        if index == 0:
            name, data = spelled(tokenizer, token)
            entries.append(ScoredToken(name, data, None, (), 0))
        else:
            entries.append(scored(tokenizer, scores[index - 1], offset))
        if index >= silent:
            offset += len(detokenizer.push((token,)))
    return tuple(entries)


def scored(tokenizer: Tokenizer, score: TokenLogprob, offset: int) -> ScoredToken:
    """A token's score with its ids spelled out."""
    top = tuple(Alternative(*spelled(tokenizer, token), max(p, LEAST_LOGPROB)) for token, p in score.top)
    return ScoredToken(*spelled(tokenizer, score.token), max(score.logprob, LEAST_LOGPROB), top, offset)


def spelled(tokenizer: Tokenizer, token: int) -> tuple[str, bytes]:
    """A token's text and bytes; one that holds part of a character is spelled as OpenAI does."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode(), data
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data
