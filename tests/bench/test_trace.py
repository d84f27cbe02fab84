"""A user's own requests, read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.client import BenchError
from bench.serve.trace import read_trace

GOOD = '{"at": 0.5, "prompt_tokens": 200, "max_tokens": 64, "kind": "long", "priority": 1}'


def written(folder: Path, *lines: str) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_trace_is_sorted_by_time_and_keeps_every_field(tmp_path: Path) -> None:
    chat = '{"at": 0, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "body": {"top_k": 3}}'
    first, second = read_trace(written(tmp_path, GOOD, "", chat)).arrivals
    assert (first.at, first.kind, first.messages) == (0, "all", ({"role": "user", "content": "Hi"},))
    assert first.body == {"top_k": 3}
    assert (second.at, second.kind, second.prompt_tokens, second.max_tokens) == (0.5, "long", 200, 64)
    assert second.body == {"priority": 1}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"at": 0, "max_tokens": 1', "not JSON"),
        ("[1]", "expected `object`, got `array`"),
        ('{"at": "0", "prompt": "a", "max_tokens": 1}', "at: expected `float`, got `str`"),
        ('{"at": 0, "prompt": "a"}', "missing required field `max_tokens`"),
        ('{"at": 0, "prompt": "a", "max_tokens": 0}', "max_tokens: 0 is less than 1"),
        ('{"at": -1, "prompt": "a", "max_tokens": 1}', "at: -1 is less than 0"),
        ('{"at": 0, "prompt_tokens": 0, "max_tokens": 1}', "prompt_tokens: 0 is less than 1"),
        ('{"at": 0, "messages": [], "max_tokens": 1}', "messages: it is empty"),
        ('{"at": 0, "messages": ["Hi"], "max_tokens": 1}', r"messages\[0\]: expected `object`"),
        ('{"at": 0, "max_tokens": 1}', "give one of prompt, messages, prompt_tokens; this has none"),
        ('{"at": 0, "prompt": "a", "prompt_tokens": 9, "max_tokens": 1}', "this has prompt, prompt_tokens"),
        ('{"at": 0, "prompt": "a", "max_tokens": 1, "kind": "together"}', "kind: 'together' is what"),
        ('{"at": 0, "promt": "a", "max_tokens": 1}', "no field 'promt'; did you mean 'prompt'"),
        ('{"at": 0, "prompt": "a", "max_tokens": 1, "body": {"stream": false}}', "body: 'stream' is set by"),
    ],
)
def test_a_wrong_line_is_named_with_its_field(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(BenchError, match=rf"trace.jsonl, line 3: .*{told}"):
        read_trace(written(tmp_path, GOOD, "", line))


def test_a_trace_that_needs_two_endpoints_is_refused(tmp_path: Path) -> None:
    chat = '{"at": 0, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}'
    with pytest.raises(BenchError, match="some lines have messages, some a prompt"):
        read_trace(written(tmp_path, chat, '{"at": 0, "prompt": "a", "max_tokens": 1}'))


def test_a_trace_without_requests_or_without_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no requests in it"):
        read_trace(written(tmp_path, ""))
    with pytest.raises(BenchError, match="nowhere: No such file"):
        read_trace(tmp_path / "nowhere")
