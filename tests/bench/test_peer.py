"""Another project's server, unchanged: llama-cpp-python's, with the built-in model.

    TOKENSPEED_PEER_PYTHON=peers/bin/python python -m pytest tests/bench/test_peer.py

bench/README.md tells how that environment is made.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.peers import has_server, llama_cpp_python, run_python, started
from bench.serve.recording import load
from tokenspeed import builtin

ROOT = Path(__file__).parents[2]
PEER = os.environ.get("TOKENSPEED_PEER_PYTHON")


@pytest.mark.slow
@pytest.mark.skipif(PEER is None, reason="TOKENSPEED_PEER_PYTHON names no interpreter with llama-cpp-python")
def test_llama_cpp_pythons_server_is_measured_as_it_is(tmp_path: Path) -> None:
    assert PEER is not None
    python, gguf, kept = Path(PEER), tmp_path / "builtin.gguf", tmp_path / "run.json"
    assert has_server(python)
    run_python(python, ["-m", "bench.gguf_writer", str(builtin.MODEL), str(gguf)])
    with started(llama_cpp_python(python, gguf, threads=2)) as server, server.awake():
        url = f"http://127.0.0.1:{server.port}"
        command = [sys.executable, "-m", "bench", "serve", "--url", url, "--workload", "streams"]
        scale = ["--streams", "1", "--prompt", "128", "--output", "16", "--light", "40M"]
        done = subprocess.run(
            [*command, *scale, "--json", str(kept)], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    for title in ("TTFT p50", "gap p99", "decode p50", "part of light"):
        assert title in done.stdout
    assert "does not tell usage" in done.stdout  # its streams do not
    recording = load(kept)
    assert recording.endpoints[0].sizing.measured  # its whole answers do
    outcomes = [outcome for repeat in recording.repeats for outcome in repeat.outcomes]
    assert len(outcomes) == 3
    assert all(outcome.error is None and 1 <= len(outcome.chunks) <= 16 for outcome in outcomes)
