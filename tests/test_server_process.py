"""The whole program as a user runs it: a process, a socket, the official client, signals."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import requests

from tokenspeed import builtin

COMMAND = [sys.executable, "-m", "tokenspeed"]


@dataclass
class Running:
    process: subprocess.Popen[str]
    curl: str
    url: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def metric(self, name: str) -> float:
        text = requests.get(f"{self.url}/metrics", timeout=10).text
        (value,) = re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)
        return float(value)


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Running]:
    command = [*COMMAND, "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            curl = process.stdout.readline()
            (address,) = re.findall(r"http://[^/]+", curl)
            yield Running(process, curl, address)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


def stream(url: str, **body: object) -> requests.Response:
    body = {"model": "local", "stream": True, **body}
    return requests.post(f"{url}/v1/completions", json=body, stream=True, timeout=60)


def test_the_printed_curl_line_streams_an_answer(server: Running) -> None:
    words = shlex.split(server.curl)
    assert words[:2] == ["curl", "-N"]
    body = words[words.index("-d") + 1]
    with requests.post(words[2], data=body, stream=True, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == b"data: [DONE]"
    assert len(lines) > 3


def test_the_official_client_streams_a_chat_that_reads_like_python(server: Running) -> None:
    chunks = list(
        server.client.chat.completions.create(
            model="local",
            messages=[{"role": "user", "content": "Write a function that adds two numbers."}],
            stream=True,
            stream_options={"include_usage": True},
            temperature=0,
            max_tokens=200,
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code, text
    assert any(isinstance(node, ast.FunctionDef) for node in ast.parse(code[1]).body)
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens > 5
    assert not chunks[-1].choices


def test_the_official_client_fills_a_gap_with_python(server: Running) -> None:
    prefix = "def is_even(number):\n    return "
    suffix = "\n\n\ndef is_odd(number):\n    return not is_even(number)\n"
    answer = server.client.completions.create(
        model="local", prompt=prefix, suffix=suffix, temperature=0, max_tokens=64
    )
    ast.parse(prefix + answer.choices[0].text + suffix)
    assert answer.choices[0].finish_reason == "stop"


def test_the_log_probabilities_of_the_real_model_rank_and_agree_with_a_rescoring(server: Running) -> None:
    prompt = "def add(a, b):\n    return"
    answer = server.client.completions.create(
        model="local", prompt=prompt, temperature=0, max_tokens=6, logprobs=3
    )
    given = answer.choices[0].logprobs
    assert given is not None
    assert given.token_logprobs
    assert given.top_logprobs
    for logprob, top in zip(given.token_logprobs, given.top_logprobs, strict=True):
        assert logprob == max(top.values())  # greedy takes the best
        assert len(top) == 3
        assert sum(math.exp(value) for value in top.values()) <= 1.0 + 1e-6
    again = server.client.completions.create(
        model="local", prompt=prompt + answer.choices[0].text, echo=True, logprobs=0, max_tokens=0
    )
    scored = again.choices[0].logprobs
    assert scored is not None
    assert scored.token_logprobs
    assert scored.token_logprobs[-len(given.token_logprobs) :] == given.token_logprobs


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_real_model_gives_a_text_one_vector_alone_and_among_others(server: Running, pooling: str) -> None:
    texts = ["def add(a, b):", "def plus(x, y):", "import os\n" * 300]

    def embedded(given: str | list[str]) -> np.ndarray:
        """float32 [texts, hidden], as the official client reads it."""
        answer = server.client.embeddings.create(model="local", input=given, extra_body={"pooling": pooling})
        return np.array([each.embedding for each in answer.data], np.float32)

    together = embedded(texts)
    for text, vector in zip(texts, together, strict=True):
        assert np.array_equal(embedded(text)[0], vector)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-6)
    near, far = together[1:] @ together[0]
    assert near > far


def test_a_plain_loop_over_data_lines_counts_one_for_each_token(server: Running) -> None:
    with stream(server.url, prompt="import os\n", max_tokens=32, ignore_eos=True, temperature=0) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith(b"data: ")]
    assert lines.pop() == b"[DONE]"
    finish = json.loads(lines.pop())
    assert finish["choices"][0]["finish_reason"] == "length"
    assert 1 <= len(lines) <= 32  # a reader that falls behind gets several tokens in one chunk


def test_greedy_output_of_the_real_model_does_not_depend_on_what_runs_beside_it(server: Running) -> None:
    def ask(prompt: str, n: int = 1) -> list[str]:
        answer = server.client.completions.create(
            model="local", prompt=prompt, temperature=0, max_tokens=48, n=n
        )
        return [choice.text for choice in answer.choices]

    prompts = [f"def function_{i}(a, b):\n" + "    # a comment\n" * (3 * i % 40) for i in range(32)]
    alone = [ask(prompt)[0] for prompt in prompts[:8]]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(ask, prompts))
        again = list(pool.map(lambda prompt: ask(prompt, 4), prompts[:8]))
    assert [texts[0] for texts in together[:8]] == alone
    assert again == [[text] * 4 for text in alone]


def test_clients_that_read_three_tokens_and_vanish_leave_nothing_behind(server: Running) -> None:
    def vanish(i: int) -> None:
        with stream(server.url, prompt=f"# {i}\n" * 50, max_tokens=500, ignore_eos=True) as answer:
            data = (line for line in answer.iter_lines() if line and not line.startswith(b":"))  # no pings
            assert all(next(data).startswith(b"data: ") for _ in range(3))

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(vanish, range(64)))
    while server.metric("tokenspeed_sequences_running") or server.metric("tokenspeed_sequences_waiting"):
        pass  # every look is a request that the server answers
    assert server.metric("tokenspeed_kv_blocks_held") == 0
    assert requests.get(f"{server.url}/ready", timeout=10).status_code == 200
    assert stream(server.url, prompt="x = ", max_tokens=3).text.endswith("data: [DONE]\n\n")


def test_a_stopping_server_finishes_its_streams_and_exits_with_0() -> None:
    with running() as started:
        with stream(started.url, prompt="x", max_tokens=200, ignore_eos=True) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith(b"data: ")
            started.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == b"data: [DONE]"
        assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert started.process.wait(timeout=30) == 0


def test_ctrl_c_twice_stops_at_once_and_tells_the_stream_why() -> None:
    with running() as started:
        with stream(started.url, prompt="x", max_tokens=4000, ignore_eos=True) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith(b"data: ")
            started.process.send_signal(signal.SIGINT)
            while requests.get(f"{started.url}/ready", timeout=10).status_code == 200:
                pass
            started.process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert "error" in json.loads(rest[-2][6:])
        assert started.process.wait(timeout=30) == 0


def test_ctrl_c_while_it_loads_ends_quietly() -> None:
    command = [*COMMAND, "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()  # the first stage has begun
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == -signal.SIGINT
        assert "Traceback" not in process.stderr.read()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_a_port_in_use_is_one_line_before_anything_loads(server: Running) -> None:
    port = httpx.URL(server.url).port
    failed = run("serve", "--port", str(port))
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: cannot listen on 127.0.0.1 port {port}")
    assert failed.stderr.count("\n") == 1


def test_a_truncated_checkpoint_says_which_file_and_why(tmp_path: Path) -> None:
    for file in builtin.MODEL.iterdir():
        whole = file.read_bytes()
        (tmp_path / file.name).write_bytes(whole[:-1000] if file.suffix == ".safetensors" else whole)
    failed = run("serve", str(tmp_path), "--port", "0")
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'model.safetensors'}")
    assert "truncated" in last
    assert "Traceback" not in failed.stderr


def test_a_file_that_is_not_what_was_pinned_keeps_the_port_closed() -> None:
    failed = run("serve", "--port", "0", "--set", f'model.sha256={{"config.json" = "{"0" * 64}"}}')
    assert failed.returncode == 1
    assert "config.json" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_generate_streams_a_completion_to_the_terminal() -> None:
    done = run("generate", "def add(a, b):\n    return", "--max-tokens", "8")
    assert done.returncode == 0
    assert "a + b" in done.stdout


def test_generate_tells_how_many_of_its_tokens_were_drafts() -> None:
    prompt = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\n" * 3
    drafted = run("generate", prompt, "--max-tokens", "64", "--speculation", "ngram")
    plain = run("generate", prompt, "--max-tokens", "64", "--speculation", "off")
    assert drafted.stdout == plain.stdout
    told = re.search(r"(\d+) tokens, (\d+) of them drafts; (\d+) drafts were verified", drafted.stderr)
    assert told is not None
    tokens, held, verified = map(int, told.groups())
    assert 0 < held < tokens <= 64
    assert held <= verified
    assert "drafts" not in plain.stderr


def test_check_config_tells_all_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("[cache]\nblok_size = 16\n[server]\nport = 'x'\n")
    failed = run("check-config", str(file))
    assert failed.returncode == 1
    assert "'blok_size'; did you mean 'block_size'?" in failed.stderr
    assert "port" in failed.stderr
    assert run("check-config", "config/default.toml").returncode == 0
