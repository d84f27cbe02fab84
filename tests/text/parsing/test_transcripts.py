"""What models wrote, and what of it is text, thinking and calls, wherever the text is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.text.parsing.families import FAMILIES
from tokenspeed.text.parsing.parts import Arguments, Call, Parser, Part, PlainText, Reasoning, Text, Tool
from tokenspeed.text.parsing.thinking import THINKS, Thinking

unhurried = settings(deadline=None)  # a busy machine may take its time
SHORT = 90  # characters; shorter ones are cut at every two places

WEATHER = Tool(
    "get_weather",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "metric": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "note": {"type": ["string", "null", "integer"]},
            "any": {},
        },
        "required": ["city"],
    },
)
TOOLS = [WEATHER, Tool("get"), Tool("now")]

CALL = Call("get_weather")
NOW: list[Part] = [Call("now"), Arguments("{}")]


def paris(arguments: str = '{"city": "Paris"}') -> list[Part]:
    return [CALL, Arguments(arguments)]


Row = tuple[str, str, list[Part]]  # the family, what its model wrote, and what it is

HERMES: list[Row] = [
    (
        "hermes",
        'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        [Text("I look."), *paris()],
    ),
    (
        "hermes",
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n',
        [*NOW, *paris()],
    ),
    (
        "hermes",
        '<tool_call>{"name":"get_weather","arguments":{"city":"}\\"</tool_call>\\\\","days":{"a":[{}]}}}</tool_call>x',
        [*paris('{"city":"}\\"</tool_call>\\\\","days":{"a":[{}]}}'), Text("x")],
    ),
    ("hermes", '<tool_call>{"parameters": {"city": "Paris"}, "name": "get_weather"}</tool_call>', paris()),
    ("hermes", '<tool_call>{"id": "1", "index": 0, "name": "now"}</tool_call>', NOW),
    ("hermes", '<tool_call>{"name": "now", "arguments": null, "id": {"a": 1}}</tool_call>', NOW),
    ("hermes", '<tool_call>{"arguments": null, "name": "now"}</tool_call>', NOW),
    (
        "hermes",
        '<tool_call>{"name": "\\u006eow", "arguments": {}} and so on</tool_call> ok',
        [*NOW, Text("ok")],
    ),
    # A brace too few, and a tag.
    ("hermes", '<tool_call>{"name": "now", "arguments": {}\n</tool_call>\nok', [*NOW, Text("ok")]),
    (
        "hermes",
        '<tool_call>{"name": "now", "arguments": {}}<tool_call>{"name": "now", "arguments": {}}',
        [*NOW, *NOW],
    ),
    # The end comes too early: amid the arguments, and before there are any.
    ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Par', paris('{"city": "Par')),
    ("hermes", 'a <tool_call>{"name": "now", "arg', [Text('a <tool_call>{"name": "now", "arg')]),
    # No calls.
    (
        "hermes",
        '<tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call>\n ',
        [Text('<tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call>\n ')],
    ),
    (
        "hermes",
        '<tool_call>{"name": "now", "arguments": 3}',
        [Text('<tool_call>{"name": "now", "arguments": 3}')],
    ),
    ("hermes", '<tool_call>{"nam": 1}', [Text('<tool_call>{"nam": 1}')]),
    ("hermes", "a <b <tool_ <tool_call ", [Text("a <b <tool_ <tool_call ")]),
    (
        "hermes",
        'Write <tool_call>: \n <tool_call>{"name": "now", "arguments": {}}</tool_call>',
        [Text("Write <tool_call>:"), *NOW],
    ),
]

CODER: list[Row] = [
    (
        "qwen3_coder",
        "I look.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        [Text("I look."), *paris('{"city": "Paris", "days": 3}'), *NOW],
    ),
    (
        "qwen3_coder",
        '<tool_call>\n<function=get_weather>\n<parameter=city>\n\n a "b" <c> </tool_call>\n\n</parameter>\n'
        '<parameter=tags>\n["x", "</function>"]\n</parameter>\n<parameter=metric>\nTrue\n</parameter>\n'
        "</function>\n</tool_call>",
        paris('{"city": "\\n a \\"b\\" <c> </tool_call>\\n", "tags": ["x", "</function>"], "metric": true}'),
    ),
    *(
        (
            "qwen3_coder",
            f"<function=get_weather><parameter={name}>{text}</parameter></function>",
            paris(f'{{"{name}": {value}}}'),
        )
        for name, text, value in [
            ("note", "None", "null"),
            ("note", "7", "7"),
            ("note", "[7]", '"[7]"'),
            ("days", "many", '"many"'),
            ("days", "NaN", '"NaN"'),
            ("any", "7", '"7"'),
            ("other", "7", '"7"'),
        ]
    ),
    # Tags left out, and text between them.
    ("qwen3_coder", "<function=now></function>\n</tool_call>\nok", [*NOW, Text("ok")]),
    (
        "qwen3_coder",
        "<tool_call><function=now> </tool_call><tool_call><function=now></function>",
        [*NOW, *NOW],
    ),
    (
        "qwen3_coder",
        "<tool_call><function=now></function><function=now>x</function>y</tool_call>ok",
        [*NOW, *NOW, Text("y</tool_call>ok")],
    ),
    # The end comes too early.
    ("qwen3_coder", "<function=get_weather><parameter=city>\nPar\n", paris('{"city": "Par\\n')),
    ("qwen3_coder", "<function=get_weather><parameter=days>\n3", paris('{"days": ')),
    ("qwen3_coder", "<function=get_weather", [Text("<function=get_weather")]),
    # No calls.
    (
        "qwen3_coder",
        "<tool_call>\n<function=nobody>\n</function> ",
        [Text("<tool_call>\n<function=nobody>\n</function> ")],
    ),
]

LLAMA: list[Row] = [
    ("llama3_json", '{"name": "get_weather", "parameters": {"city": "Paris"}}', paris()),
    (
        "llama3_json",
        ' {"type": "function", "name": "now", "parameters": {}}; {"name": "now"}\n',
        [*NOW, *NOW],
    ),
    (
        "llama3_json",
        '<|python_tag|>{"name": "now", "arguments": {}};<|python_tag|>{"name": "now"}',
        [*NOW, *NOW],
    ),
    (
        "llama3_json",
        'So: <|python_tag|>{"name": "now", "parameters": {}} ok',
        [Text("So:"), *NOW, Text("ok")],
    ),
    ("llama3_json", '<|python_start|>{"name": "now", "parameters": {}}<|python_end|>', NOW),
    ("llama3_json", '{"name": "now"}; {"name": "nobody"}', [*NOW, Text('; {"name": "nobody"}')]),
    ("llama3_json", '{"name": "Ann", "age": 3}', [Text('{"name": "Ann", "age": 3}')]),
    ("llama3_json", 'So: {"name": "now"}', [Text('So: {"name": "now"}')]),
    ("llama3_json", '<|python_tag|>now.call(a="b")', [Text('<|python_tag|>now.call(a="b")')]),
    ("llama3_json", '{"name": "get_weather", "parameters": {"city": oh', paris('{"city": oh')),
]

PYTHONIC: list[Row] = [
    ("pythonic", '[get_weather(city="Paris"), now()]', [*paris(), *NOW]),
    ("pythonic", "<|python_start|>[get_weather(city='Paris')]<|python_end|> ok", [*paris(), Text("ok")]),
    ("pythonic", "So: <|python_start|>[now()]<|python_end|>", [Text("So:"), *NOW]),
    ("pythonic", '[get_weather("Paris", 3, note=None)]', paris('{"city": "Paris", "days": 3, "note": null}')),
    *(
        ("pythonic", f"[get_weather(any={written})]", paris(f'{{"any": {value}}}'))
        for written, value in [
            (r"""'a"b\'c\x41\u00e9\n'""", r'''"a\"b'cA\u00e9\n"'''),
            (r'"""a "b" c"""', r'"a \"b\" c"'),
            (r'"\q\U0001f642\\"', r'"\\q🙂\\"'),
            ('""', '""'),
            ("[1, (2,), {'a': True}, [], ]", '[1, [2], {"a": true}, []]'),
            ("[true, null, False]", "[true, null, false]"),
            ("-1.5e3", "-1.5e3"),
            ("0x10", "16"),
            (".5", "0.5"),
            ("inf", '"inf"'),
            ("Paris", '"Paris"'),
        ]
    ),
    ("pythonic", "[get_weather(days=1 + 2, metric=True)]", paris('{"days": 1, "metric": true}')),
    # The end comes too early.
    ("pythonic", "[get_weather(city='Par", paris('{"city": "Par')),
    ("pythonic", "[now(), get_wea", [*NOW, Text(", get_wea")]),
    # No calls.
    ("pythonic", "[now] (a link)", [Text("[now] (a link)")]),
    ("pythonic", "[nobody()]", [Text("[nobody()]")]),
    ("pythonic", "[now(), nobody()]", [*NOW, Text(", nobody()]")]),
    ("pythonic", "So: [now()]", [Text("So: [now()]")]),
]

MISTRAL: list[Row] = [
    ("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]', paris()),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "abcdef123"}, {"name": "now"}]',
        [*NOW, *NOW],
    ),
    ("mistral", '[TOOL_CALLS]{"name": "now", "arguments": {}}', NOW),
    ("mistral", '[TOOL_CALLS][{"name": "now"}, {"name": "x"}]', [*NOW, Text(', {"name": "x"}]')]),
    ("mistral", "[TOOL_CALLS][1]", [Text("[TOOL_CALLS][1]")]),
    ("mistral_named", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', paris()),
    ("mistral_named", "ok[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now{}", [Text("ok"), *NOW, *NOW]),
    ("mistral_named", "[TOOL_CALLS]now[CALL_ID]abcdef123[ARGS]{}", NOW),
    ("mistral_named", "[TOOL_CALLS]nobody[ARGS]{}", [Text("[TOOL_CALLS]nobody[ARGS]{}")]),
    ("mistral_named", "[TOOL_CALLS]now[ARGS]", [Text("[TOOL_CALLS]now[ARGS]")]),
]

DEEPSEEK: list[Row] = [
    (
        "deepseek_fenced",
        "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Paris"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n'
        "{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [Text("I look."), *paris(), *NOW],
    ),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
        '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        [*NOW, *paris()],
    ),
    ("deepseek", "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}", NOW),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>nobody<｜tool▁sep｜>{}",
        [Text("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>nobody<｜tool▁sep｜>{}")],
    ),
]

THINKING: list[tuple[bool, str, list[Part]]] = [  # whether the prompt has opened it
    (False, "<think>\nHm.\n\nSo.\n</think>\n\nDone.\n", [Reasoning("Hm.\n\nSo."), Text("Done.\n")]),
    (False, "\n<think>\n\n</think>\n\nDone.", [Text("Done.")]),
    (False, " Done. <think>Hm.</think>", [Text(" Done. <think>Hm.</think>")]),
    (False, "<thin", [Text("<thin")]),
    (True, "Hm.</think>Done.", [Reasoning("Hm."), Text("Done.")]),
    (True, "<think>\nHm. </thinker>", [Reasoning("Hm. </thinker>")]),
    (True, "\nHm.\n", [Reasoning("Hm.\n")]),
    (
        True,
        'Hm. <tool_call>\n</think>\n\n<tool_call>{"name": "now", "arguments": {}}</tool_call>',
        [Reasoning("Hm. <tool_call>"), *NOW],
    ),
]

ROWS = [*HERMES, *CODER, *LLAMA, *PYTHONIC, *MISTRAL, *DEEPSEEK]


def thinking(opened: bool) -> Parser:
    return Thinking(THINKS[0], FAMILIES["hermes"].parser(TOOLS), opened=opened)


CASES: list[tuple[Callable[[], Parser], str, list[Part]]] = [
    *((lambda family=family: FAMILIES[family].parser(TOOLS), text, parts) for family, text, parts in ROWS),
    *((lambda opened=opened: thinking(opened), text, parts) for opened, text, parts in THINKING),
]
transcripts = pytest.mark.parametrize(("make", "text", "parts"), CASES, ids=[row[1][:60] for row in CASES])


def merged(parts: Iterable[Part]) -> list[Part]:
    """The parts with those of one kind that follow each other as one."""
    whole: list[Part] = []
    for part in parts:
        match whole[-1:], part:
            case [Text(text)], Text(more):
                whole[-1] = Text(text + more)
            case [Reasoning(text)], Reasoning(more):
                whole[-1] = Reasoning(text + more)
            case [Arguments(text)], Arguments(more):
                whole[-1] = Arguments(text + more)
            case _:
                whole.append(part)
    return whole


def parse(parser: Parser, pieces: Iterable[str]) -> list[Part]:
    parts = [part for piece in pieces for part in parser.push(piece)]
    return merged([*parts, *parser.flush()])


@transcripts
def test_a_transcript_falls_into_its_parts(
    make: Callable[[], Parser], text: str, parts: Sequence[Part]
) -> None:
    assert parse(make(), [text]) == parts


@transcripts
def test_it_does_so_character_by_character(
    make: Callable[[], Parser], text: str, parts: Sequence[Part]
) -> None:
    assert parse(make(), text) == parts
    assert parse(make(), [piece for character in text for piece in (character, "")]) == parts


@transcripts
def test_it_does_so_wherever_it_is_cut(make: Callable[[], Parser], text: str, parts: Sequence[Part]) -> None:
    for first in range(len(text)):
        for second in range(first, len(text)) if len(text) <= SHORT else [first]:
            assert parse(make(), [text[:first], text[first:second], text[second:]]) == parts


# Pieces of calls, of which few make one.
MARKS = sorted({mark for family in FAMILIES.values() for mark in (*family.marks, *family.openers)})
FIELDS = ['{"name": "', '"arguments": {', '"name": "now"', "<parameter=", "city", ">", "</parameter>"]
OTHERS = ["</function>", "```json", "<think>", "</think>", "function", "now", "get", *'",:{}[]()= \n\\a1;<｜']
SHARDS = st.sampled_from([*MARKS, *FIELDS, *OTHERS])


@unhurried
@given(family=st.sampled_from([*FAMILIES]), shards=st.lists(SHARDS, max_size=14), data=st.data())
def test_shards_of_calls_parse_alike_however_they_are_cut(
    family: str, shards: list[str], data: st.DataObject
) -> None:
    text = "".join(shards)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse(FAMILIES[family].parser(TOOLS), [text])
    assert parse(FAMILIES[family].parser(TOOLS), pieces) == whole
    assert parse(FAMILIES[family].parser(TOOLS), text) == whole
    think = Thinking(THINKS[0], FAMILIES[family].parser(TOOLS), opened=False)
    assert parse(think, pieces) == parse(
        Thinking(THINKS[0], FAMILIES[family].parser(TOOLS), opened=False), [text]
    )


@unhurried
@given(family=st.sampled_from([*FAMILIES]), shards=st.lists(SHARDS, max_size=14))
def test_without_a_call_nothing_is_lost(family: str, shards: list[str]) -> None:
    text = "".join(shards)
    parts = parse(FAMILIES[family].parser([Tool("nobody_calls_this")]), shards)
    assert parts == ([Text(text)] if text else [])


@pytest.mark.parametrize("family", FAMILIES)
def test_text_passes_at_once(family: str) -> None:
    parser = FAMILIES[family].parser(TOOLS)
    assert parser.push("The sky") == [Text("The sky")]
    assert parser.push(" is") == [Text(" is")]
    assert parser.push(" ") == []  # a call may follow
    assert parser.push("blue.") == [Text(" blue.")]
    assert parser.flush() == []


def test_arguments_pass_as_they_come() -> None:
    parser = FAMILIES["hermes"].parser(TOOLS)
    assert parser.push('<tool_call>{"name": "get_weather", "arguments": ') == []
    assert parser.push('{"ci') == [CALL, Arguments('{"ci')]
    assert parser.push('ty": "P') == [Arguments('ty": "P')]
    assert parser.push('"}}') == [Arguments('"}')]


def test_a_string_among_tags_passes_as_it_comes() -> None:
    parser = FAMILIES["qwen3_coder"].parser(TOOLS)
    assert parser.push("<tool_call>\n<function=get_weather>\n") == [CALL]
    assert merged(parser.push("<parameter=city>\nPar")) == [Arguments('{"city": "Par')]
    assert parser.push("is\n</para") == [Arguments("is")]
    assert merged(parser.push("meter>\n</function>")) == [Arguments('"}')]


def test_a_python_string_passes_as_it_comes() -> None:
    parser = FAMILIES["pythonic"].parser(TOOLS)
    assert parser.push("[get_weather(ci") == [CALL]
    assert merged(parser.push("ty='Par")) == [Arguments('{"city": "Par')]


def test_no_name_is_told_before_it_is_whole() -> None:
    parser = FAMILIES["mistral_named"].parser(TOOLS)
    assert parser.push("[TOOL_CALLS]get") == []
    assert parser.push("_weather[ARGS]") == []
    assert merged(parser.push("{")) == [CALL, Arguments("{")]


def test_plain_text_is_left_alone() -> None:
    assert parse(PlainText(), ["<tool_call>", "", "[TOOL_CALLS]"]) == [Text("<tool_call>[TOOL_CALLS]")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unit", ["[", '{"a":', '<tool_call>{"arguments":{"a":"', "[TOOL_CALLS][{", "now("])
def test_nesting_without_end_is_text(family: str, unit: str) -> None:
    text = unit * 5_000
    assert parse(FAMILIES[family].parser(TOOLS), [text]) == [Text(text)]
