"""The command `llm`, as its users set it up for a local endpoint, against the real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import MODEL, Server

# One model in each of the protocols that the command speaks.
MODELS: dict[str, dict[str, bool]] = {
    "chat": {"supports_schema": True, "supports_tools": True},
    "responses": {"responses": True, "supports_schema": True, "supports_tools": True},
    "text": {"completion": True},
}
CITY = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
)

SHORT = ["-o", "max_tokens", "5", "-o", "temperature", "0"]

Run = Callable[..., str]


@pytest.fixture(scope="module")
def llm(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the command with its files in a folder of their own, and gives back what it printed."""
    folder: Path = tmp_path_factory.mktemp("llm")
    shared = {"model_name": MODEL, "api_base": server.v1}
    models: list[dict[str, Any]] = [{"model_id": kind, **shared, **more} for kind, more in MODELS.items()]
    (folder / "extra-openai-models.yaml").write_text(json.dumps(models))  # which is YAML as well
    environment = {**os.environ, "LLM_USER_PATH": str(folder)}

    def run(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    return run


def test_a_text_is_completed(llm: Run) -> None:
    assert llm("-m", "text", *SHORT, "def add(a, b):\n    return").strip()


@pytest.mark.parametrize(("kind", "how"), [("chat", []), ("chat", ["--no-stream"]), ("responses", [])])
def test_an_answer_fits_the_schema_that_was_asked_for(llm: Run, kind: str, how: list[str]) -> None:
    said = json.loads(llm("-m", kind, *how, "--schema", CITY, "Where?"))
    assert said["city"] in ("Paris", "Rome")


def test_a_conversation_goes_on_and_tells_the_model_of_functions(llm: Run) -> None:
    """The command cannot force a call: a longer prompt is all that is certain."""
    code = 'def weather(city: str) -> str:\n    """The weather."""\n    return "sunny"'
    printed = llm("-m", "chat", *SHORT, "Where?")
    llm("-c", *SHORT, "--functions", code, "--chain-limit", "2", "And when?")
    first, *_, last = json.loads(llm("logs", "-m", "chat", "-c", "--json"))
    assert printed == first["response"] + "\n"
    assert 0 < first["output_tokens"] <= 5
    assert last["input_tokens"] > first["input_tokens"] + 40


def test_an_endpoint_tells_its_models(llm: Run, server: Server) -> None:
    assert llm("openai", "endpoint", server.v1, "--models").split()[0] == MODEL


def test_an_error_is_told_in_the_server_s_words(llm: Run, server: Server) -> None:
    told = llm("openai", "endpoint", server.v1, "-m", "gpt-0", "hi", status=1)
    assert "does not exist here" in told
