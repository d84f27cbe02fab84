"""A chat template shows which family's calls its model writes, and whether it thinks aloud."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenspeed.text.parsing.families import FAMILIES, detect
from tokenspeed.text.parsing.parts import Tool
from tokenspeed.text.parsing.thinking import THINKS, find_think

TEMPLATES = Path(__file__).parents[1] / "templates"

SNIPPETS = [  # the parts of templates that write an assistant's calls
    (
        "qwen3_coder",
        r"{{- '\n<tool_call>\n<function=' + tool_call.name + '>\n' }}{{- '<parameter=' + name + '>\n' }}",
    ),
    ("mistral_named", "{{- '[TOOL_CALLS]' + name + '[ARGS]' + arguments|tojson }}"),
    ("mistral_named", "{{- '[TOOL_CALLS]' + name + '[CALL_ID]' + id + '[ARGS]' + arguments }}"),
    (
        "deepseek_fenced",
        "{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + name"
        r" + '\n' + '```json' + '\n' + arguments + '\n' + '```' + '<｜tool▁call▁end｜>'}}",
    ),
    (
        "deepseek",
        "{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ tool['function']['name'] + '<｜tool▁sep｜>'"
        " + tool['function']['arguments'] + '<｜tool▁call▁end｜>'}}",
    ),
    ("pythonic", "{{- '<|header_start|>assistant<|header_end|>\n\n<|python_start|>[' + name + '(' }}"),
    ("pythonic", "{{- 'in the format of [func_name1(params_name1=params_value1), func_name2(params)]' }}"),
    (
        "llama3_json",
        """{{- '<|header_start|>assistant<|header_end|>' }}{{- '<|python_start|>' + message.content }}"""
        """{{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}""",
    ),
    (None, r"{{- '<tool_call>' + tc.name }}<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>"),
    (None, ""),
]


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("qwen2", "hermes"),
        ("qwen3", "hermes"),
        ("llama3", "llama3_json"),
        ("mistral", "mistral"),
        ("chatml", None),
        ("gemma", None),
    ],
)
def test_a_whole_template_shows_the_family(template: str, family: str | None) -> None:
    assert detect((TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")) == family


@pytest.mark.parametrize(("family", "snippet"), SNIPPETS)
def test_what_a_template_writes_shows_the_family(family: str | None, snippet: str) -> None:
    assert detect(snippet) == family


@pytest.mark.parametrize("snippet", [snippet for family, snippet in SNIPPETS if family])
def test_no_template_shows_two_families(snippet: str) -> None:
    assert sum(family.detects(snippet) for family in FAMILIES.values()) == 1


def test_a_template_shows_whether_its_model_thinks_aloud() -> None:
    qwen3 = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    qwen2 = (TEMPLATES / "qwen2.jinja").read_text(encoding="utf-8")
    assert find_think(qwen3) == THINKS[0]
    assert find_think(qwen2) is None
    assert find_think("[THINK]{{ chunk.thinking }}[/THINK]") == THINKS[1]


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
    ],
)
def test_a_prompt_shows_whether_it_has_opened_the_thinking(prompt: str, opened: bool) -> None:
    assert THINKS[0].opened(prompt) == opened


def test_only_a_family_whose_calls_need_no_mark_starts_them_with_less() -> None:
    starting = {name: family.starts([Tool("f"), Tool("g")]) for name, family in FAMILIES.items()}
    assert {name: texts for name, texts in starting.items() if texts} == {
        "llama3_json": ('{"name"',),
        "pythonic": ("[f(", "[g("),
    }
