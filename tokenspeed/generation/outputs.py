"""What a generation yields, in the words of no protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tokenspeed.generation.text import ScoredToken

Reason = Literal["stop", "length", "tool_calls"]


class Delta(NamedTuple):
    """More text of a choice, and the scores of its tokens if they were asked for; `held` of its tokens were
    drafts."""

    choice: int
    text: str
    scores: tuple[ScoredToken, ...] = ()
    held: int = 0


class ReasoningDelta(NamedTuple):
    """More of what a choice thinks before it answers."""

    choice: int
    text: str


class CallStart(NamedTuple):
    """A choice calls a tool: its call number `call`, whose `id` is unique to it. The arguments follow."""

    choice: int
    call: int
    id: str
    name: str


class CallDelta(NamedTuple):
    """More of the arguments of call number `call`; all of a call together are one JSON object."""

    choice: int
    call: int
    arguments: str


class Ended(NamedTuple):
    """The end of a choice; `stop` is the string or token id that it was found at, if not the model's own."""

    choice: int
    reason: Reason
    stop: str | int | None


Output = Delta | ReasoningDelta | CallStart | CallDelta | Ended


class Usage(NamedTuple):
    """Tokens so far, over all choices; every prompt counts once. `cached` of its tokens were remembered, and
    `reasoning` of those that were generated are of the thinking.

    `choices` are those generated for each choice. The first came `first` seconds after the request, the
    latest `last` seconds; 0 while there is none.
    """

    prompt: int
    completion: int
    cached: int
    reasoning: int = 0
    choices: tuple[int, ...] = ()
    first: float = 0.0
    last: float = 0.0


@dataclass(slots=True)
class WholeCall:
    """A tool call in one piece; `arguments` are JSON text."""

    id: str
    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self.pieces) or "{}"


@dataclass(slots=True)
class Whole:
    """A choice in one piece."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[WholeCall] = field(default_factory=list)
    scores: list[ScoredToken] = field(default_factory=list)
    reason: Reason = "stop"
    stop: str | int | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    def add(self, output: Output) -> None:
        """Take in the next output of this choice."""
        match output:
            case Delta():
                self.texts.append(output.text)
                self.scores += output.scores
            case ReasoningDelta():
                self.thoughts.append(output.text)
            case CallStart():
                self.calls.append(WholeCall(output.id, output.name))
            case CallDelta():
                self.calls[output.call].pieces.append(output.arguments)
            case Ended():
                self.reason, self.stop = output.reason, output.stop
