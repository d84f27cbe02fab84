"""Plays workloads on one server, round by round in every mode, and sees that the answers are the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from bench.client import BenchError
from bench.inside import say
from bench.speculation.meter import Amount, Meter
from bench.speculation.prompts import edits, repeated, sources
from bench.speculation.workloads import EDITING, Client, Kind, Phase, Workload, scaled, workloads
from tokenspeed.build import Server
from tokenspeed.core.speculation import Speculation, SpeculationOptions
from tokenspeed.generation.outputs import Delta
from tokenspeed.generation.request import GenerationRequest, TextPrompt, TokenPrompt

OFF, ADAPTIVE, OTHERS, ALWAYS = MODES = ("off", "adaptive", "others", "always")
CANDIDATES, CHOSEN = 64, 16  # files, and those of them that the model repeats best
EDIT_TOKENS = 200


@dataclass(frozen=True, slots=True)
class Options:
    names: tuple[str, ...]  # of workloads
    modes: tuple[str, ...]
    rounds: int
    scale: float


@dataclass(frozen=True, slots=True)
class Played:
    """A workload once, in one mode."""

    decode: Amount
    whole: Amount
    drafted: Counter[str]  # by drafter
    accepted: Counter[str]


@dataclass(slots=True)
class Result:
    """A workload in all rounds that count; `repeated` is the part of its answers that their prompts hold."""

    workload: Workload
    rounds: list[dict[str, Played]] = field(default_factory=list)  # by mode
    repeated: float | None = None


class Answer(NamedTuple):
    request: GenerationRequest
    text: str
    ended: bool  # by itself: otherwise there would be more of it

    @property
    def repeated(self) -> float | None:
        """None where the prompt is no text."""
        prompt = self.request.prompts[0]
        return repeated(prompt.text, self.text) if isinstance(prompt, TextPrompt) else None


class Answers:
    """The longest that was seen of each answer, by the request's id. In all modes they must be the same."""

    def __init__(self) -> None:
        self.known: dict[str, Answer] = {}
        self._differing: list[str] = []

    def take(self, answer: Answer) -> None:
        name = answer.request.id
        before = self.known.setdefault(name, answer)
        short, long = sorted((before, answer), key=lambda one: (len(one.text), one.ended))
        if not long.text.startswith(short.text) or (short.ended and short.text != long.text):
            self._differing.append(name)
        self.known[name] = long

    def check(self, mode: str) -> None:
        """Raise BenchError if any differed."""
        if self._differing:
            names = ", ".join(map(repr, self._differing[:3]))
            raise BenchError(f"{len(self._differing)} answers are others in mode {mode!r}: those to {names}")


class Player:
    """Plays on a server that runs. The speculation of each mode learns on from play to play."""

    def __init__(self, server: Server, modes: Mapping[str, Speculation]) -> None:
        self.answers = Answers()
        self._server = server
        self._modes = modes
        self._plays = 0

    async def play(self, phases: Sequence[Phase], mode: str) -> Played:
        """Raises BenchError if an answer is another than it was before."""
        played = await self.count(phases, mode)
        self.answers.check(mode)
        return played

    async def count(self, phases: Sequence[Phase], mode: str) -> Played:
        """The same, whatever is answered."""
        await self._settle()
        self._plays += 1
        scheduler = self._server.engine.scheduler
        scheduler.speculation = self._modes[mode]
        counts = scheduler.speculation.counts
        drafted, accepted = counts.drafted.copy(), counts.accepted.copy()
        meter = Meter(lambda: scheduler.costs.steps)
        for phase in phases:
            await self._phase(phase, meter)
        return Played(meter.decode, meter.whole, counts.drafted - drafted, counts.accepted - accepted)

    async def _settle(self) -> None:
        """No step is in flight any more once a request is answered that comes behind all others."""
        last = GenerationRequest("settle", (TokenPrompt((1,)),), max_tokens=1, speculation=False)
        async for _ in await self._server.generator.start(last):
            pass

    async def _phase(self, phase: Phase, meter: Meter) -> None:
        try:
            async with asyncio.timeout(phase.seconds):
                await asyncio.gather(*(self._client(client, meter) for client in phase.clients))
        except TimeoutError:
            if phase.seconds is None:
                raise

    async def _client(self, client: Client, meter: Meter) -> None:
        for request in client.asks():
            await self._ask(request, meter)

    async def _ask(self, request: GenerationRequest, meter: Meter) -> None:
        # Every play is that of another client: who had asked the same before would know all the answers.
        asked = replace(request, account=f"play {self._plays}")
        generation = await self._server.generator.start(asked)
        meter.asked()
        text, tokens, ended = "", 0, False
        try:
            async for outputs in generation:
                text += "".join(output.text for output in outputs if isinstance(output, Delta))
                now = generation.usage.completion
                meter.came(now - tokens, first=tokens == 0)
                tokens = now
            ended = True
        finally:
            generation.close()
            meter.ended(begun=tokens > 0)
            self.answers.take(Answer(request, text, ended))


def built_modes(server: Server, options: SpeculationOptions) -> dict[str, Speculation]:
    """What the server was built with, with these `options`; that with other answers; and both fixed ways."""
    built = server.engine.scheduler.speculation
    return {
        OFF: off(),
        ADAPTIVE: built,
        OTHERS: like(built, replace(options, other_answers=True)),
        ALWAYS: like(built, replace(options, control="always")),
    }


def like(built: Speculation, options: SpeculationOptions) -> Speculation:
    """One with these options that has learned nothing yet, for the same backend."""
    return Speculation(options, guesses=built.guesses)


def off() -> Speculation:
    """No drafts at all."""
    return Speculation(SpeculationOptions(drafter="off"))


async def measure(player: Player, options: Options, results: list[Result]) -> None:
    """Play every workload so often; what is measured is in `results`, however it ends."""
    editing = any(name in EDITING for name in options.names)
    prompts = await _repeatable(player, options.scale) if editing else []
    for workload in workloads(options.names, prompts, options.scale):
        results.append(Result(workload))
        await play_rounds(player, results[-1], options.modes, options.rounds)
        results[-1].repeated = _repeated(player.answers, workload)


async def play_rounds(player: Player, result: Result, modes: tuple[str, ...], rounds: int) -> None:
    """So many that count, behind one that does not; each plays all modes once, in turning order."""
    workload = result.workload
    for number in range(rounds + 1):
        shift = number % len(modes)
        order = modes[shift:] + modes[:shift]
        played = {mode: await player.play(workload.phases, mode) for mode in order}
        told = f"round {number} of {rounds}" if number else "warm-up"
        say(f"{workload.title}: {told}: {rates(workload, played)}")
        if number:
            result.rounds.append({mode: played[mode] for mode in modes})


async def _repeatable(player: Player, scale: float) -> list[str]:
    """The prompts that the model repeats most of, that first, as found without speculation."""
    candidates = edits(sources(), max(4, round(CANDIDATES * scale)))
    say(f"choosing files: what the model repeats of {len(candidates)}")
    kind = Kind([TextPrompt(prompt) for prompt in candidates])
    tokens = scaled(EDIT_TOKENS, scale)
    clients = tuple(Client("choosing", kind, tokens, first=n) for n in range(len(candidates)))
    await player.play((Phase(clients),), OFF)
    shares = [player.answers.known[f"choosing {n}"].repeated or 0.0 for n in range(len(candidates))]
    ranked = sorted(range(len(candidates)), key=lambda n: -shares[n])
    return [candidates[n] for n in ranked[:CHOSEN]]


def _repeated(answers: Answers, workload: Workload) -> float | None:
    names = tuple(f"{client.name} " for phase in workload.phases for client in phase.clients)
    found = [answer.repeated for name, answer in answers.known.items() if name.startswith(names)]
    shares = [share for share in found if share is not None]
    return sum(shares) / len(shares) if shares else None


def rates(workload: Workload, played: dict[str, Played]) -> str:
    """Tokens a second of each mode, in one line."""
    return ", ".join(f"{mode} {rate(workload, one):.0f} tok/s" for mode, one in sorted(played.items()))


def rate(workload: Workload, played: Played) -> float:
    """Tokens a second that the workload is judged by."""
    return (played.whole if workload.timed else played.decode).rate
