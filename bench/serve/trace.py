"""A user's own requests: JSON, one object a line.

{"at": 0.5, "prompt_tokens": 200, "max_tokens": 64, "kind": "short", "body": {"priority": 1}}
{"at": 0.7, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from bench.client import BenchError
from bench.serve.probe import check_body
from bench.serve.recording import EVERYTHING, TRACE, told
from bench.serve.workloads import Arrival, Workload


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """What a line may hold: one of `prompt`, `messages` and `prompt_tokens`."""

    at: float  # seconds after the start
    max_tokens: int
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt_tokens: int | None = None
    kind: str = "all"
    priority: int | None = None
    body: dict[str, Any] = {}  # more fields of the request


FIELDS = tuple(Line.__struct_fields__)
TEXTS = ("prompt", "messages", "prompt_tokens")


def read_trace(path: Path) -> Workload:
    """The file's requests, sorted by time. Raises BenchError naming the line and the field."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BenchError(f"--trace {path}: {error.strerror}") from None
    arrivals = [
        _arrival(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not arrivals:
        raise BenchError(f"--trace {path}: no requests in it")
    if len({arrival.messages is not None for arrival in arrivals if not arrival.prompt_tokens}) > 1:
        raise BenchError(f"--trace {path}: some lines have messages, some a prompt; they need one endpoint")
    return Workload(TRACE, tuple(sorted(arrivals, key=lambda arrival: arrival.at)))


def _arrival(text: bytes, where: str) -> Arrival:
    line = _parsed(text, where)
    given = [name for name in TEXTS if getattr(line, name) is not None]
    if len(given) != 1:
        raise BenchError(
            f"{where}: give one of prompt, messages, prompt_tokens; this has {', '.join(given) or 'none'}"
        )
    for name, value, least in (
        ("at", line.at, 0),
        ("max_tokens", line.max_tokens, 1),
        ("prompt_tokens", line.prompt_tokens, 1),
    ):
        if value is not None and not least <= value < float("inf"):
            raise BenchError(f"{where}: {name}: {value:g} is less than {least}")
    if line.messages is not None and not line.messages:
        raise BenchError(f"{where}: messages: it is empty")
    if line.kind == EVERYTHING:
        raise BenchError(f"{where}: kind: {EVERYTHING!r} is what the report calls all kinds")
    check_body(line.body, f"{where}: body")
    extra = line.body if line.priority is None else {**line.body, "priority": line.priority}
    return Arrival(
        at=line.at,
        kind=line.kind,
        max_tokens=line.max_tokens,
        prompt_tokens=line.prompt_tokens or 0,
        prompt=line.prompt,
        messages=None if line.messages is None else tuple(line.messages),
        body=extra,
    )


def _parsed(text: bytes, where: str) -> Line:
    try:
        raw = msgspec.json.decode(text)
        if isinstance(raw, dict):
            _refuse_unknown(raw, where)
        return msgspec.convert(raw, Line)
    except msgspec.ValidationError as error:
        raise BenchError(f"{where}: {told(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{where}: not JSON: {error}") from None


def _refuse_unknown(raw: dict[str, Any], where: str) -> None:
    for name in raw:
        if name not in FIELDS:
            near = get_close_matches(name, FIELDS, n=1)
            mend = f"did you mean {near[0]!r}?" if near else "fields of the request go into 'body'"
            raise BenchError(f"{where}: no field {name!r}; {mend}")
