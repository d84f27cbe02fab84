"""Everything that was measured, as it is kept in JSON and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from bench.client import BenchError
from bench.serve.prompts import Sizing
from bench.serve.workloads import RECIPES

SCHEMA = "tokenspeed-bench-serve/1"
TRACE = "trace"  # what the workload of a user's own requests is called
EVERYTHING = "together"  # what the report calls all kinds
WORKLOADS = (*RECIPES, TRACE)
DIGITS = 6  # behind the point, of seconds
Positive = Annotated[float, msgspec.Meta(gt=0)]


class Outcome(msgspec.Struct, forbid_unknown_fields=True):
    """What became of one request. Times are seconds after the start of its repeat."""

    kind: str
    phase: int
    scheduled: float
    max_tokens: int
    sent: float
    ended: float = 0.0
    chunks: list[float] = []  # when each piece of the answer arrived; the first one ends the wait
    prompt_tokens: int | None = None  # as the endpoint counts, where it tells
    completion_tokens: int | None = None
    finish: str | None = None
    error: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the answer; where the endpoint does not count them, the pieces that it came in."""
        return len(self.chunks) if self.completion_tokens is None else self.completion_tokens


class Repeat(msgspec.Struct, forbid_unknown_fields=True):
    """One turn of one endpoint."""

    endpoint: int
    number: int
    seconds: float
    cpu_share: float  # of one core, used by the client meanwhile
    complete: bool
    outcomes: list[Outcome]
    not_sent: int = 0  # requests whose time never came, or whose endpoint was gone


class Endpoint(msgspec.Struct, forbid_unknown_fields=True):
    """A server, and what it was found to take."""

    name: str
    url: str  # that paths such as /chat/completions follow
    model: str
    path: str = ""
    left_out: list[str] = []  # fields that it refuses; without max_tokens it takes max_completion_tokens
    usage: bool = False  # whether streams tell how many tokens they were
    sizing: Sizing = Sizing()  # how it counts a prompt's tokens


class Light(msgspec.Struct, forbid_unknown_fields=True):
    """The bound of one stream: it reads all weights for every token."""

    weight_bytes: Positive
    bandwidth: Positive  # bytes/s
    measured: bool  # by this bench, on the machine that it ran on

    @property
    def tokens_per_second(self) -> float:
        return self.bandwidth / self.weight_bytes


class Objective(msgspec.Struct, forbid_unknown_fields=True):
    """What a request must meet to count as good, in seconds."""

    ttft: Positive = 0.5
    gap: Positive = 0.1  # the 99th percentile of the request's own gaps


class Recording(msgspec.Struct, forbid_unknown_fields=True):
    """One run."""

    schema: str
    made: str  # ISO 8601, UTC
    workload: str
    settings: str  # of the workload, told
    kinds: list[str]
    seed: int
    repeats_wanted: int
    objective: Objective
    endpoints: Annotated[list[Endpoint], msgspec.Meta(min_length=1, max_length=2)]
    client: dict[str, str]
    prompt_tokens: dict[str, float]  # wanted, mean by kind; none for prompts that were given
    repeats: list[Repeat] = []
    light: Light | None = None
    ended_early: str | None = None  # why


def rounded(recording: Recording) -> Recording:
    """Times in whole microseconds: what is reported now is what a file of it reports later."""
    return msgspec.convert(_rounded(msgspec.to_builtins(recording)), Recording)


def save(recording: Recording, path: Path) -> None:
    """As JSON."""
    path.write_bytes(msgspec.json.encode(recording) + b"\n")


def load(path: Path) -> Recording:
    """Raises BenchError naming the line or the field that is wrong."""
    try:
        text = path.read_bytes()
        raw = msgspec.json.decode(text)
        if isinstance(raw, dict) and raw.get("schema") != SCHEMA:
            raise BenchError(f"{path}: schema: expected {SCHEMA!r}, got {raw.get('schema')!r}")
        recording = msgspec.convert(raw, Recording)
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from None
    except msgspec.ValidationError as error:
        raise BenchError(f"{path}: {told(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: not JSON: {_located(str(error), text)}") from None
    if recording.workload not in WORKLOADS:
        raise BenchError(f"{path}: workload: {recording.workload!r} is none of {', '.join(WORKLOADS)}")
    for index, repeat in enumerate(recording.repeats):
        if not 0 <= repeat.endpoint < len(recording.endpoints):
            raise BenchError(f"{path}: repeats[{index}].endpoint: there is no endpoint {repeat.endpoint}")
    return recording


def told(error: msgspec.ValidationError) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.at`" as "at: expected `int`, got `str`"."""
    what, _, field = str(error).partition(" - at ")
    name = field.strip("`").removeprefix("$").removeprefix(".")
    what = what[:1].lower() + what[1:]
    return f"{name}: {what}" if name else what


def _located(error: str, text: bytes) -> str:
    """The place of a syntax error as a line instead of a byte."""
    what, _, at = error.partition(" (byte ")
    if not at:
        return error
    return f"{what}, line {text[: int(at.rstrip(')'))].count(10) + 1}"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
