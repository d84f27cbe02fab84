"""What the model is told of a conversation in Anthropic's words."""

from __future__ import annotations

import json

import msgspec
import pytest

from tokenspeed.api.anthropic_prompt import chat_prompt
from tokenspeed.api.anthropic_types import MessagesRequest
from tokenspeed.errors import RequestError

PATH = "/v1/messages"
HI = {"role": "user", "content": "hi"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}}
CALL = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"name": "f", "description": "Does f.", "input_schema": {"type": "object", "properties": {}}}
START = "<|im_start|>assistant\n"


def read(*messages, **fields):
    asked = msgspec.json.decode(json.dumps({"messages": messages} | fields), type=MessagesRequest)
    return chat_prompt(asked, None)


def text(value, **more):
    return {"type": "text", "text": value, **more}


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def result(content=None, **more):
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": content, **more}


def tool(content):
    return {"role": "tool", "tool_call_id": "toolu_1", "content": content, "name": "f"}


def turn(role, content):
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


async def prompt_of(server, messages, **fields) -> str:
    """The prompt as the device got it."""
    answer = await server.post(PATH, {"messages": messages, "max_tokens": 1} | fields)
    assert answer.status == 200, answer.body
    tokens = [token for plan in server.gate.inner.plans for row in plan.rows for token in row.tokens]
    assert answer.json()["usage"]["input_tokens"] == len(tokens)
    return server.tokenizer.decode(tokens, skip_special=False)


@pytest.mark.parametrize(
    "system",
    ["Be brief.", [text("Be brief.", cache_control={"type": "ephemeral"})], [text(""), text("Be brief.")]],
)
async def test_a_system_prompt_comes_first(server, system):
    expected = turn("system", "Be brief.") + turn("user", "hi") + START
    assert await prompt_of(server, [HI], system=system) == expected


@pytest.mark.parametrize("system", [None, "", []])
def test_no_system_prompt_is_no_message(system):
    assert read(HI, system=system).messages == [HI]


@pytest.mark.parametrize("of", ["a1b2", "77ff"])
def test_a_line_for_accounts_is_not_told_to_the_model(of):
    line = f"x-anthropic-billing-header: cc_version=2.1.177; cch={of};"
    expected = [{"role": "system", "content": "You are an agent."}, HI]
    assert read(HI, system=[text(line), text("You are an agent.")]).messages == expected
    assert read(HI, system=f"{line}\nYou are an agent.").messages == expected
    assert read(HI, system=line).messages == [HI]


def test_a_system_turn_joins_the_system_prompt_or_stays_where_it_is():
    told = read(
        {"role": "system", "content": "b"}, HI, {"role": "system", "content": [text("c")]}, system="a"
    )
    assert told.messages == [
        {"role": "system", "content": "a\nb"},
        HI,
        {"role": "system", "content": "c"},
    ]


@pytest.mark.parametrize("content", ["hi", [text("hi")], [text("hi", cache_control=None, citations=[])]])
def test_text_is_text_whatever_it_comes_in(content):
    assert read({"role": "user", "content": content}).messages == [HI]


@pytest.mark.parametrize("content", [None, "", []])
def test_an_empty_turn_is_empty(content):
    assert read({"role": "user", "content": content}).messages == [{"role": "user", "content": ""}]


def test_turns_of_the_same_side_are_one():
    told = read(HI, user(text("there")), assistant(text("a"), USE), assistant(text("b"), USE), user(result()))
    assert told.messages == [
        {"role": "user", "content": "hi\nthere"},
        {"role": "assistant", "content": "a\nb", "tool_calls": [CALL, CALL]},
        tool(""),
    ]


def test_calls_and_thoughts_stand_beside_the_text():
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    told = read(HI, assistant(thinking, {"type": "redacted_thinking", "data": "x"}, text("So"), USE), HI)
    expected = {"role": "assistant", "content": "So", "reasoning_content": "Hm.", "tool_calls": [CALL]}
    assert told.messages[1] == expected


@pytest.mark.parametrize("arguments", [{}, None])
def test_a_call_without_arguments_has_an_empty_object(arguments):
    told = read(HI, assistant(USE | {"input": arguments}), user(result()))
    assert told.messages[1]["tool_calls"][0]["function"]["arguments"] == {}


def test_results_come_first_in_their_order_then_the_text():
    told = read(HI, assistant(USE), user(text("and?"), result("one"), result([text("two")]), text("so?")))
    assert told.messages[2:] == [tool("one"), tool("two"), {"role": "user", "content": "and?\nso?"}]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (result("sunny"), "sunny"),
        (result([text("a"), text("b")]), "a\nb"),
        (result(), ""),
        (result([]), ""),
        (result("no such file", is_error=True), "Error: no such file"),
        (result("Error: no such file", is_error=True), "Error: no such file"),
        (result("<tool_use_error>no</tool_use_error>", is_error=True), "<tool_use_error>no</tool_use_error>"),
        (result(is_error=True), "Error"),
        (result([{"type": "tool_reference", "tool_name": "g"}]), "g"),
        (
            result([{"type": "search_result", "title": "T", "source": "S", "content": [text("x")]}]),
            "T\nS\nx",
        ),
    ],
)
def test_a_result_is_text(given, expected):
    assert read(HI, assistant(USE), user(given)).messages[2:] == [tool(expected)]


def test_a_result_of_a_call_that_is_not_there_has_no_name():
    told = read(user(result("sunny"))).messages
    assert told == [{"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"}]


def test_a_document_of_plain_text_can_be_read():
    source = {"type": "text", "media_type": "text/plain", "data": "Once."}
    told = read(user({"type": "document", "source": source, "title": "Tale"}, text("Why?")))
    assert told.messages == [{"role": "user", "content": "Tale\nOnce.\nWhy?"}]


async def test_a_last_turn_of_the_assistant_is_continued(server):
    told = await prompt_of(server, [HI, {"role": "assistant", "content": [text("Well, I")]}])
    assert told == turn("user", "hi") + START + "Well, I"


def test_a_last_turn_that_calls_cannot_be_continued():
    with pytest.raises(RequestError, match="tool_result"):
        read(HI, assistant(text("So"), USE))


@pytest.mark.parametrize(
    ("thinking", "extra"),
    [
        (None, {}),
        ({"type": "enabled", "budget_tokens": 2048}, {"enable_thinking": True}),
        ({"type": "adaptive", "display": "omitted"}, {"enable_thinking": True}),
        ({"type": "disabled"}, {"enable_thinking": False}),
    ],
)
def test_thinking_is_the_templates_to_switch(thinking, extra):
    assert read(HI, thinking=thinking).extra == extra


async def test_thinking_reaches_the_template(server):
    told = await prompt_of(server, [HI], thinking={"type": "disabled"})
    assert told == turn("user", "hi") + START + "False"


@pytest.mark.parametrize(("effort", "told"), [("low", "low"), ("high", "high"), ("max", "high")])
def test_effort_is_the_templates_to_read(effort, told):
    assert read(HI, output_config={"effort": effort}).extra == {"reasoning_effort": told}


async def test_tools_of_ones_own_are_told_and_others_are_not(server):
    tools = [{"type": "web_search_20250305", "name": "web_search"}, TOOL, TOOL | {"type": "custom"}]
    told = await prompt_of(server, [HI], tools=tools)
    function = {"name": "f", "description": "Does f.", "parameters": TOOL["input_schema"]}
    line = json.dumps({"type": "function", "function": function}) + "\n"
    assert told == f"<|im_start|>tools\n{line}{line}<|im_end|>\n" + turn("user", "hi") + START


async def test_tools_that_may_not_be_called_are_not_told(server):
    told = await prompt_of(server, [HI], tools=[TOOL], tool_choice={"type": "none"})
    assert told == turn("user", "hi") + START
