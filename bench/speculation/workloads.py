"""What is played: who asks what, how many at once and for how long. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from bench.speculation.prompts import beginnings, noise, sources
from tokenspeed.generation.request import GenerationRequest, Prompt, SamplingFields, TextPrompt, TokenPrompt

MANY = 64  # streams at once
PROMPTS = 64  # of a kind, that clients take one after the other
PHASE_SECONDS = 10.0
ALIKE, CHOICES = 8, 4  # prompts that are asked several times, and how often at once
# The clients of each phase of `mixed`, by kind.
PHASES: tuple[Mapping[str, int], ...] = (
    {"edit": 1},
    {"hostile": 8, "edit": 8},
    {"hostile": 48},
    {"open": 4},
    {"open": 12, "drawn": 12},
)
MIXED_TOKENS = 96
LEAST_TOKENS = 8  # of an answer, however small the scale


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests that are alike. Every draw has a seed, so that an answer is the same whenever it is asked."""

    prompts: Sequence[Prompt]
    temperature: float = 0.0
    ignore_eos: bool = False

    def request(self, name: str, number: int, tokens: int) -> GenerationRequest:
        return GenerationRequest(
            id=name,
            prompts=(self.prompts[number % len(self.prompts)],),
            sampling=SamplingFields(temperature=self.temperature, seed=number),
            max_tokens=tokens,
            ignore_eos=self.ignore_eos,
        )


@dataclass(frozen=True, slots=True)
class Client:
    """Sends the requests `first`, `first` + `stride`, ... of a kind, each when the one before is answered.

    `requests` None: without end.
    """

    name: str
    kind: Kind
    tokens: int  # of an answer at most
    first: int = 0
    stride: int = 1
    requests: int | None = 1

    def asks(self) -> Iterator[GenerationRequest]:
        """The ids of the requests name them in every mode and round."""
        for number in count() if self.requests is None else range(self.requests):
            at = self.first + number * self.stride
            yield self.kind.request(f"{self.name} {at}", at, self.tokens)


@dataclass(frozen=True, slots=True)
class Phase:
    """Clients that begin together. After `seconds` they leave; None: they stay until all is answered."""

    clients: tuple[Client, ...]
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """`goal`: how many times as fast as without speculation it should be. `timed`: a mixture that has its
    seconds; it is held against the better of both fixed ways, and prompts count."""

    key: str  # what --only calls it
    title: str
    goal: float | None
    phases: tuple[Phase, ...]
    timed: bool = False


def kinds(edit_prompts: Sequence[str]) -> dict[str, Kind]:
    opened = [TextPrompt(text) for text in beginnings(sources(), PROMPTS)]
    random_ids = [TokenPrompt(ids) for ids in noise(PROMPTS)]
    return {
        "edit": Kind([TextPrompt(text) for text in edit_prompts]),
        "open": Kind(opened),
        "drawn": Kind(opened, temperature=0.8),
        "again": Kind(opened[:ALIKE]),
        "cool": Kind(opened[:ALIKE], temperature=0.3),
        "hostile": Kind(random_ids, temperature=1.5, ignore_eos=True),
    }


# Of each workload: kind, goal, requests one after the other (or streams at once), tokens of an answer.
ALONE: Mapping[str, tuple[str, float | None, int, int]] = {
    "edit": ("edit", 2.5, 6, 200),
    "open": ("open", 1.4, 8, 160),
    "open-drawn": ("drawn", None, 8, 160),
    "hostile": ("hostile", 0.98, 8, 160),
    "again": ("again", None, 3 * ALIKE, 160),
}
TOGETHER = {
    "edit64": ("edit", 0.98, MANY, 128),
    "open64": ("open", 0.98, MANY, 128),
    "hostile64": ("hostile", 0.98, MANY, 128),
}
AT_ONCE, MIXED = "choices", "mixed"
NAMES = (*ALONE, AT_ONCE, *TOGETHER, MIXED)
EDITING = ("edit", "edit64", MIXED)  # those that need prompts which the model repeats


def workloads(names: Sequence[str], edit_prompts: Sequence[str], scale: float) -> list[Workload]:
    """Those named, in the order in which they are played. `scale` shrinks answers, streams and seconds."""
    by_name, made = kinds(edit_prompts), []
    for key, (kind, goal, requests, tokens) in ALONE.items():
        client = Client(key, by_name[kind], scaled(tokens, scale), requests=max(2, round(requests * scale)))
        title = f"{key}: 1 stream, {client.requests} × {client.tokens}"
        made.append(Workload(key, title, goal, (Phase((client,)),)))
    made.append(_choices(by_name["cool"], scaled(160, scale)))
    for key, (kind, goal, streams, tokens) in TOGETHER.items():
        many, long = max(4, round(streams * scale)), scaled(tokens, scale)
        clients = tuple(Client(key, by_name[kind], long, first=n) for n in range(many))
        made.append(Workload(key, f"{key}: {many} streams, {long}", goal, (Phase(clients),)))
    made.append(_mixed(by_name, scale))
    return [workload for workload in made if workload.key in names]


def scaled(tokens: int, scale: float) -> int:
    return max(LEAST_TOKENS, round(tokens * scale))


def _choices(kind: Kind, tokens: int) -> Workload:
    """One prompt after the other, each by several clients at once, with other draws."""
    phases = tuple(
        Phase(tuple(Client(AT_ONCE, kind, tokens, first=prompt + ALIKE * n) for n in range(CHOICES)))
        for prompt in range(ALIKE)
    )
    return Workload(AT_ONCE, f"{AT_ONCE}: {CHOICES} streams of a prompt, {ALIKE} × {tokens}", None, phases)


def _mixed(by_name: Mapping[str, Kind], scale: float) -> Workload:
    phases = []
    for number, shares in enumerate(PHASES):
        many = {kind: max(1, round(clients * scale)) for kind, clients in shares.items()}
        clients = tuple(
            Client(
                f"mixed, phase {number}, {kind}",
                by_name[kind],
                scaled(MIXED_TOKENS, scale),
                first=client,
                stride=of_kind,
                requests=None,
            )
            for kind, of_kind in many.items()
            for client in range(of_kind)
        )
        phases.append(Phase(clients, max(0.1, PHASE_SECONDS * scale)))
    seconds = sum(phase.seconds or 0.0 for phase in phases)
    title = f"mixed: {len(phases)} phases, {seconds:.0f} s"
    return Workload(MIXED, title, 1.0, tuple(phases), timed=True)
