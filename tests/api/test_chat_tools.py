"""Thinking, text and calls of a chat's answer, in one piece and in chunks as OpenAI's types want them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.api.conftest import TEMPLATE

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = {"messages": HI, "tools": [WEATHER, CLOCK]}
THINKS = TEMPLATE + "{#- <think></think> #}"
OPENS = THINKS.replace("assistant\n", "assistant\n<think>\n")


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@dataclass
class Said:
    """What a client makes of one choice."""

    text: str | None = None
    thoughts: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    legacy: tuple[str, str] | None = None
    reason: str | None = None


async def whole(server, body) -> tuple[list[Said], Any]:
    answer = await server.post(PATH, body)
    assert answer.status == 200, answer.body
    completion = ChatCompletion.model_validate_json(answer.body, strict=True)
    told = []
    for index, choice in enumerate(completion.choices):
        assert choice.index == index
        message = choice.message
        calls = message.tool_calls or []
        legacy = message.function_call
        told.append(
            Said(
                message.content,
                (message.model_extra or {}).get("reasoning_content", ""),
                [(each.function.name, each.function.arguments) for each in calls],
                [each.id for each in calls],
                legacy and (legacy.name, legacy.arguments),
                choice.finish_reason,
            )
        )
    return told, completion.usage


async def streamed(server, body) -> tuple[list[Said], Any]:
    """The same, of chunks, each of which must be what OpenAI's are."""
    more = {"stream": True, "stream_options": {"include_usage": True}}
    answer = await server.post(PATH, body | more)
    assert answer.status == 200, answer.body
    lines = [line.removeprefix("data: ") for line in answer.body.decode().split("\n") if line]
    assert lines.pop() == "[DONE]"
    told: dict[int, Said] = {}
    chunks = [ChatCompletionChunk.model_validate_json(line, strict=True) for line in lines]
    assert not chunks[-1].choices
    for chunk in chunks[:-1]:
        [choice] = chunk.choices
        delta = choice.delta
        assert (delta.role == "assistant") == (choice.index not in told)
        said = told.setdefault(choice.index, Said())
        assert said.reason is None, "nothing follows the end"
        if delta.content is not None:
            said.text = (said.text or "") + delta.content
        said.thoughts += (delta.model_extra or {}).get("reasoning_content", "")
        for part in delta.tool_calls or []:
            assert part.function is not None
            if part.id is not None:
                assert (part.index, part.type) == (len(said.calls), "function")
                assert part.function.name
                said.ids.append(part.id)
                said.calls.append((part.function.name, part.function.arguments or ""))
            else:
                assert part.index == len(said.calls) - 1
                assert part.function.name is None
                name, arguments = said.calls[-1]
                said.calls[-1] = (name, arguments + (part.function.arguments or ""))
        if (legacy := delta.function_call) is not None:
            name, arguments = said.legacy or (legacy.name or "", "")
            assert (legacy.name is not None) == (said.legacy is None)
            said.legacy = (name, arguments + (legacy.arguments or ""))
        said.reason = choice.finish_reason
    return [told[index] for index in sorted(told)], chunks[-1].usage


async def said(serving, texts, body, **how) -> tuple[list[Said], Any]:
    """What both ways tell, which is the same but for ids."""
    async with serving(script=[*texts, *texts], **how) as server:
        told, usage = await whole(server, body)
        chunks, again = await streamed(server, body)
        assert server.idle()
    for one, other in zip(told, chunks, strict=True):
        assert len(one.ids) == len(set(one.ids)) == len(other.ids)
        assert not set(one.ids) & set(other.ids)
        assert (one.text or "", one.thoughts, one.calls, one.legacy, one.reason) == (
            (other.text or ""),
            other.thoughts,
            other.calls,
            other.legacy,
            other.reason,
        )
    assert usage.completion_tokens == again.completion_tokens
    assert usage.completion_tokens_details == again.completion_tokens_details
    return told, usage


ANSWERS = {
    "text alone": ("Grüße, 🙂", "Grüße, 🙂", [], "stop"),
    "a call": (
        call("weather", '{"city": "Køln 🙂"}'),
        None,
        [("weather", '{"city": "Køln 🙂"}')],
        "tool_calls",
    ),
    "a call without arguments": (call("clock", "{}"), None, [("clock", "{}")], "tool_calls"),
    "text and a call": (
        "Let me see.\n" + call("clock", "{}"),
        "Let me see.",
        [("clock", "{}")],
        "tool_calls",
    ),
    "calls": (
        call("weather", '{"city": "a"}')
        + "\n"
        + call("weather", '{"city": "b"}')
        + "\n"
        + call("clock", "{}"),
        None,
        [("weather", '{"city": "a"}'), ("weather", '{"city": "b"}'), ("clock", "{}")],
        "tool_calls",
    ),
    "nesting and escapes": (
        call("weather", '{"city": "\\"}</tool_call>\\\\", "more": [{"a": {}}]}'),
        None,
        [("weather", '{"city": "\\"}</tool_call>\\\\", "more": [{"a": {}}]}')],
        "tool_calls",
    ),
    "a function that there is not": (call("fly", "{}"), call("fly", "{}"), [], "stop"),
    "no JSON": ("<tool_call>\nnothing\n</tool_call>", "<tool_call>\nnothing\n</tool_call>", [], "stop"),
    "an opener at the end": ("See <tool_call>", "See <tool_call>", [], "stop"),
    "half an opener": ("See <tool_ca", "See <tool_ca", [], "stop"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_told_as_text_and_calls(serving, name):
    script, text, calls, reason = ANSWERS[name]
    [told], usage = await said(serving, [script], TOOLS)
    assert (told.text, told.calls, told.reason) == (text, calls, reason)
    assert usage.completion_tokens_details.reasoning_tokens == 0


async def test_without_tools_a_call_is_text(serving):
    script = call("clock", "{}")
    for body in ({"messages": HI}, TOOLS | {"tool_choice": "none"}):
        [told], _ = await said(serving, [script], body)
        assert (told.text, told.calls, told.reason) == (script, [], "stop")


@pytest.mark.parametrize("most", range(1, 60, 4))
async def test_a_call_that_is_cut_is_told_as_far_as_it_came(serving, most):
    script = "Hm. " + call("weather", '{"city": "Copenhagen"}')
    [told], usage = await said(serving, [script], TOOLS | {"max_tokens": most})
    assert usage.completion_tokens == most
    assert told.reason == "length"
    for name, arguments in told.calls:
        assert name == "weather"
        assert '{"city": "Copenhagen"}'.startswith(arguments)
    assert "Hm. <tool_call>\n".startswith(told.text or "") or not told.calls


async def test_older_clients_get_one_function_call(serving):
    body = {"messages": HI, "functions": [WEATHER["function"]], "function_call": {"name": "weather"}}
    [told], _ = await said(serving, [call("weather", '{"city": "x"}')], body)
    assert told.legacy == ("weather", '{"city": "x"}')
    assert (told.text, told.calls, told.reason) == (None, [], "function_call")


async def test_older_clients_get_text_where_nothing_was_called(serving):
    [told], _ = await said(serving, ["No."], {"messages": HI, "functions": [WEATHER["function"]]})
    assert (told.text, told.legacy, told.reason) == ("No.", None, "stop")


@pytest.mark.parametrize("front", ["<think>\n", "\n<think>"])
@pytest.mark.parametrize("tools", [{}, {"tools": [CLOCK]}])
async def test_thinking_is_told_apart_and_counted(serving, tokenizer, front, tools):
    thoughts = "I could <tool_call> it.\nOr not."
    script = f"{front}{thoughts}\n</think>\n\nNo."
    [told], usage = await said(serving, [script], {"messages": HI} | tools, template=THINKS)
    assert (told.text, told.thoughts, told.calls, told.reason) == ("No.", thoughts, [], "stop")
    least = len(tokenizer.encode(thoughts, add_special=False))
    assert least <= usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


async def test_thinking_that_the_prompt_opened_needs_no_mark(serving):
    script = "Hm.</think>\n\n" + call("clock", "{}")
    [told], usage = await said(serving, [script], TOOLS, template=OPENS)
    assert (told.text, told.thoughts, told.calls, told.reason) == (
        None,
        "Hm.",
        [("clock", "{}")],
        "tool_calls",
    )
    assert usage.completion_tokens_details.reasoning_tokens > 0


async def test_an_answer_that_is_cut_amid_its_thinking_is_all_thinking(serving):
    [told], usage = await said(
        serving, ["<think>A long story."], {"messages": HI, "max_tokens": 12}, template=THINKS
    )
    assert told.thoughts
    assert "A long story.".startswith(told.thoughts)
    assert (told.text or "", told.reason) == ("", "length")
    assert usage.completion_tokens_details.reasoning_tokens > 0


async def test_an_answer_without_thinking_has_none(serving):
    [told], usage = await said(serving, ["Plain."], {"messages": HI}, template=THINKS)
    assert (told.text, told.thoughts) == ("Plain.", "")
    assert usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize(
    ("stop", "text", "calls"),
    [
        (" STOP", "Let me", []),
        ("Copen", "Let me STOP see.", [("weather", '{"city": "')]),
        ("</tool_call>", "Let me STOP see.", [("weather", '{"city": "Copenhagen"}')]),
        ("<tool_call>", "Let me STOP see.\n", []),
    ],
)
async def test_a_stop_string_ends_the_answer_wherever_it_is(serving, stop, text, calls):
    script = "Let me STOP see.\n" + call("weather", '{"city": "Copenhagen"}')
    [told], _ = await said(serving, [script], TOOLS | {"stop": [stop]})
    assert (told.text, told.calls, told.reason) == (text, calls, "stop")


async def test_each_choice_is_told_for_itself(serving):
    texts = [call("clock", "{}"), "No.", call("weather", '{"city": "x"}')]
    told, usage = await said(serving, texts, TOOLS | {"n": 3})
    assert [each.reason for each in told] == ["tool_calls", "stop", "tool_calls"]
    assert [each.text for each in told] == [None, "No.", None]
    assert [each.calls for each in told] == [[("clock", "{}")], [], [("weather", '{"city": "x"}')]]
    assert usage.completion_tokens > 20


async def test_log_probabilities_are_of_the_text_alone(serving, tokenizer):
    script = "Wait: " + call("clock", "{}")
    async with serving(script=[script]) as server:
        [choice] = (await server.post(PATH, TOOLS | {"logprobs": True})).json()["choices"]
    spelled = b"".join(bytes(each["bytes"]) for each in choice["logprobs"]["content"])
    assert spelled.startswith(b"Wait:")
    assert choice["finish_reason"] == "tool_calls"


async def test_the_official_client_reads_a_stream_of_calls(serving, listening):
    script = "Sure.\n" + call("weather", '{"city": "x"}') + "\n" + call("clock", "{}")
    async with (
        serving(script=[script]) as server,
        listening(server.app) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
        client.chat.completions.stream(model="local", messages=HI, tools=[WEATHER, CLOCK]) as stream,
    ):
        final = await stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == "Sure."
    assert [each.function.name for each in message.tool_calls or []] == ["weather", "clock"]
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "x"}


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        (TOOLS | {"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice", "'fly'"),
        ({"messages": HI, "tool_choice": "required"}, "tool_choice", "no tool to call"),
        (TOOLS | {"tool_choice": "sometimes"}, "tool_choice", '"auto"'),
        ({"messages": HI, "tools": [{"type": "function"}]}, "tools[0].function", "an object with a name"),
        ({"messages": HI, "tools": [CLOCK] * 1025}, "tools", "1025"),
        (
            {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "is required",
        ),
        (
            {"messages": HI, "response_format": {"type": "json_object"}, "guided_regex": "a"},
            "response_format",
            "guided_regex",
        ),
        ({"messages": HI, "guided_grammar": "root ::= [["}, "guided_grammar", "cannot be read as GBNF"),
        ({"messages": HI, "guided_regex": "(a"}, "guided_regex", "invalid regex"),
        ({"messages": HI, "guided_regex": "a" * 40_000}, "guided_regex", "too large"),
        ({"messages": HI, "guided_choice": []}, "guided_choice", "must be a list of texts"),
        (
            {
                "messages": HI,
                "tools": [
                    {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}
                ],
            },
            "tools",
            "not",
        ),
    ],
)
async def test_what_cannot_be_asked_is_refused_by_its_field(server, body, param, why):
    answer = await server.post(PATH, body)
    assert answer.status == 400
    assert answer.error["param"] == param
    assert why in answer.error["message"]


@pytest.mark.parametrize("depth", [150, 900, 5000])
async def test_a_schema_of_any_depth_is_answered(server, depth):
    nested = b'{"items":' * depth + b"{}" + b"}" * depth
    asked = b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":3,'
    form = b'"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":' + nested + b"}}}"
    assert (await server.post(PATH, asked + form)).status == 400
    tools = b'"tools":[{"type":"function","function":{"name":"f","parameters":' + nested + b"}}]}"
    assert (await server.post(PATH, asked + tools)).status in (200, 400)
