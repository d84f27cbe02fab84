"""Loads any OpenAI-compatible endpoint, or two in turn, and tells what their users would have felt.

See `--help` and bench/README.md.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path

from rich.console import Console

from bench.client import BenchError
from bench.serve.arguments import Options, Outputs, parse
from bench.serve.measure import INTERRUPTED, measure
from bench.serve.page import write_page
from bench.serve.recording import Recording, load, save
from bench.serve.report import print_report
from bench.serve.summary import Summary

try:
    import uvloop
except ImportError:  # not to be had on every platform
    new_loop = asyncio.new_event_loop
else:
    new_loop = uvloop.new_event_loop


def main() -> int:
    """The exit status."""
    try:
        wanted, outputs = parse(sys.argv[1:])
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        recording = load(wanted) if isinstance(wanted, Path) else _run(_measure(wanted))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ended before anything was measured", file=sys.stderr)
        return 130
    return _tell(recording, outputs)


async def _measure(options: Options) -> Recording:
    return await measure(options, Console(stderr=True))


def _run(work: Coroutine[None, None, Recording]) -> Recording:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(work)


def _tell(recording: Recording, outputs: Outputs) -> int:
    """Keep what was measured, then show it."""
    summary = Summary(recording)
    unkept = None
    try:
        if outputs.json is not None:
            save(recording, outputs.json)
        if outputs.html is not None:
            write_page(summary, outputs.html)
    except OSError as error:
        unkept = f"error: {error.filename}: {error.strerror}"
    print_report(summary, _console())
    if unkept:
        print(unkept, file=sys.stderr)
        return 1
    if recording.ended_early == INTERRUPTED:
        return 130
    return 1 if recording.ended_early or summary.errors() else 0


def _console() -> Console:
    """As wide as the terminal; a pipe is as wide as the table needs."""
    return Console() if sys.stdout.isatty() else Console(width=140)


if __name__ == "__main__":
    sys.exit(main())
