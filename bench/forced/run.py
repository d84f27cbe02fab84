"""Streams on a server whose drafts hold by chance, with every chance a mode of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from bench.forced.backend import SEED, Forced, Verdicts, decide
from bench.speculation.prompts import RANDOM_IDS
from bench.speculation.run import OFF, Played, Player, Result, like, off, play_rounds
from bench.speculation.workloads import Client, Kind, Phase, Workload
from tokenspeed.backend.cuda import CudaBackend
from tokenspeed.build import Server
from tokenspeed.core.plan import Backend
from tokenspeed.core.speculation import SpeculationOptions
from tokenspeed.generation.request import TokenPrompt

GOALS: Mapping[float, float] = {0.0: 0.97, 0.6: 1.6, 0.9: 2.3}  # of one stream, by chance: times off


@dataclass(frozen=True, slots=True)
class Options:
    chances: tuple[float, ...]
    streams: tuple[int, ...]  # at once, one number after the other
    prompt: int  # tokens
    tokens: int  # of each answer
    rounds: int
    settings: tuple[str, ...]  # of the server


def decided(backend: Backend, verdicts: Verdicts) -> Backend:
    """The backend of a server that is built, with coins for its drafts."""
    if not isinstance(backend, CudaBackend):
        return Forced(backend, verdicts)
    decide(backend.stepper.passes, verdicts)
    for graphs in backend.stepper.graphs:
        graphs.wait()  # capturing them beside the first rounds would slow these down
    return backend


class ForcedPlayer(Player):
    """A `Player` whose modes are chances, beside none. Answers are others in every play."""

    def __init__(
        self, server: Server, verdicts: Verdicts, chances: Sequence[float], options: SpeculationOptions
    ) -> None:
        """What pays at one chance does not at another, so each has a speculation that learns of it alone."""
        built = server.engine.scheduler.speculation
        super().__init__(server, {OFF: off()} | {mode_of(one): like(built, options) for one in chances})
        self._verdicts = verdicts
        self._chances = {mode_of(one): one for one in chances}

    async def play(self, phases: Sequence[Phase], mode: str) -> Played:
        self._verdicts.chance = self._chances.get(mode, 0.0)
        return await self.count(phases, mode)


def mode_of(chance: float) -> str:
    return f"p = {chance:g}"


def workload(streams: int, options: Options) -> Workload:
    """So many streams at once, each after token ids of its own that are drawn at random."""
    drawn = Random(SEED)
    prompts = [TokenPrompt(tuple(drawn.choices(RANDOM_IDS, k=options.prompt))) for _ in range(streams)]
    kind = Kind(prompts, ignore_eos=True)
    name = f"{streams} stream{'s' if streams > 1 else ''}"
    clients = tuple(Client(name, kind, options.tokens, first=number) for number in range(streams))
    return Workload(
        str(streams), f"{name}, {options.prompt} in, {options.tokens} out", None, (Phase(clients),)
    )


async def measure(player: ForcedPlayer, options: Options, results: list[Result]) -> None:
    """Play every number of streams so often; what is measured is in `results`, however it ends."""
    modes = (OFF, *(mode_of(chance) for chance in options.chances))
    for streams in options.streams:
        results.append(Result(workload(streams, options)))
        await play_rounds(player, results[-1], modes, options.rounds)
