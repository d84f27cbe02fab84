"""Measures speculation with a draft model whose drafts hold as often as is asked, with any weights.

See `--help` and bench/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from bench.checkpoints import SHAPES, weightless
from bench.client import BenchError
from bench.forced.backend import Verdicts
from bench.forced.report import as_json, report
from bench.forced.run import ForcedPlayer, Options, decided, measure
from bench.gpu_serve.arguments import CACHE
from bench.gpu_serve.machine import machine
from bench.inside import console, exit_status, failed, say, started, write_json
from bench.speculation.run import Result
from bench.speculation.workloads import LEAST_TOKENS
from tokenspeed import config
from tokenspeed.config import Config
from tokenspeed.errors import TokenSpeedError

Number = TypeVar("Number", int, float)


def main() -> int:
    """The exit status: 1 if something failed."""
    given = _parser().parse_args()
    try:
        options = _options(given)
        settings = _settings(options)
    except (BenchError, TokenSpeedError) as error:
        return failed(error, 2)
    results: list[Result] = []
    told: list[str] = []
    status = exit_status(_measured(options, settings, results, told))
    if measured := [result for result in results if result.rounds]:
        about = machine() | {"device": told[0].removeprefix("device: "), "server": told}
        report(console(), measured, about)
        if given.out is not None:
            write_json(given.out, as_json(measured, about, options))
    return status


async def _measured(options: Options, settings: Config, results: list[Result], told: list[str]) -> None:
    def tell(line: str) -> None:
        told.append(line)
        say(line)

    verdicts = Verdicts(0.0)
    async with started(settings, say=tell, wrap=lambda backend: decided(backend, verdicts)) as server:
        player = ForcedPlayer(server, verdicts, options.chances, settings.speculation)
        await measure(player, options, results)


def _options(given: argparse.Namespace) -> Options:
    """Raises BenchError."""
    least = {"rounds": 1, "prompt": 1, "tokens": LEAST_TOKENS}  # fewer are over before they are counted
    for name, bound in least.items():
        if getattr(given, name) < bound:
            raise BenchError(f"--{name}: {getattr(given, name)} is less than {bound}")
    chances = _numbers("--chances", given.chances, float)
    if wrong := [chance for chance in chances if not 0 <= chance <= 1]:
        raise BenchError(f"--chances: {wrong[0]:g} is not between 0 and 1")
    streams = _numbers("--streams", given.streams, int)
    if min(streams) < 1:
        raise BenchError(f"--streams: {min(streams)} is less than 1")
    if given.out is not None and not given.out.parent.is_dir():
        raise BenchError(f"--out: there is no folder {given.out.parent}")
    settings = (*_models(given), "speculation.drafter=model", "cache.prefix=false", *given.set)
    return Options(chances, streams, given.prompt, given.tokens, given.rounds, settings)


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """Each of them once, in their order."""
    try:
        found = tuple(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError:
        raise BenchError(f"{option}: {text!r} is no list such as 1,2") from None
    return found


def _models(given: argparse.Namespace) -> tuple[str, ...]:
    """The settings that name the model and its draft; those that are built in run on the CPU."""
    shapes, folders = (given.shape, given.draft_shape), (given.model, given.draft)
    if any(shapes) and any(folders):
        raise BenchError("--shape and --model name the same thing; leave one of them out")
    if any(shapes):
        _both(shapes, "--shape", "--draft-shape")
        model, draft = (_described(shape, given.cache) for shape in shapes)
        return (f"model.path={model}", f"speculation.draft={draft}", "model.weights=random")
    if any(folders):
        _both(folders, "--model", "--draft")
        return (f"model.path={given.model}", f"speculation.draft={given.draft}")
    return ("device.name=cpu",)


def _described(shape: str, cache: Path) -> Path:
    if shape not in SHAPES:
        raise BenchError(f"there is no shape {shape!r}; there are {', '.join(sorted(SHAPES))}")
    return weightless(shape, cache)


def _both(given: Sequence[object], *options: str) -> None:
    if not all(given):
        raise BenchError(f"{options[0]} and {options[1]} belong together: give both")


def _settings(options: Options) -> Config:
    """Raises BenchError or ConfigError."""
    settings = config.load(None, options.settings)
    if settings.speculation.drafter != "model":
        raise BenchError(f"--set: drafts are those of a draft model here, not {settings.speculation.drafter}")
    if max(options.streams) > settings.scheduler.max_running:
        limit = settings.scheduler.max_running
        raise BenchError(f"--streams: {max(options.streams)} do not run at once; max_running is {limit}")
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench forced", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--chances", default="0,0.6,0.9", metavar="P,...", help="that a draft holds (default 0,0.6,0.9)")
    add("--streams", default="1", metavar="N,...", help="at once (default 1)")
    add("--tokens", type=int, default=512, metavar="N", help="of each answer (default 512)")
    add("--prompt", type=int, default=200, metavar="N", help="tokens of each prompt (default 200)")
    add("--rounds", type=int, default=3, metavar="N", help="that count, behind one that does not (default 3)")
    add("--shape", metavar="NAME", help="the model's shape, with random weights (default: the built-in one)")
    add("--draft-shape", metavar="NAME", help="that of its draft model; draft600m is for llama8b")
    add("--model", type=Path, metavar="FOLDER", help="a checkpoint instead of a shape")
    add("--draft", type=Path, metavar="FOLDER", help="that of its draft model")
    add("--cache", type=Path, default=CACHE, metavar="FOLDER", help="where descriptions of shapes are kept")
    add("--out", type=Path, metavar="FILE", help="gets everything that was measured, as JSON")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the server")
    return parser


if __name__ == "__main__":
    sys.exit(main())
