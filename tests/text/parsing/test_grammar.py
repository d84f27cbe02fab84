"""What a family's grammar lets through, its parser takes for calls of the tools with arguments that fit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

import tokenspeed.builtin
from tokenspeed.text.parsing.families import FAMILIES
from tokenspeed.text.parsing.family import Family
from tokenspeed.text.parsing.lark import json_object
from tokenspeed.text.parsing.parts import Arguments, Call, Part, PlainText, Reasoning, Text, Tool
from tokenspeed.text.parsing.thinking import THINKS, Think, Thinking, think_rules

VOCABULARY = Path(tokenspeed.builtin.__file__).parent / "model" / "tokenizer.json"
MOST_TOKENS = 2000
# What ends a value, tried in turn by a walk that has been long enough.
ENDS = ("\n</parameter>", '"', "}", "]", ")", "\n</", ";")
SPECIAL = sorted({mark for family in FAMILIES.values() for mark in family.marks} | set(THINKS[0].marks))

ITEM = {"type": "object", "properties": {"sku": {"type": "string"}, "count": {"type": "integer"}}}
TOOLS = [
    Tool("now"),
    Tool(
        "get_weather",
        parameters={
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
            },
            "required": ["city", "days"],
        },
    ),
    Tool(
        "get",
        parameters={
            "type": "object",
            "properties": {
                "exact": {"type": "boolean"},
                "scale": {"type": "number"},
                "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
                "nothing": {"type": "null"},
                "level": {"enum": [1, 2, None, "high"]},
            },
            "additionalProperties": False,
        },
    ),
    Tool(
        "order-items",
        parameters={
            "$defs": {"item": {**ITEM, "required": ["sku"], "additionalProperties": False}},
            "properties": {
                "first": {"$ref": "#/$defs/item"},
                "more": {"type": "array", "items": {"$ref": "#/$defs/item"}},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "code": {"type": "string", "pattern": "^[A-Z]{2}/[0-9]+$"},
                "short": {"type": "string", "minLength": 2, "maxLength": 5},
            },
            "required": ["first", "code", "short"],
        },
    ),
]


def vocabulary(special: Sequence[str]) -> LLTokenizer:
    """The built-in model's vocabulary with special tokens added to it."""
    state = json.loads(VOCABULARY.read_text(encoding="utf-8"))
    top = 1 + max(max(state["model"]["vocab"].values()), *(token["id"] for token in state["added_tokens"]))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    state["added_tokens"] += [{"id": top + at, "content": mark, **flags} for at, mark in enumerate(special)]
    return LLTokenizer(json.dumps(state))


PLAIN, MARKED = vocabulary([]), vocabulary(SPECIAL)


def as_text(mark: str) -> str:
    return json.dumps(mark, ensure_ascii=False)


def as_special(mark: str) -> str:
    return f"<[{MARKED.tokenize_str(mark, parse_special=True)[0]}]>"


KINDS = pytest.mark.parametrize(
    ("tokens", "mark"), [(PLAIN, as_text), (MARKED, as_special)], ids=["spelled", "special"]
)


def matcher(tokens: LLTokenizer, lark: str) -> LLMatcher:
    made = LLMatcher(tokens, LLMatcher.grammar_from_lark(lark), log_level=0)
    assert not made.is_error(), made.get_error()
    return made


def walk(tokens: LLTokenizer, lark: str, seed: int, first: str = "") -> str:
    """A text that the grammar admits, drawn at random; longer ones soon head for their end.

    `first` ends what comes before all values, and is chosen only once: it could be in a value, too.
    """
    draw = random.Random(seed)
    grammar = matcher(tokens, lark)
    ids: list[int] = []
    while len(ids) < MOST_TOKENS:
        if grammar.is_accepting() and (grammar.is_stopped() or draw.random() < 0.5):
            return show(tokens, ids)
        chosen = []
        if draw.random() < len(ids) / 60:
            chosen = end_value(tokens, grammar, [first, *ENDS] if first else ENDS)
            first = "" if show(tokens, chosen) == first else first
        if not chosen:
            mask = grammar.compute_logit_bias()
            allowed = [token for token, bias in enumerate(mask) if bias and token not in tokens.eos_tokens]
            chosen = [draw.choice(allowed)]
        assert grammar.consume_tokens(chosen), grammar.get_error()
        ids += chosen
    raise AssertionError(f"no end in sight: {show(tokens, ids)[-200:]}")


def end_value(tokens: LLTokenizer, grammar: LLMatcher, ends: Sequence[str]) -> list[int]:
    for end in ends:
        ids = tokens.tokenize_str(end, parse_special=True)
        if grammar.validate_tokens(ids) == len(ids):
            return ids
    return []


def show(tokens: LLTokenizer, ids: Sequence[int]) -> str:
    """The text as a detokenizer that shows the marks has it."""
    out = b""
    for token in ids:
        out += tokens.decode_bytes([token]).removeprefix(b"\xff")
    return out.decode("utf-8", errors="replace")


def calls(parts: Sequence[Part]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for part in parts:
        match part:
            case Call(name):
                found.append((name, ""))
            case Arguments(text):
                found[-1] = found[-1][0], found[-1][1] + text
            case other:
                raise AssertionError(f"{other} is no call")
    return found


@KINDS
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("most", [None, 1])
def test_what_the_grammar_admits_is_parsed_to_calls_that_fit(
    name: str, most: int | None, tokens: LLTokenizer, mark: Callable[[str], str]
) -> None:
    family = FAMILIES[name]
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    lark = "start: calls\n" + family.calls(TOOLS, most=most, mark=mark)
    for seed in range(6):
        text = walk(tokens, lark, seed)
        parser = family.parser(TOOLS)
        found = calls(parser.push(text) + parser.flush())
        assert found, text
        assert most is None or len(found) == most
        for tool, arguments in found:
            jsonschema.validate(json.loads(arguments, parse_constant=pytest.fail), schemas[tool])


@KINDS
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("think", THINKS[:1])
def test_thinking_that_the_grammar_admits_is_parsed_as_such(
    think: Think, opened: bool, tokens: LLTokenizer, mark: Callable[[str], str]
) -> None:
    lark = 'start: think "Done."\n' + think_rules(think, opened=opened, mark=mark)
    for seed in range(6):
        text = walk(tokens, lark, seed, think.close)
        parser = Thinking(think, PlainText(), opened=opened)
        parts = parser.push(text) + parser.flush()
        shown = "".join(part.text for part in parts if isinstance(part, Text))
        thought = "".join(part.text for part in parts if isinstance(part, Reasoning))
        assert shown == "Done."
        assert thought.strip("\n") == thought
        assert opened or bool(thought) <= text.startswith("<think>")


@KINDS
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_calls_may_follow_thinking(family: Family, tokens: LLTokenizer, mark: Callable[[str], str]) -> None:
    think = THINKS[0]
    rules = think_rules(think, opened=True, mark=mark) + family.calls(TOOLS, most=1, mark=mark)
    for seed in range(4):
        text = walk(tokens, f"start: think calls\n{rules}", seed, think.close)
        parser = Thinking(think, family.parser(TOOLS), opened=True)
        parts = parser.push(text) + parser.flush()
        assert len(calls([part for part in parts if not isinstance(part, Reasoning)])) == 1


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("most", [1, 3])
def test_no_more_calls_are_admitted_than_asked_for(family: Family, most: int) -> None:
    tool = [Tool("now")]
    exactly = "start: calls\n" + family.calls(tool, most=most, mark=as_text)
    longest = max((walk(PLAIN, exactly, seed) for seed in range(12)), key=len)
    parser = family.parser(tool)
    assert len(calls(parser.push(longest) + parser.flush())) == most


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_call_that_the_grammar_admits_begins_as_a_free_one_does(family: Family) -> None:
    for seed in range(5):
        text = walk(PLAIN, "start: calls\n" + family.calls(TOOLS, most=None, mark=as_text), seed)
        assert text.startswith((*family.openers, *family.starts(TOOLS)))


@pytest.mark.parametrize(
    ("text", "admitted"),
    [
        ('{"a": [1, 2]}', True),
        ('{"a":[1,2]}', True),
        ('{"a":  [1, 2]}', False),
        ('{"a":\n[1, 2]}', False),
        ('{ "a": [1, 2]}', False),
        ('{"a": [ ', False),
    ],
)
def test_json_is_spaced_as_templates_write_it_or_not_at_all(text: str, admitted: bool) -> None:
    schema = {"properties": {"a": {"type": "array", "items": {"type": "integer"}}}, "required": ["a"]}
    grammar = matcher(PLAIN, f"start: {json_object(schema)}")
    ids = PLAIN.tokenize_str(text)
    assert (grammar.validate_tokens(ids) == len(ids)) == admitted


@pytest.mark.parametrize("name", ['a"b', "a\\", "a\b\x01", "é/", "a b"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_any_name_can_be_spelled(family: Family, name: str) -> None:
    schema = {"properties": {name: {"enum": [name]}}, "required": [name], "additionalProperties": False}
    tools = [Tool("f", parameters=schema)]
    text = walk(PLAIN, "start: calls\n" + family.calls(tools, most=1, mark=as_text), 0)
    parser = family.parser(tools)
    [(_, arguments)] = calls(parser.push(text) + parser.flush())
    assert json.loads(arguments) == {name: name}
