"""One server for all clients: the whole program with the built-in model, on a socket of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

MODEL = "tokenspeed-builtin"
ALIAS = "claude-alias"  # a name for clients that insist on one
CONTEXT = 2048  # tokens
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
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    settings = {**SETTINGS, "responses.store_path": str(folder / "responses")}
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={written(value)}")]
    python = request.config.getoption("--server-python")
    command = [python, "-m", "tokenspeed", "serve", "--port", "0", *options]
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server-python", default=sys.executable, help="the Python that has TokenSpeed")
