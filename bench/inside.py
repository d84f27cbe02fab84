"""What benches share that build a server and play on it in their own process, without HTTP."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.client import BenchError
from tokenspeed import serving
from tokenspeed.build import Server, build
from tokenspeed.build_device import Progress, Say
from tokenspeed.config import Config
from tokenspeed.core.plan import Backend
from tokenspeed.errors import TokenSpeedError

WIDTH = 140  # of tables in a pipe


def say(told: str) -> None:
    """What goes on, for whoever looks."""
    print(told, file=sys.stderr, flush=True)


def failed(error: Exception, status: int) -> int:
    say(f"error: {error}")
    return status


def exit_status(measuring: Coroutine[Any, Any, None]) -> int:
    """Of a bench that measures until it is done, fails, or is interrupted."""
    try:
        with asyncio.Runner(loop_factory=serving.new_loop) as runner:
            runner.run(measuring)
    except (BenchError, TokenSpeedError) as error:
        return failed(error, 1)
    except KeyboardInterrupt:
        say("ended early")
        return 130
    return 0


@asynccontextmanager
async def started(
    settings: Config, *, say: Say = say, wrap: Callable[[Backend], Backend] = lambda backend: backend
) -> AsyncIterator[Server]:
    """A server whose engine runs. Raises what `build` does."""
    server = build(settings, stage=_stage, say=say, wrap=wrap)
    server.engine.start()
    try:
        yield server
    finally:
        await server.engine.stop()


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def write_json(path: Path, made: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def _stage(name: str) -> Progress:
    return lambda done, total: None
