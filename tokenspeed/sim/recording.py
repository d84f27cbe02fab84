"""Reads what `tokenspeed serve --record` wrote, and makes of it what the simulator can run again.

A recording holds no tokens. Each choice gets tokens of its own here, except where its prompt is said to begin
like an earlier request: there it gets that one's. So prompts share exactly what they shared, to the block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenspeed.core.accounts import Account
from tokenspeed.core.costs import TYPICAL, CostModel, Costs, Work, attended_by
from tokenspeed.core.plan import Capacity, Draw
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import FinishReason, Request, Sampling
from tokenspeed.engine.recorder import REFUSED, Came, Ended, Ran
from tokenspeed.sim.backend import token
from tokenspeed.sim.lines import MOST_CHOICES, Lines, RecordingError
from tokenspeed.sim.simulate import Job, Leave, Traffic, own_token

STOP = -1  # the token that ends a choice which ended by itself
KINDS = ((512, "≤ 512"), (4096, "513–4096"))  # prompt tokens at most, and what such requests are called
LARGEST = "> 4096"


class Felt(NamedTuple):
    """What a choice felt when it was recorded. Times in seconds."""

    kind: str
    prompt: int  # tokens
    arrival: float
    predicted: float  # from its arrival to its first token
    first: float | None  # the same, as it came
    ended: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Recording:
    """A server that was recorded, and what came to it."""

    capacity: Capacity
    options: SchedulerOptions
    traffic: Traffic
    felt: list[Felt]
    steps: list[Ran]
    truncated: bool  # the last line was cut off

    def fitted(self) -> Costs:
        """What steps cost on the recorded device, learned from them as the server learned it."""
        model = CostModel(TYPICAL)
        for step in self.steps:
            model.observe(work_of(step), step.seconds)
        return model.costs


def work_of(step: Ran) -> Work:
    """What a recorded step computed."""
    return Work(
        rows=step.decodes + len(step.chunks),
        tokens=sum(count for *_, count in step.chunks),
        attended=sum(attended_by(start, count) for _, _, start, count in step.chunks),
        read=step.read,
    )


def kind_of(prompt_tokens: int) -> str:
    """Recorded requests are told apart by the length of their prompts."""
    return next((name for most, name in KINDS if prompt_tokens <= most), LARGEST)


def read_recording(path: Path) -> Recording:
    """Read a whole recording. Raises `RecordingError` naming the line and the field that is wrong.

    A last line that was cut off is what a killed server leaves: it is dropped, and `truncated` says so.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror}") from None
    first, *rest = content.split(b"\n")
    lines = Lines(path)
    header = lines.read_header(first)
    for number, text in enumerate(rest[:-1], 2):
        lines.read(text, number)
    if not lines.came:
        raise RecordingError(f"{path}: no request was recorded")
    accounts = {str(number): Account(*values) for number, values in enumerate(header.accounts, 1)}
    return Recording(
        Capacity(**header.capacity),
        SchedulerOptions(**header.scheduler),
        Traffic(_jobs(lines), _says(lines), accounts, header.prefix_cache),
        [_felt(lines.came[end.request], end) for end in lines.ended.values() if end.reason != REFUSED],
        lines.ran,
        truncated=bool(rest and rest[-1]),
    )


def _felt(came: Came, end: Ended) -> Felt:
    return Felt(kind_of(came.prompt), came.prompt, came.at, came.predicted, end.first, end.at, end.tokens)


def _says(lines: Lines) -> Callable[[Draw], int]:
    """The token of a draw: a choice that ended by itself does so at the same length again."""
    lasts = {
        end.request * MOST_CHOICES + end.choice: lines.came[end.request].prompt + end.tokens - 1
        for end in lines.ended.values()
        if end.reason == FinishReason.STOP
    }

    def says(draw: Draw) -> int:
        return STOP if lasts.get(draw.seed) == draw.position else own_token(draw)

    return says


def _jobs(lines: Lines) -> list[Job]:
    """The requests, and the choices among theirs that somebody left."""
    over = max((end.at for end in lines.ended.values()), default=0.0)
    over = max(over, max(came.at for came in lines.came))
    prompts: list[tuple[int, ...]] = []
    jobs: list[Job] = []
    for number, came in enumerate(lines.came):
        prompts.append(_prompt(number, came, prompts))
        leaves: dict[int, Leave] = {}
        for choice in range(came.n):
            end = lines.ended.get((number, choice))
            if end is None:  # the recording ended first
                leaves[choice] = Leave(0, over)
            elif end.reason not in (FinishReason.STOP, FinishReason.LENGTH, REFUSED):
                leaves[choice] = Leave(end.tokens, 0.0 if end.tokens else end.at)
        jobs.append(Job(came.at, kind_of(came.prompt), _request(number, came, prompts[-1]), leaves))
    return jobs


def _prompt(number: int, came: Came, prompts: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Its first tokens are those of the prompt it is like, and then of the answer to that."""
    begin: tuple[int, ...] = ()
    if came.shared:
        model = prompts[came.like]
        seed = came.like * MOST_CHOICES + came.choice
        answer = tuple([token(seed, position) for position in range(len(model), came.shared)])
        begin = (*model[: came.shared], *answer)
    seed = number * MOST_CHOICES
    return (*begin, *[token(seed, position) for position in range(came.shared, came.prompt)])


def _request(number: int, came: Came, prompt: tuple[int, ...]) -> Request:
    # Of what a client asked for, this is what decides when its rows can be planned, and which.
    penalty = 1.0 if came.penalised else 0.0
    return Request(
        str(number),
        prompt,
        came.max_tokens,
        Sampling(seed=number * MOST_CHOICES, presence_penalty=penalty),
        n=came.n,
        stop_ids=frozenset({STOP}),
        priority=came.priority,
        account=str(came.account) if came.account else "",
        arrival=came.at,
        deadline=None if came.deadline is None else came.at + came.deadline,
        prompt_logprobs=0 if came.scored else None,
    )
