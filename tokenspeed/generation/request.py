"""What any protocol may ask to be generated, and the bounds that protect everybody else.

Fields have one neutral name here; `GenerationRequest.names` says what the client calls them, so that an
error names the field as the client wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

from tokenspeed.core.request import Sampling
from tokenspeed.errors import ContextLengthError, RequestError
from tokenspeed.options import option
from tokenspeed.text.fim import File
from tokenspeed.text.formats import Format
from tokenspeed.text.parsing.parts import Tool

MAX_LOGIT_BIAS = 1024  # entries; each is applied to every draw of the request
GREEDY_BELOW = 1e-5  # a temperature under this would only overflow the logits
MOST_URGENT, LEAST_URGENT = -10, 10  # classes of priority


@dataclass(frozen=True, slots=True)
class Limits:
    """`[limits]`. Caps on one request that protect everybody else."""

    max_tokens: int = option(32_768, at_least=1, at_most=16_777_216)  # generated, for one choice
    max_prompt_tokens: int = option(1_048_576, at_least=1, at_most=16_777_216)
    max_choices: int = option(16, at_least=1, at_most=1024)  # n x prompts of one request
    max_inputs: int = option(2048, at_least=1, at_most=65_536)  # to embed, of one request
    max_stops: int = option(16, at_least=0, at_most=1024)
    max_stop_chars: int = option(256, at_least=1, at_most=65536)
    max_logprobs: int = option(20, at_least=0, at_most=1000)


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Ids that the client tokenised itself."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text to continue."""

    text: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages, and what else the model's chat template is rendered with."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final: bool = False  # go on with the last message instead of answering it
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class FillPrompt:
    """Fill in the middle: what belongs between `prefix` and `suffix`.

    `extra` are other files of the same repository, the most useful last; the first of them are left out where
    all are too long for the context.
    """

    prefix: str
    suffix: str
    extra: tuple[File, ...] = ()


Prompt = TokenPrompt | TextPrompt | ChatPrompt | FillPrompt


class Named(Protocol):
    """A request whose fields have names of their own on its client's side."""

    def name(self, neutral: str) -> str:
        """The field as the client calls it."""
        ...


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Tools that the model may call. It must call some if `required`, that one if `only` names one, and it
    calls one at most unless `parallel`."""

    tools: tuple[Tool, ...]
    required: bool = False
    only: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class LineBounds:
    """What ends an answer that is lines of code: a line with fewer than `indent` spaces or tabs in front,
    which is left out, or that its first token is more than `seconds` old and it has a line break."""

    indent: int = 0
    seconds: float = inf


@dataclass(frozen=True, slots=True)
class SamplingFields:
    """`Sampling` as a client asks for it; None takes the model's default."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None  # by token id, as JSON has it


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Prompts and how to continue each of them, `n` times.

    `max_tokens` None is to the end of the context, within the limits; 0 only echoes and scores. `most_tokens`
    takes its place where more than there is room for shall be cut to that, not refused. `logprobs`
    is the number of alternatives beside each token, None for no log-probabilities at all. `account` is whose
    shares and caps it counts against. The first token is wanted within `deadline` seconds of its arrival,
    and it is refused at once if that cannot be; None has no hurry. Without `speculation` no drafts are used.
    The answer is held to `format`, and calls of `tools` to the schemas of these.
    """

    id: str
    prompts: tuple[Prompt, ...]
    sampling: SamplingFields = field(default_factory=SamplingFields)
    n: int = 1
    max_tokens: int | None = None
    most_tokens: int | None = None
    min_tokens: int = 0
    stops: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    echo: bool = False
    priority: int = 0
    account: str = ""
    deadline: float | None = None
    speculation: bool = True
    format: Format | None = None
    tools: ToolUse | None = None
    lines: LineBounds | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def name(self, neutral: str) -> str:
        """The field as the client calls it."""
        return self.names.get(neutral, neutral)


# Inclusive bounds of the plain numbers of `SamplingFields`.
SAMPLING_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_k": (-1, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "seed": (-(2**63), 2**63 - 1),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 100.0),
}


def invalid(request: Named, neutral: str, problem: str) -> RequestError:
    """The error that field `neutral` has `problem`, which reads on from the field's name."""
    name = request.name(neutral)
    return RequestError(f"{name} {problem}", param=name, code="invalid_value")


def check_request(request: GenerationRequest, limits: Limits, vocab_size: int) -> None:
    """Raise a `RequestError` for the first field that is out of its bounds."""
    if not request.prompts:
        raise invalid(request, "prompts", "must not be empty")
    check_range(request, "n", request.n, 1, limits.max_choices)
    if request.n * len(request.prompts) > limits.max_choices:
        asked = f"{len(request.prompts)} prompts x n = {request.n}"
        raise invalid(
            request, "prompts", f"asks for too many choices ({asked}); the most is {limits.max_choices}"
        )
    if request.max_tokens is not None:
        check_range(request, "max_tokens", request.max_tokens, 0, limits.max_tokens)
    most = limits.max_tokens if request.max_tokens is None else request.max_tokens
    check_range(request, "min_tokens", request.min_tokens, 0, most)
    if request.logprobs is not None:
        check_range(request, "logprobs", request.logprobs, 0, limits.max_logprobs)
    check_range(request, "priority", request.priority, MOST_URGENT, LEAST_URGENT)
    if request.deadline is not None and not request.deadline > 0.0:  # NaN as well
        raise invalid(request, "deadline", "must be more than 0: it counts from the arrival of the request")
    _check_stops(request, limits, vocab_size)
    for name, (low, high) in SAMPLING_RANGES.items():
        value = getattr(request.sampling, name)
        if value is not None:
            check_range(request, name, value, low, high)


def check_range(request: Named, name: str, value: float, low: float, high: float) -> None:
    """Raise unless the value of the field is within the bounds, which count."""
    if not low <= value <= high:  # false for NaN as well
        shown = str(value) if abs(value) < 1e18 else "a huge number"
        raise invalid(request, name, f"must be between {low} and {high}, not {shown}")


def _check_stops(request: GenerationRequest, limits: Limits, vocab_size: int) -> None:
    for name, stops in (("stops", request.stops), ("stop_token_ids", request.stop_token_ids)):
        if len(stops) > limits.max_stops:
            raise invalid(request, name, f"has {len(stops)} entries; the most is {limits.max_stops}")
    for stop in request.stops:
        if not stop:
            raise invalid(request, "stops", "must not hold an empty string")
        if len(stop) > limits.max_stop_chars:
            most = limits.max_stop_chars
            raise invalid(request, "stops", f"has an entry of {len(stop)} characters; the most is {most}")
    check_ids(request, "stop_token_ids", request.stop_token_ids, vocab_size)


def check_ids(request: Named, name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raise unless every id is in the vocabulary."""
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        shown = str(wrong) if abs(wrong) < 10**18 else "a huge number"
        raise invalid(request, name, f"has token id {shown}; the vocabulary has ids 0 to {vocab_size - 1}")


def resolve_sampling(request: GenerationRequest, defaults: Sampling, seed: int, vocab_size: int) -> Sampling:
    """The client's fields over the model's defaults; `seed` where the client has none."""
    asked = request.sampling
    top_k = defaults.top_k if asked.top_k is None else max(asked.top_k, 0)
    top_p = defaults.top_p if asked.top_p is None else asked.top_p
    if top_p == 0.0:  # the empty nucleus means its first token
        top_k, top_p = 1, 1.0
    temperature = _either(asked.temperature, defaults.temperature)
    return Sampling(
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_k=top_k,
        top_p=top_p,
        min_p=_either(asked.min_p, defaults.min_p),
        # Choice i draws with seed + i: 62 bits leave room for that in an int64, whatever the client sends.
        seed=(seed if asked.seed is None else asked.seed) % 2**62,
        presence_penalty=_either(asked.presence_penalty, defaults.presence_penalty),
        frequency_penalty=_either(asked.frequency_penalty, defaults.frequency_penalty),
        repetition_penalty=_either(asked.repetition_penalty, defaults.repetition_penalty),
        logit_bias=_logit_bias(request, asked.logit_bias, vocab_size) or defaults.logit_bias,
        logprobs=request.logprobs,
    )


def _either(asked: float | None, default: float) -> float:
    return default if asked is None else asked


def _logit_bias(
    request: GenerationRequest, biases: Mapping[str, float] | None, vocab_size: int
) -> tuple[tuple[int, float], ...]:
    if not biases:
        return ()
    if len(biases) > MAX_LOGIT_BIAS:
        raise invalid(request, "logit_bias", f"has {len(biases)} entries; the most is {MAX_LOGIT_BIAS}")
    parsed: dict[int, float] = {}
    for key, bias in biases.items():
        # isdecimal alone would let other scripts' digits through; 18 digits bound what int() reads.
        if not (key.isascii() and key.isdecimal() and len(key) <= 18):
            raise invalid(request, "logit_bias", f"has the key {key[:40]!r}; keys are token ids")
        check_ids(request, "logit_bias", (int(key),), vocab_size)
        check_range(request, "logit_bias", bias, -100.0, 100.0)
        parsed[int(key)] = bias
    return tuple(sorted(parsed.items()))


def room_for(request: GenerationRequest, prompt: Sequence[int], limits: Limits, context: int) -> int:
    """How many tokens may follow `prompt`; raises where that is fewer than asked for, or none."""
    length = len(prompt)
    check_length(request, length, limits, context, behind=int(request.max_tokens != 0))
    room = context - length
    if request.max_tokens is None:
        most = limits.max_tokens if request.most_tokens is None else request.most_tokens
        return min(room, limits.max_tokens, most)
    if request.max_tokens > room:
        raise ContextLengthError(
            f"This model's maximum context length is {context} tokens, but you requested "
            f"{length + request.max_tokens} tokens ({length} in the prompt, {request.max_tokens} in the "
            "completion), which exceeds the available context size. Please ask for less.",
            param=request.name("max_tokens"),
            details={"n_prompt_tokens": length, "n_ctx": context},
        )
    return request.max_tokens


def check_length(request: Named, length: int, limits: Limits, context: int, *, behind: int = 0) -> None:
    """Raise unless a prompt of so many tokens can be served, with at least `behind` more."""
    name = request.name("prompts")
    if length > limits.max_prompt_tokens and limits.max_prompt_tokens < context:
        raise ContextLengthError(
            f"This server takes prompts of at most {limits.max_prompt_tokens} tokens, "
            f"but yours has {length} tokens. Please shorten it.",
            param=name,
            details={"n_prompt_tokens": length, "n_ctx": limits.max_prompt_tokens},
        )
    if length + behind > context:
        raise ContextLengthError(
            f"This model's maximum context length is {context} tokens, but your prompt has {length} tokens, "
            "which exceeds the available context size. Please shorten it.",
            param=name,
            details={"n_prompt_tokens": length, "n_ctx": context},
        )
