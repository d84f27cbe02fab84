"""One server for all clients: the whole program with the built-in model, on a socket of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

MODEL = "tokenspeed-builtin"
ALIAS = "claude-alias"  # a name for clients that insist on one
CONTEXT = 2048  # tokens
# What runs the server: not what runs the tests, where clients have an environment of their own.
SERVER_PYTHON = os.environ.get("SERVER_PYTHON", sys.executable)
SETTINGS = {
    "model.max_context": CONTEXT,
    "model.aliases": [ALIAS],
    "cache.memory_mib": 256,
    "speculation.drafter": "off",
}


@dataclass(frozen=True)
class Server:
    """Where it listens. `root` is for clients that add `/v1` themselves."""

    root: str

    @property
    def v1(self) -> str:
        return f"{self.root}/v1"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    settings = {**SETTINGS, "responses.store_path": str(folder / "responses")}
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={written(value)}")]
    command = [SERVER_PYTHON, "-m", "tokenspeed", "serve", "--port", "0", *options]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            found = re.search(r"http://[^/]+", process.stdout.readline())
            assert found is not None, (folder / "log").read_text()
            yield Server(found[0])
        finally:
            process.kill()
    assert " ERROR " not in (folder / "log").read_text()


def written(value: object) -> str:
    """As TOML has it."""
    return repr(value).replace("'", '"')
