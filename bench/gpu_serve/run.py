"""One subject from its start to its report."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console

from bench.checkpoints import checkpoint, weightless
from bench.client import BenchError
from bench.gpu_serve.arguments import Options, Subject
from bench.gpu_serve.clients import Clients
from bench.gpu_serve.machine import machine
from bench.gpu_serve.measure import LEAST_SECONDS, Played, Player
from bench.gpu_serve.plans import START, plans
from bench.gpu_serve.report import NO_TARGET, Row, notes, row_json, rows_of, show, start_rows, table
from bench.gpu_serve.server import Server, first_token, scrape, serving, started
from bench.gpu_serve.summary import summary
from bench.gpu_serve.targets import TARGETS, Target
from bench.peers import Contestant

SCHEMA = "tokenspeed-bench-gpu-serve/1"
STARTS = 2
DEATH_SECONDS = 1.0  # from the end of a server's connections to that of its process
INTERRUPTED = "ended by Ctrl-C"


class Measurement:
    """One subject: everything that is found goes into its file at once, so that no end loses it."""

    def __init__(self, options: Options, subject: Subject, until: float) -> None:
        self._options, self._subject, self._until = options, subject, until
        self._machine = machine()
        self._plays: list[Played] = []
        self._starts: list[dict[str, float]] = []
        self._server: dict[str, Any] = {}
        self._busiest = 0.0
        self._missed: str | None = None  # what of the starts, and why
        self.error: str | None = None

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self._until - time.monotonic()

    def run(self) -> None:
        """What can be measured; a server that fails ends it with an error that is reported."""
        subject, options = self._subject, self._options
        try:
            if plans(options.names, options.scale):
                with self._endpoint() as server:
                    self._play_all(server)
            if START in options.names and subject.url is None:
                self._take_starts()
        except BenchError as error:
            self.error = str(error)
        except KeyboardInterrupt:
            self.error = INTERRUPTED
        self._save()

    @contextlib.contextmanager
    def _endpoint(self) -> Iterator[Server | None]:
        """Our own server, or None beside the one that runs already."""
        if self._subject.url is not None:
            yield None
            return
        with started(self._without_weights(), self._patience()) as server:
            self._server["first_token_s"] = round(server.start_seconds, 3)
            say(f"{self._subject.name}: serves after {server.start_seconds:.1f} s")
            yield server
            self._server["peak_mb"] = round(server.peak_megabytes())

    def _play_all(self, server: Server | None) -> None:
        options, subject = self._options, self._subject
        url = subject.url or (server.url if server else "")
        model = asyncio.run(first_token(url, options.api_key, self._patience()))
        self._server |= {"url": url, "model": model}
        with Clients(options.clients, url, options.api_key) as clients:
            player = Player(clients, url, model, subject.vocab)
            for plan in plans(options.names, options.scale):
                began = time.monotonic()
                played = player.play(plan, self.left)
                self._plays.append(played)
                self._busiest = clients.busiest
                self._save()
                say(f"{subject.name}: {plan.title}: {time.monotonic() - began:.1f} s" + _failed(played))
                if server is not None and server.died(DEATH_SECONDS if played.failed else 0.0):
                    raise BenchError(f"the server died in {plan.title!r}:\n{server.log_tail()}")
        self._server["metrics"] = scrape(url)

    def _take_starts(self) -> None:
        contestant = self._with_weights()
        for number in range(STARTS):
            if self.left < LEAST_SECONDS:
                self._missed = f"{START}: no time left for start {number + 1} of {STARTS}; raise --budget"
                return
            with started(contestant, self._patience()) as server:
                ready, first = round(server.ready_seconds, 3), round(server.start_seconds, 3)
            self._starts.append({"ready_s": ready, "first_token_s": first})
            say(f"{self._subject.name}: start {number + 1}: first token after {first:.1f} s")
            self._save()

    def _without_weights(self) -> Contestant:
        """The shape on weights that the server makes up; a folder that was given has its own."""
        options, shape = self._options, self._subject.shape
        if self._subject.folder is not None or shape is None:
            return self._with_weights()
        flags = ("--random-weights", *options.flags)
        return serving(weightless(shape, options.cache), options.settings, flags)

    def _with_weights(self) -> Contestant:
        options, subject = self._options, self._subject
        folder = subject.folder or checkpoint(subject.shape or "", options.cache)
        return serving(folder, options.settings, options.flags)

    def _patience(self) -> float:
        return max(1.0, min(self._options.patience, self.left))

    @property
    def rows(self) -> list[Row]:
        rows = [row for played in self._plays for row in rows_of(played)]
        return rows + (start_rows(self._starts) if self._starts else [])

    @property
    def _targets(self) -> dict[tuple[str, str], Target]:
        """None where the workloads are not those that they are about."""
        return TARGETS.get(self._subject.shape or "", {}) if self._options.scale == 1 else {}

    def _save(self) -> None:
        made = {
            "schema": SCHEMA,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "name": self._subject.name,
            "shape": self._subject.shape,
            "settings": self._options.settings,
            "flags": self._options.flags,
            "machine": self._machine,
            "scale": self._options.scale,
            "clients": {
                "processes": self._options.clients,
                "busiest_share_of_a_core": round(self._busiest, 3),
            },
            "server": self._server,
            "error": self.error,
            "starts": self._starts,
            "rows": [row_json(row, self._targets.get((row.kind, row.key), NO_TARGET)) for row in self.rows],
            "workloads": [summary(played) for played in self._plays],
        }
        path = self._options.out / f"{self._subject.name}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")

    def report(self, console: Console) -> bool:
        """Whether all went well."""
        told = notes(self._plays, [summary(played) for played in self._plays], self._busiest)
        told += [] if self._missed is None else [self._missed]
        if self.error is not None:
            told.insert(0, f"error: {self.error}")
        show(console, table(self._subject.name, self._machine["device"], self.rows, self._targets), told)
        return not told


def say(told: str) -> None:
    """What goes on, for whoever looks."""
    print(told, file=sys.stderr, flush=True)


def _failed(played: Played) -> str:
    return f", {played.failed} of {len(played.outcomes)} requests FAILED" if played.failed else ""
