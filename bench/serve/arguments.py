"""What the command line says, checked as far as that goes without asking an endpoint."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.client import BenchError
from bench.serve.light import parse_light
from bench.serve.page import plotly_js
from bench.serve.probe import base_url, check_body
from bench.serve.recording import Objective
from bench.serve.trace import read_trace
from bench.serve.workloads import RECIPES, Workload, make

USAGE = """
  python -m bench serve --url URL [--versus URL] --workload NAME [settings] [--json FILE] [--html FILE]
  python -m bench serve --url URL [--versus URL] --trace FILE [--json FILE] [--html FILE]
  python -m bench serve --from FILE [--html FILE]
"""
DESCRIPTION = """\
Load any OpenAI-compatible endpoint, or two in turn, and tell what their users would have felt.
What each workload and each figure is stands in bench/README.md."""
EPILOG = """exit status: 0 every request was answered; 1 an endpoint refused, failed or died (what was
measured is still reported); 2 wrong arguments; 130 ended by Ctrl-C (what was measured is reported)"""
LETTERS = ("A", "B")


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint as it was given."""

    name: str
    url: str
    model: str | None  # None: the first that it lists
    api_key: str | None


@dataclass(frozen=True, slots=True)
class Options:
    """One measurement."""

    targets: tuple[Target, ...]
    workload: Workload
    settings: str  # of the workload, told
    seed: int
    path: str | None  # of the endpoint, None: what suits the workload and is there
    repeats: int
    warm_ups: int
    timeout: float
    objective: Objective
    light: tuple[float, float | None] | None  # bytes of weights a token, bytes/s
    extra: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a report goes beside the terminal."""

    json: Path | None
    html: Path | None


def parse(arguments: Sequence[str]) -> tuple[Options | Path, Outputs]:
    """What to measure, or the recording to report again. Raises BenchError, or exits like argparse."""
    given = _parser().parse_args(arguments)
    outputs = _outputs(given.json, given.html)
    if given.recording is not None:
        if given.url is not None or given.workload is not None or given.trace is not None:
            raise BenchError("--from reports what was measured before; give it without --url and --workload")
        return given.recording, outputs
    if given.url is None:
        raise BenchError("give --url, the endpoint to measure, or --from, a file of --json")
    return _options(given), outputs


def _outputs(json: Path | None, html: Path | None) -> Outputs:
    """Refuse now what would fail after the measurement."""
    for path in (json, html):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            what = "is a folder" if path.is_dir() else f"there is no folder {path.absolute().parent}"
            raise BenchError(f"{path}: {what}")
    if html is not None:
        plotly_js()
    return Outputs(json, html)


def _options(given: argparse.Namespace) -> Options:
    workload, settings = _workload(given)
    light = parse_light(given.light) if given.light else None
    if light is not None and "1 stream" not in workload.kinds():
        raise BenchError("--light is about one stream: give --workload streams, with 1 among --streams")
    return Options(
        targets=_targets(given),
        workload=workload,
        settings=settings,
        seed=given.seed,
        path=None if given.endpoint == "auto" else f"/{given.endpoint.replace('chat', 'chat/completions')}",
        repeats=given.repeats,
        warm_ups=given.warm_up,
        timeout=given.timeout,
        objective=parse_objective(given.objective),
        light=light,
        extra=parse_object(given.extra_body),
    )


def _workload(given: argparse.Namespace) -> tuple[Workload, str]:
    used = {name: getattr(given, name) for name in SETTINGS if getattr(given, name) is not None}
    if given.trace is not None:
        if given.workload is not None or used:
            raise BenchError("--trace is a workload of its own: give it without --workload and its settings")
        return read_trace(given.trace), str(given.trace)
    if given.workload is None:
        raise BenchError(f"give --workload, one of {', '.join(RECIPES)}, or --trace")
    settings = {**RECIPES[given.workload].defaults, **used}
    told = ", ".join(f"{name.replace('_', ' ')} {_told(value)}" for name, value in settings.items())
    return make(given.workload, used, given.seed), told


def _told(value: Any) -> str:
    if isinstance(value, range):
        return f"{value.start}-{value[-1]}" if len(value) > 1 else str(value.start)
    return ", ".join(str(part) for part in value) if isinstance(value, tuple) else f"{value:g}"


def _targets(given: argparse.Namespace) -> tuple[Target, ...]:
    first = Target(given.name or "", base_url(given.url), given.model, given.api_key)
    if given.versus is None:
        if given.versus_model or given.versus_name or given.versus_api_key:
            raise BenchError("--versus-model, --versus-name and --versus-api-key need --versus")
        return (_named(first),)
    second = Target(
        given.versus_name or "",
        base_url(given.versus),
        given.versus_model or given.model,
        given.versus_api_key or given.api_key,
    )
    named = _named(first), _named(second)
    if named[0].name == named[1].name:
        return tuple(_named(one, f" ({letter})") for one, letter in zip(named, LETTERS, strict=True))
    return named


def _named(target: Target, behind: str = "") -> Target:
    name = target.name or urlsplit(target.url).netloc
    return Target(name + behind, target.url, target.model, target.api_key)


def parse_objective(given: str) -> Objective:
    """`ttft=0.5,gap=0.1`, seconds; what is not named keeps its default."""
    values: dict[str, float] = {}
    for part in given.split(","):
        name, _, value = part.partition("=")
        if name not in Objective.__struct_fields__:
            raise BenchError(f"--objective: no {name!r}; it has ttft and gap, like ttft=0.5,gap=0.1")
        try:
            values[name] = _seconds(value)
        except argparse.ArgumentTypeError as error:
            raise BenchError(f"--objective: {name}: {error}") from None
    return Objective(**values)


def parse_object(given: str) -> dict[str, Any]:
    """The fields of --extra-body."""
    try:
        raw = json.loads(given)
    except json.JSONDecodeError as error:
        raise BenchError(f"--extra-body: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BenchError('--extra-body: give an object like {"priority": 1}')
    check_body(raw, "--extra-body")
    return raw


def _whole(given: str, least: int = 1) -> int:
    try:
        value = int(given)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{given!r} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is less than {least}")
    return value


def _whole_or_none(given: str) -> int:
    return _whole(given, 0)


def _seconds(given: str) -> float:
    """A number above zero: seconds, or a rate."""
    try:
        value = float(given)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{given!r} is not a number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{given} is not more than 0")
    return value


def _counts(given: str) -> tuple[int, ...]:
    return tuple(_whole(part) for part in given.split(","))


def _range(given: str) -> range:
    low, dash, high = given.partition("-")
    bounds = _whole(low), _whole(high if dash else low)
    if bounds[0] > bounds[1]:
        raise argparse.ArgumentTypeError(f"{given}: the first is larger")
    return range(bounds[0], bounds[1] + 1)


SETTINGS = {  # of a workload: type, what it is called, help
    "rate": (_seconds, "PER_S", "short requests a second"),
    "duration": (_seconds, "SECONDS", "in which requests arrive"),
    "prompt": (_range, "TOKENS", "of a short prompt: N, or MIN-MAX drawn evenly"),
    "output": (_range, "TOKENS", "of an answer: N, or MIN-MAX drawn evenly"),
    "long_prompt": (_whole, "TOKENS", "of a long prompt"),
    "long_output": (_whole, "TOKENS", "of the answer to a long prompt"),
    "long_every": (_seconds, "SECONDS", "between bursts of long prompts"),
    "long_count": (_whole, "N", "long prompts of a burst"),
    "ladder": (_counts, "N,N,...", "tokens of the prompts, one after the other"),
    "streams": (_counts, "N,N,...", "requests at once, one phase after the other"),
    "requests": (_whole, "N", "in all (throughput), or of each rung (prefill)"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench serve",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--url", help="the endpoint; /v1 is added to an address without a path")
    add("--versus", metavar="URL", help="another one, measured in turn with the first")
    add("--workload", choices=RECIPES, metavar="NAME", help=", ".join(RECIPES))
    add("--trace", type=Path, metavar="FILE", help="your own requests as JSON lines, instead of --workload")
    add("--from", dest="recording", type=Path, metavar="FILE", help="report a file of --json again")
    add("--json", type=Path, metavar="FILE", help="keep everything that was measured")
    add("--html", type=Path, metavar="FILE", help="one self-contained page with plots")
    _add_run(parser)
    _add_endpoints(parser)
    group = parser.add_argument_group("settings of a workload, with the workloads that take them")
    for name, (kind, metavar, told) in SETTINGS.items():
        takers = ", ".join(workload for workload, recipe in RECIPES.items() if name in recipe.defaults)
        option = "--" + name.replace("_", "-")
        group.add_argument(option, type=kind, metavar=metavar, help=f"{told} ({takers})")
    group.add_argument("--seed", type=int, default=0, help="of arrivals and lengths (default 0)")
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--repeats", type=_whole, default=3, metavar="N", help="of the workload at each endpoint (default 3)")
    add(
        "--warm-up",
        type=_whole_or_none,
        default=1,
        metavar="N",
        help="requests of each kind before that (default 1)",
    )
    add("--timeout", type=_seconds, default=600.0, metavar="SECONDS", help="for one request (default 600)")
    add(
        "--objective",
        default="ttft=0.5,gap=0.1",
        metavar="SECONDS",
        help="of goodput (default ttft=0.5,gap=0.1)",
    )
    add(
        "--light",
        metavar="BYTES[:BANDWIDTH]",
        help="bytes of weights a token, like 1.19G, and bytes/s if not those of this machine: adds the part "
        "of the speed of light that one stream reaches (streams)",
    )


def _add_endpoints(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is sent where").add_argument
    add("--endpoint", choices=("auto", "chat", "completions"), default="auto", help="default: what is there")
    add("--extra-body", metavar="JSON", default="{}", help='fields for every request, like {"priority": 1}')
    add("--name", help="what the report calls the first endpoint")
    add("--model", help="default: the first that the endpoint lists")
    add("--api-key", metavar="KEY")
    add("--versus-name", metavar="NAME")
    add("--versus-model", metavar="MODEL", help="default: that of --model, or the first listed")
    add("--versus-api-key", metavar="KEY", help="default: that of --api-key")
