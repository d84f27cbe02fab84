"""What the command line says, checked before anything starts."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoints import SHAPES
from bench.client import BenchError
from bench.gpu_serve.plans import NAMES, START
from bench.serve.probe import base_url

CACHE = Path(tempfile.gettempdir()) / "tokenspeed-bench"
OTHER_VOCAB = 10_000  # ids that every model is taken to have of which nothing is known
DESCRIPTION = """\
Measure the server on a GPU through HTTP: start it on random weights in the shape of a model, play fixed
workloads from several client processes, and tell the figures beside the goals and vLLM 0.24's.
Workloads: one, prompts, s8, s64, s256, uniform, mixed, start (bench/README.md tells what each is)."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One server to measure. `shape` names the goals; None has none."""

    name: str  # of its file
    shape: str | None
    url: str | None  # of one that runs already
    folder: Path | None  # of a checkpoint with weights, instead of a shape's
    vocab: int


@dataclass(frozen=True, slots=True)
class Options:
    subjects: tuple[Subject, ...]
    names: tuple[str, ...]  # of workloads
    out: Path
    cache: Path
    settings: tuple[str, ...]
    flags: tuple[str, ...]
    budget: float
    patience: float
    scale: float
    clients: int
    api_key: str | None


def parse(arguments: Sequence[str]) -> Options:
    """Raises BenchError, or exits like argparse."""
    given = _parser().parse_args(arguments)
    without_start = tuple(name for name in NAMES if name != START)
    everything = NAMES if given.url is None else without_start
    names = everything if given.only is None else tuple(part for part in given.only.split(",") if part)
    for name in names:
        if name not in NAMES:
            raise BenchError(f"--only: there is no workload {name!r}; there are {', '.join(NAMES)}")
    if not 0 < given.scale <= 1:
        raise BenchError(f"--scale: {given.scale:g} is not above 0 and at most 1")
    if given.clients < 1:
        raise BenchError("--clients: there must be one at least")
    if given.url is not None and (given.set or given.flag or given.folder):
        raise BenchError("--url measures a server that runs: --set, --flag and --folder have no effect on it")
    if given.url is not None and START in names:
        raise BenchError("--url measures a server that runs: the workload 'start' needs one of our own")
    return Options(
        subjects=_subjects(given),
        names=names,
        out=_folder(given.out),
        cache=given.cache,
        settings=tuple(given.set),
        flags=tuple(given.flag),
        budget=given.budget,
        patience=given.start_timeout,
        scale=given.scale,
        clients=given.clients,
        api_key=given.api_key,
    )


def _subjects(given: argparse.Namespace) -> tuple[Subject, ...]:
    shapes = [part for part in (given.shape or "").split(",") if part]
    for shape in shapes:
        if shape not in SHAPES:
            raise BenchError(f"--shape: there is no shape {shape!r}; there are {', '.join(sorted(SHAPES))}")
    url = None if given.url is None else base_url(given.url)
    if url is not None or given.folder is not None:
        if len(shapes) > 1:
            raise BenchError("--url and --folder are one model: name one --shape at most, that of its goals")
        shape = shapes[0] if shapes else None
        vocab = given.vocab or (SHAPES[shape].vocab if shape else _vocab_of(given.folder))
        name = given.name or shape or (given.folder.resolve().name if given.folder else "server")
        return (Subject(name, shape, url, given.folder, vocab),)
    prefix = f"{given.name}-" if given.name else ""
    return tuple(
        Subject(prefix + shape, shape, None, None, given.vocab or SHAPES[shape].vocab)
        for shape in shapes or ["llama8b", "qwen600m"]
    )


def _vocab_of(folder: Path | None) -> int:
    if folder is None:
        return OTHER_VOCAB
    path = folder / "config.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BenchError(f"{path} tells no vocab_size; give --folder a checkpoint's folder") from None


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"--out: {out}: {error.strerror}; name a folder that can be written") from None
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench gpu_serve",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--shape", metavar="NAME,...", help="default: llama8b,qwen600m; with --url or --folder: whose goals")
    add("--out", type=Path, required=True, metavar="FOLDER", help="gets one JSON file a shape")
    add("--only", metavar="NAME,...", help="these workloads (default: all)")
    add("--budget", type=float, default=540.0, metavar="SECONDS", help="for everything (default 540)")
    add("--url", help="measure a server that runs already, of any make")
    add("--name", help="of the file; before the shape's name where a shape is served")
    add("--api-key", metavar="KEY")
    add("--folder", type=Path, help="serve this checkpoint with its weights instead of a shape")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the server")
    add("--flag", action="append", default=[], metavar="OPTION", help="more for its command line, --flag=--x")
    add("--clients", type=int, default=8, metavar="N", help="client processes (default 8)")
    add("--scale", type=float, default=1.0, help="shrink all workloads; goals then mean nothing")
    add("--vocab", type=int, metavar="N", help="prompts are ids below this (default: the model's)")
    add("--cache", type=Path, default=CACHE, metavar="FOLDER", help="where checkpoints are kept")
    add("--start-timeout", type=float, default=240.0, metavar="SECONDS", help="of a server (default 240)")
    return parser
