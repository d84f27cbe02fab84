"""What the command line says, checked before anything runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.client import BenchError
from bench.serve.arguments import SETTINGS
from bench.simulation.policies import PRESETS, Variant, device_of, variant
from bench.simulation.workloads import WORKLOADS, settings_of
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.sim.device import DEVICES, Device
from tokenspeed.sim.lines import RecordingError
from tokenspeed.sim.recording import Recording, read_recording

DESCRIPTION = """Run the real scheduler and the real engine in virtual time, over several policies at once.

    python -m bench simulate
    python -m bench simulate --workload bursts --device cpu --policy ours --policy ours,target_step_ms=60
    python -m bench simulate --recording monday.jsonl --policy ours,max_running=64 --device h200-8b
    python -m bench simulate --front --plot docs/front.svg
"""
LIKE_RECORDED = "as recorded"
TARGETS = (20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 55.0, 60.0, 70.0, 80.0)
SHARES = (0.25, 0.1)
SEEDS = 3
TOLD = {  # where a setting means something else here than to the load generator
    "long_every": "between bursts",
    "requests": "of a burst",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where requests come from: a workload with its settings and seeds, or a recording."""

    name: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    recording: Recording | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """The settings of the default policy that the front is made of."""

    targets: tuple[float, ...]  # ms
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Options:
    """What to run: `variants`, or a `sweep`."""

    source: Source
    device: Device
    variants: tuple[Variant, ...]
    sweep: Sweep | None
    base: SchedulerOptions
    cold: bool
    plot: Path | None
    json: Path | None


def parse(arguments: Sequence[str]) -> Options:
    """Raises BenchError."""
    given = _parser().parse_args(arguments)
    for path in (given.plot, given.json):
        if path is not None and not path.absolute().parent.is_dir():
            raise BenchError(f"{path}: there is no folder {path.absolute().parent}")
    if given.plot is not None and given.plot.suffix != ".svg":
        raise BenchError(f"--plot {given.plot}: plots are SVG; name a file that ends with .svg")
    source, device, base = _given_workload(given) if given.recording is None else _given_recording(given)
    names = given.policy or tuple(PRESETS)
    variants = {name: variant(name, base) for name in names}
    if source.recording is not None:
        variants = {LIKE_RECORDED: Variant(LIKE_RECORDED, base, {})} | variants
    sweep = _sweep(given)
    return Options(source, device, tuple(variants.values()), sweep, base, given.cold, given.plot, given.json)


def _given_workload(given: argparse.Namespace) -> tuple[Source, Device, SchedulerOptions]:
    device = device_of(given.device or "h200-8b")
    name, seed = given.workload or "mixed", given.seed or 0
    settings = settings_of(name, device.name.partition(",")[0], _settings(given))
    seeds = tuple(range(seed, seed + (given.seeds or SEEDS)))
    return Source(name, settings, seeds), device, SchedulerOptions()


def _given_recording(given: argparse.Namespace) -> tuple[Source, Device, SchedulerOptions]:
    for option in ("workload", "seed", "seeds", *_settings(given)):
        if getattr(given, option) is not None:
            raise BenchError(
                f"--{option.replace('_', '-')} has no effect on --recording, which has its own arrivals"
            )
    try:
        recording = read_recording(given.recording)
    except RecordingError as error:
        raise BenchError(str(error)) from None
    source = Source(str(given.recording), {}, (0,), recording)
    if given.device is not None:
        return source, device_of(given.device), recording.options
    if not recording.steps:
        raise BenchError(f"{given.recording}: no step was recorded to learn the device from; give --device")
    return source, Device(LIKE_RECORDED, recording.fitted(), recording.capacity), recording.options


def _sweep(given: argparse.Namespace) -> Sweep | None:
    if given.front:
        if given.policy:
            raise BenchError("--front sweeps the default policy; give it without --policy")
        return Sweep(given.targets or TARGETS, given.shares or SHARES)
    for option in ("targets", "shares"):
        if getattr(given, option) is not None:
            raise BenchError(f"--{option} are what --front sweeps; give --front as well")
    return None


def _settings(given: argparse.Namespace) -> dict[str, Any]:
    used = [name for name in SETTINGS if name in vars(given) and getattr(given, name) is not None]
    return {name: getattr(given, name) for name in used}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench simulate",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--workload", choices=WORKLOADS, help="what arrives (default mixed)")
    add("--recording", type=Path, metavar="FILE", help="what arrived: a file of tokenspeed serve --record")
    add(
        "--device",
        metavar="NAME[,KEY=VALUE...]",
        help=f"{' or '.join(DEVICES)} (default {next(iter(DEVICES))}, or the one recorded), with changes, "
        "or all coefficients in seconds: base=,row=,token=,attended=,read=; "
        "and blocks=, block_size=, max_context=",
    )
    add(
        "--policy",
        action="append",
        metavar="NAME[,KEY=VALUE...]",
        help=f"{', '.join(PRESETS)} (default all), with options of [scheduler]; may be given several times",
    )
    add("--seeds", type=_numbers(int, 1, 1000), metavar="N", help=f"so many runs (default {SEEDS})")
    add("--seed", type=_numbers(int, 0, 10**9), metavar="N", help="the first of them (default 0)")
    add("--cold", action="store_true", help="the cost model begins knowing nothing of the device")
    add(
        "--front", action="store_true", help="sweep step targets and shares of the eldest instead of policies"
    )
    add("--targets", type=_several(_numbers(float, 1.0, 60_000.0)), metavar="MS,MS...", help="to sweep")
    add("--shares", type=_several(_numbers(float, 0.01, 0.9)), metavar="SHARE,...", help="to sweep")
    add("--plot", type=Path, metavar="FILE.svg", help="draw it as well")
    add("--json", type=Path, metavar="FILE", help="keep every figure of every seed")
    group = parser.add_argument_group("settings of a workload")
    for name, (kind, metavar, told) in SETTINGS.items():
        takers = ", ".join(workload for workload, recipe in WORKLOADS.items() if name in recipe.defaults)
        if takers:
            told = f"{TOLD.get(name, told)} ({takers})"
            group.add_argument("--" + name.replace("_", "-"), type=kind, metavar=metavar, help=told)
    return parser


def _numbers(kind: type[int] | type[float], least: float, most: float) -> Any:
    def number(given: str) -> float:
        value = kind(given)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{given} is not {least:g} to {most:g}")
        return value

    return number


def _several(kind: Any) -> Any:
    def numbers(given: str) -> tuple[float, ...]:
        return tuple(kind(part) for part in given.split(","))

    return numbers
