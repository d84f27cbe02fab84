"""Measures the server on a GPU through HTTP, beside its goals and vLLM 0.24's figures.

See `--help` and bench/README.md.
"""

from __future__ import annotations

import signal
import sys
import time
from typing import NoReturn

from rich.console import Console

from bench.client import BenchError
from bench.gpu_serve.arguments import parse
from bench.gpu_serve.run import INTERRUPTED, Measurement

WIDTH = 140  # of the table in a pipe


def main() -> int:
    """The exit status: 1 if anything failed, which is told below the tables."""
    try:
        options = parse(sys.argv[1:])
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _end)
    end = time.monotonic() + options.budget
    measured = []
    for number, subject in enumerate(options.subjects):
        now = time.monotonic()
        share = (end - now) / (len(options.subjects) - number)  # what one does not use is the others'
        measured.append(Measurement(options, subject, now + share))
        measured[-1].run()
        if measured[-1].error == INTERRUPTED:
            break
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    fine = [one.report(console) for one in measured]
    if measured[-1].error == INTERRUPTED:
        return 130
    return 0 if all(fine) else 1


def _end(*_: object) -> NoReturn:
    """End as by Ctrl-C, so that the server is ended and what was measured is told."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
