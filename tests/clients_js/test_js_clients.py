"""JavaScript's clients judge the whole program; their scripts are lists of sentences that can fail."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = ("openai_chat", "openai_rest", "ai_sdk", "ai_sdk_rest")
NODE = shutil.which("node")
OLDEST_NODE = 20
SETTINGS = ('speculation.drafter="off"', "cache.memory_mib=256", "model.max_context=2048")


def missing() -> str | None:
    """Why the scripts cannot run here."""
    if NODE is None:
        return "Node.js is not installed"
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < OLDEST_NODE:
        return f"Node.js {version.strip()} is older than {OLDEST_NODE}"
    if not (HERE / "node_modules").is_dir():
        return f"the clients are not installed; do it with: npm ci --prefix {HERE}"
    return None


WHY_NOT = missing()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@contextlib.contextmanager
def serving(folder: Path, *settings: str) -> Iterator[str]:
    """The address of a server of its own. It has nothing to complain of when it ends."""
    stored = f'responses.store_path="{folder / "responses"}"'
    options = [part for setting in (*SETTINGS, stored, *settings) for part in ("--set", setting)]
    command = [sys.executable, "-m", "tokenspeed", "serve", "--port", "0", *options]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            address = re.search(r"http://[^/]+", process.stdout.readline())
            assert address is not None, (folder / "log").read_text()
            yield address[0]
        finally:
            process.kill()
    assert " ERROR " not in (folder / "log").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("server")) as address:
        yield address


def judge(script: str, address: str) -> None:
    command = [str(NODE), str(HERE / f"{script}.mjs"), address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# pass 0" not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_client_finds_all_that_its_script_says(script: str, server: str) -> None:
    judge(script, server)


def test_the_clients_tell_thinking_from_text(tmp_path: Path) -> None:
    with serving(tmp_path, 'parsing.reasoning="think"') as address:
        judge("thinking", address)
