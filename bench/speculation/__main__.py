"""Measures what speculation is worth on the CPU, with the built-in model and its draft.

See `--help` and bench/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.client import BenchError
from bench.cpu_report import machine
from bench.inside import console, exit_status, failed, started, write_json
from bench.speculation.report import as_json, report
from bench.speculation.run import ADAPTIVE, ALWAYS, MODES, OFF, Options, Player, Result, built_modes, measure
from bench.speculation.workloads import NAMES
from tokenspeed import config
from tokenspeed.build_device import usable_cores
from tokenspeed.config import Config
from tokenspeed.errors import TokenSpeedError

DEFAULT = f"{ADAPTIVE},{ALWAYS}"  # modes, beside off


def main() -> int:
    """The exit status: 1 if an answer depended on speculation, or something failed."""
    given = _parser().parse_args()
    try:
        options, settings = _options(given), config.load(None, ["device.name=cpu", *given.set])
    except (BenchError, TokenSpeedError) as error:
        return failed(error, 2)
    results: list[Result] = []
    status = exit_status(_measured(options, settings, results))
    if measured := [result for result in results if result.rounds]:
        about = machine(settings.device.threads or usable_cores()) | {"settings": given.set}
        report(console(), measured, about, options.scale)
        if given.json is not None:
            write_json(given.json, as_json(measured, about, options.scale))
    return status


async def _measured(options: Options, settings: Config, results: list[Result]) -> None:
    async with started(settings) as server:
        await measure(Player(server, built_modes(server, settings.speculation)), options, results)


def _options(given: argparse.Namespace) -> Options:
    """Raises BenchError."""
    if given.rounds < 1:
        raise BenchError("--rounds: there must be one at least")
    if not 0 < given.scale <= 1:
        raise BenchError(f"--scale: {given.scale:g} is not above 0 and at most 1")
    names = _named("--only", given.only, NAMES)
    modes = _named("--modes", given.modes or DEFAULT, MODES)
    return Options(
        names, tuple(mode for mode in MODES if mode == OFF or mode in modes), given.rounds, given.scale
    )


def _named(option: str, given: str | None, known: Sequence[str]) -> tuple[str, ...]:
    if given is None:
        return tuple(known)
    names = tuple(part for part in given.split(",") if part)
    for name in names:
        if name not in known:
            raise BenchError(f"{option}: there is no {name!r}; there are {', '.join(known)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench speculation", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, metavar="N", help="that count, behind one that does not (default 5)")
    add("--only", metavar="NAME,...", help=f"these workloads (default: {','.join(NAMES)})")
    add("--modes", metavar="NAME,...", help=f"beside off (default: {DEFAULT}); others is one more")
    add(
        "--scale",
        type=float,
        default=1.0,
        help="shrink answers, streams and seconds; goals then mean nothing",
    )
    add("--json", type=Path, metavar="FILE", help="gets everything that was measured")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the server")
    return parser


if __name__ == "__main__":
    sys.exit(main())
