"""A built server on a socket: opens the port, waits for a signal, drains, stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn

from tokenspeed.api.options import ServerOptions
from tokenspeed.build import Server
from tokenspeed.errors import ConfigError

try:
    import uvloop
except ImportError:  # not to be had on every platform; asyncio's own loop serves as well, more slowly
    new_loop = asyncio.new_event_loop
else:
    new_loop = uvloop.new_event_loop

log = logging.getLogger(__name__)

SWITCH_SECONDS = 1e-4
COLLECTED_AT = (50_000, 20, 50)  # allocations, then generations
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Uvicorn(uvicorn.Server):
    """Leaves the signals to us: a drained server has to exit with 0, not to die of the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def settle_interpreter() -> None:
    """What a long-lived process with one busy loop wants of Python.

    A thread that wakes gets the interpreter within a tenth of a millisecond, not five: with 256 streams the
    one that waits for the device was measured to wait up to 15 ms otherwise. What was built to serve is never
    garbage, so the collector need not look at it, nor as often: it took an eighth of the time of a token.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AT)


def bind(options: ServerOptions) -> socket.socket:
    """Take the port without listening on it yet, so that a port in use is told before a model loads."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((options.host, options.port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {options.host} port {options.port}: {error.strerror or error}; "
            "choose another with --port"
        ) from error
    return bound


async def serve(
    server: Server, bound: socket.socket, options: ServerOptions, announce: Callable[[], None]
) -> int:
    """Serve until a signal comes or the engine fails; the exit status. `announce` runs once it answers.

    The first SIGTERM or SIGINT drains: requests that run may finish within `drain_seconds`, new ones get a
    503. A second one ends the rest at once.
    """
    settle_interpreter()
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in SIGNALS:
        loop.add_signal_handler(number, signals.put_nowait, number)
    http = _Uvicorn(
        uvicorn.Config(server.app, log_config=None, access_log=False, lifespan="off", server_header=False)
    )
    server.engine.start()
    serving = asyncio.create_task(http.serve(sockets=[bound]))
    failed = asyncio.create_task(server.engine.failed())
    signalled = asyncio.create_task(signals.get())
    while not (http.started or serving.done()):
        await asyncio.wait([serving], timeout=0.01)
    if http.started:
        announce()
    await asyncio.wait([signalled, failed, serving], return_when=asyncio.FIRST_COMPLETED)
    status = 0 if signalled.done() else 1
    if status == 0:
        await _drain(server, options.drain_seconds, signals)
    failed.cancel()
    signalled.cancel()
    await server.engine.stop()
    if server.recorder is not None:
        server.recorder.close()
    http.should_exit = True
    await serving
    return status


async def _drain(server: Server, seconds: float, signals: asyncio.Queue[int]) -> None:
    log.info("draining for at most %g s; signal again to stop at once", seconds)
    draining = asyncio.create_task(server.engine.drain(seconds))
    again = asyncio.create_task(signals.get())
    await asyncio.wait([draining, again], return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not draining.done():
        draining.cancel()
    elif not draining.result():
        log.warning("some requests did not finish within %g s and are ended", seconds)
