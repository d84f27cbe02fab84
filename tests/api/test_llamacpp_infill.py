"""llama.cpp's gaps, as its editor plugins send them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.llamacpp_asking import INFILL, events_of, posted
from tokenspeed.api.llamacpp_samplers import only_samplers
from tokenspeed.errors import RequestError
from tokenspeed.generation.request import SamplingFields

FILES = [{"filename": "a.py", "text": "A = 1\n", "time": 17}, {"filename": "b.py", "text": "B = 2\n"}]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
MARKS = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
REPOSITORY = ["<|repo_name|>", "<|file_sep|>"]


async def evaluated(server, body: dict[str, Any]) -> int:
    count: int = (await posted(server, "/infill", body | {"n_predict": 0}))["tokens_evaluated"]
    return count


async def test_the_cursors_line_belongs_to_the_prefix(server):
    expected = server.tokenizer.fim_prompt("def f(\n  a", "\nreturn x")
    assert await evaluated(server, INFILL) == len(expected)
    answer = await posted(server, "/infill", INFILL)
    text = server.tokenizer.decode(server.continuation(expected, 30), skip_special=True)
    assert answer["content"] == text


async def test_other_files_stand_in_front_with_the_familys_own_marks(serving):
    async with serving(special=SPECIAL + MARKS + REPOSITORY) as server:
        count = await evaluated(server, INFILL | {"input_extra": FILES})
        text = (
            "<|repo_name|>repository\n"
            "<|file_sep|>a.py\nA = 1\n\n<|file_sep|>b.py\nB = 2\n\n<|file_sep|>file\n"
            "<|fim_prefix|>def f(\n  a<|fim_suffix|>\nreturn x<|fim_middle|>"
        )
        assert count == len(server.tokenizer.encode(text, add_special=True))


async def test_a_family_without_such_marks_gets_other_files_as_text(server):
    count = await evaluated(server, INFILL | {"input_extra": FILES})
    text = "--- a.py ---\nA = 1\n\n\n--- b.py ---\nB = 2\n\n\n"
    alone = len(server.tokenizer.encode(text, add_special=False))
    assert count == alone + await evaluated(server, INFILL)


async def test_files_that_are_too_long_are_left_out_the_first_ones_first(server):
    long = [{"filename": "old.py", "text": "fox " * 900}, *FILES]
    assert await evaluated(server, INFILL | {"input_extra": long}) == await evaluated(
        server, INFILL | {"input_extra": FILES}
    )
    only = [{"filename": "old.py", "text": "fox " * 900}]
    assert await evaluated(server, INFILL | {"input_extra": only}) == await evaluated(server, INFILL)


@pytest.mark.parametrize(
    ("said", "indent", "shown"),
    [
        ("a\n    b\n  c\n", 4, "a\n    b"),
        ("a\n    b\n\n    c\nd", 4, "a\n    b\n\n    c"),
        ("a\n\tb\nc", 1, "a\n\tb"),
        ("a\n  b", 0, "a\n  b"),
        ("a\n  b\n\n", 2, "a\n  b\n\n"),
        ("a\nb", 1, "a"),
    ],
)
async def test_a_line_that_is_not_indented_enough_ends_an_answer(serving, said, indent, shown):
    async with serving(script=[said] * 2) as server:
        body = INFILL | {"n_indent": indent}
        whole = await posted(server, "/infill", body)
        streamed = events_of((await server.post("/infill", body | {"stream": True})).body)
    assert whole["content"] == shown
    assert "".join(event["content"] for event in streamed) == shown
    cut = shown != said
    assert whole["stop_type"] == streamed[-1]["stop_type"] == ("limit" if cut else "eos")
    assert server.idle()


async def test_an_answer_that_takes_too_long_ends_behind_a_line(serving):
    said = "a" * 20 + "\n" + "b" * 300
    async with serving(script=[said] * 2) as server:
        hurried = await posted(server, "/infill", INFILL | {"t_max_predict_ms": 0.001, "n_predict": -1})
        patient = await posted(server, "/infill", INFILL | {"t_max_predict_ms": 1e9, "n_predict": -1})
    assert hurried["content"].startswith("a" * 20 + "\n")
    assert len(hurried["content"]) < len(said)
    assert hurried["stop_type"] == "limit"
    assert patient["content"] == said


async def test_what_a_plugin_sends_is_taken(server):
    body = {
        "id_slot": 0,
        "input_prefix": "def f(\n",
        "input_suffix": "\n",
        "input_extra": FILES,
        "prompt": "    ret",
        "n_predict": 128,
        "stop": ["\n"],
        "n_indent": 4,
        "top_k": 40,
        "top_p": 0.90,
        "stream": False,
        "samplers": ["top_k", "top_p", "infill"],
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 1000,
        "lora": [],
        "response_fields": ["content", "timings/prompt_n", "timings/predicted_ms", "truncated"],
    }
    answer = await posted(server, "/infill", body)
    assert answer.keys() == set(body["response_fields"])


def test_samplers_that_are_not_listed_are_off():
    asked = SamplingFields(temperature=0.3, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.3)
    kept = only_samplers(asked, ["top_k", "top_p"])
    assert (kept.top_k, kept.top_p, kept.min_p, kept.temperature) == (40, 0.9, 0.0, 1.0)
    assert (kept.repetition_penalty, kept.presence_penalty) == (1.0, 0.0)
    assert only_samplers(asked, "kpte") == only_samplers(asked, ["top-k", "nucleus", "temp", "penalties"])
    assert only_samplers(asked, None) == only_samplers(asked, []) == asked
    assert only_samplers(asked, ["infill"]).min_p == 0.2
    with pytest.raises(RequestError, match="samplers"):
        only_samplers(asked, ["magic"])
