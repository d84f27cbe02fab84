"""The servers that are compared, ours among them: how each is started, held still, and ended.

Only one may compute at a time, so all others are stopped by a signal (SIGSTOP) and cost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bench.client import HOST, Answer, BenchError, answers, complete

START_TIMEOUT = 240.0  # seconds; a first start compiles
STOP_TIMEOUT = 15.0
STREAMS = 8
SLOT_TOKENS = 2304  # context of each of llama-server's slots: the longest prompt here and some


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server that can be started; `{port}` in its command is replaced."""

    name: str
    command: tuple[str, ...]
    ready_path: str
    environment: Mapping[str, str] = field(default_factory=dict)
    batches: bool = True  # serves several requests at once


def tokenspeed(folder: Path, cache: Path, settings: Sequence[str]) -> Contestant:
    """Ours. `cache` keeps the compiled kernels: empty, the start is a cold one."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = (sys.executable, "-m", "tokenspeed", "serve", str(folder), "--port", "{port}", *overrides)
    return Contestant("tokenspeed", command, "/ready", {"NUMBA_CACHE_DIR": str(cache)})


def llama_server(binary: Path, gguf: Path, threads: int) -> Contestant:
    """llama.cpp's own server, with a slot for every stream; nothing remembered between prompts."""
    command = (
        *(str(binary), "--model", str(gguf), "--host", HOST, "--port", "{port}"),
        *("--threads", str(threads), "--parallel", str(STREAMS), "--cont-batching"),
        *("--ctx-size", str(STREAMS * SLOT_TOKENS), "--no-cache-prompt", "--cache-ram", "0", "--offline"),
    )
    return Contestant("llama-server", command, "/health")


def llama_cpp_python(python: Path, gguf: Path, threads: int) -> Contestant:
    """llama-cpp-python's server, which answers one request at a time."""
    command = (
        *(str(python), "-m", "llama_cpp.server", "--model", str(gguf), "--host", HOST, "--port", "{port}"),
        *("--n_threads", str(threads), "--n_threads_batch", str(threads), "--n_ctx", str(SLOT_TOKENS)),
    )
    return Contestant("llama-cpp-python", command, "/v1/models", batches=False)


class Running:
    """A server in a process group of its own, up to and including its first answer."""

    def __init__(self, contestant: Contestant, log: IO[bytes]) -> None:
        self.contestant = contestant
        self.port = free_port()
        self._log = log
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [part.replace("{port}", str(self.port)) for part in contestant.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **contestant.environment},
            start_new_session=True,
        )
        try:
            asyncio.run(self._ready(began))
            self.start_seconds = time.perf_counter() - began
        except BaseException:
            self.close()
            raise

    async def _ready(self, began: float) -> None:
        while not await answers(self.port, self.contestant.ready_path):
            if self._process.poll() is not None:
                raise BenchError(f"{self.contestant.name} ended at start:\n{self.log_tail()}")
            if time.perf_counter() - began > START_TIMEOUT:
                raise BenchError(f"{self.contestant.name} is not ready:\n{self.log_tail()}")
            await asyncio.sleep(0.01)
        await complete(self.port, " abc abd abe abf", 1)

    @property
    def group(self) -> int:
        """The process group that it and all its children are in."""
        return self._process.pid

    def pause(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run inside; it is stopped again behind, and all others are meanwhile."""
        os.killpg(self._process.pid, signal.SIGCONT)
        try:
            asyncio.run(self._warm())
            yield
        finally:
            self.pause()

    async def _warm(self) -> Answer:
        return await complete(self.port, " abc abd abe abf abg abh abi abj", 8)

    def peak_megabytes(self) -> float:
        """The most memory that its processes have held, in MB."""
        total = 0
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                if os.getpgid(int(folder.name)) == self._process.pid:
                    lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                    total += int(lines["VmHWM"].split()[0])
        return total * 1024 / 1e6

    def log_tail(self) -> str:
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-15:])

    def close(self) -> None:
        """End it and whatever it started, gently at first."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGCONT)
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def started(contestant: Contestant) -> Iterator[Running]:
    """A server that has answered once and is paused; ended behind, whatever happens."""
    with tempfile.TemporaryFile() as log:
        running = Running(contestant, log)
        try:
            running.pause()
            yield running
        finally:
            running.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def gguf_of(folder: Path, python: Path) -> Path:
    """The checkpoint as GGUF beside its folder, written by the peer's Python unless it is there."""
    path = folder.with_suffix(".gguf")
    if not path.exists():
        unfinished = path.with_suffix(".unfinished")
        run_python(python, ["-m", "bench.gguf_writer", str(folder), str(unfinished)])
        unfinished.rename(path)
    return path


def has_server(python: Path) -> bool:
    """Whether llama-cpp-python with its server is in that environment."""
    try:
        run_python(python, ["-c", "import llama_cpp.server.app"])
    except BenchError:
        return False
    return True


def run_python(python: Path, arguments: list[str]) -> str:
    done = subprocess.run([str(python), *arguments], capture_output=True, timeout=300, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{python.name} {' '.join(arguments[:2])} failed:\n{done.stderr[-1500:]}")
    return done.stdout
