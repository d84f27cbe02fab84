"""Calls and thinking from the model's own words to Anthropic's client, and back into the conversation."""

from __future__ import annotations

import json

import pytest
from anthropic import AsyncAnthropic

from tests.api.anthropic_shapes import checked_events, checked_message, told

PATH = "/v1/messages"
HI = [{"role": "user", "content": "What is the weather?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}]
ASKED = {"model": "local", "max_tokens": 300, "messages": HI, "tools": TOOLS}
# A template that thinks and calls as many open models do, and shows what it was told of both.
TEMPLATE = """
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
    {{- message.content }}
    {%- for call in message.tool_calls %}
        {{- '<tool_call>' + call.function | tojson + '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""
THOUGHT = {"type": "thinking", "thinking": "They want the weather.", "signature": "unsigned"}
WORDS = {"type": "text", "text": "Let me see."}


def calling(*cities):
    """A model's call for each of the cities."""
    bodies = [json.dumps({"name": "weather", "arguments": {"city": city}}) for city in cities]
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


SPEECH = "<think>\nThey want the weather.\n</think>\n\nLet me see." + calling("Ærøskøbing", 'a"b\\')


@pytest.fixture
async def server(serving):
    """A server whose model thinks, talks and calls twice."""
    async with serving(template=TEMPLATE, script=[SPEECH] * 3, context=2048) as made:
        yield made


@pytest.fixture
async def claude(server, listening):
    async with (
        listening(server.app) as url,
        AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as made,
    ):
        yield made


def cities(content):
    return [block["input"]["city"] for block in content if block["type"] == "tool_use"]


async def test_thinking_words_and_calls_are_blocks_of_their_own(server):
    answer = checked_message((await server.post(PATH, ASKED)).body)
    thought, words, *calls = answer["content"]
    assert (thought, words) == (THOUGHT, WORDS)
    assert [call["name"] for call in calls] == ["weather", "weather"]
    assert cities(calls) == ["Ærøskøbing", 'a"b\\']
    assert len({call["id"] for call in calls}) == 2
    assert answer["stop_reason"] == "tool_use"
    assert 0 < answer["usage"]["output_tokens_details"]["thinking_tokens"] < answer["usage"]["output_tokens"]


async def test_a_stream_of_calls_tells_the_same(server):
    streamed = checked_events((await server.post(PATH, ASKED | {"stream": True})).body)
    whole = checked_message((await server.post(PATH, ASKED)).body)
    ids = dict.fromkeys(("id",))  # which differ from answer to answer
    assert [block | ids for block in told(streamed)] == [block | ids for block in whole["content"]]
    assert streamed[-2]["delta"]["stop_reason"] == "tool_use"
    pieces = [event for event in streamed if event.get("delta", {}).get("type") == "input_json_delta"]
    assert len(pieces) > 4  # as they are generated, not in one piece each


async def test_the_client_puts_a_streamed_call_together_and_sends_its_result(server, claude):
    async with claude.messages.stream(**ASKED) as stream:
        message = await stream.get_final_message()
    assert cities(block.to_dict() for block in message.content) == ["Ærøskøbing", 'a"b\\']
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": f"sunny in {block.input['city']}"}
        for block in message.content
        if block.type == "tool_use"
    ]
    server.script.texts[:] = ["<think>\n\n</think>\n\nIt is sunny."]
    turns = [*HI, message.to_param(), {"role": "user", "content": results}]
    answer = await claude.messages.create(**ASKED | {"messages": turns})
    assert answer.content[-1].text == "It is sunny."
    assert answer.stop_reason == "end_turn"


async def test_what_was_said_comes_back_to_the_model_as_it_said_it(serving, server):
    content = checked_message((await server.post(PATH, ASKED)).body)["content"]
    results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "sunny"} for call in content[2:]]
    turns = [*HI, {"role": "assistant", "content": content}, {"role": "user", "content": results}]
    async with serving(template=TEMPLATE, context=2048) as other:
        await other.post(PATH, ASKED | {"messages": turns, "max_tokens": 1})
        tokens = [token for plan in other.gate.inner.plans for row in plan.rows for token in row.tokens]
    prompt = other.tokenizer.decode(tokens, skip_special=False)
    expected = "<think>They want the weather.</think>Let me see."
    for city in ("Ærøskøbing", 'a"b\\'):
        arguments = json.dumps({"city": city}, ensure_ascii=False)
        expected += '<tool_call>{"name": "weather", "arguments": ' + arguments + "}</tool_call>"
    assert expected + "<|im_end|>\n<|im_start|>tool\nsunny<|im_end|>\n" in prompt


async def test_thinking_can_be_kept_from_the_client(server):
    thinking = {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}
    for stream in (False, True):
        raw = (await server.post(PATH, ASKED | {"thinking": thinking, "stream": stream})).body
        content = told(checked_events(raw)) if stream else checked_message(raw)["content"]
        assert content[0] == THOUGHT | {"thinking": ""}
        assert b"They want" not in raw


NARROW = {"type": "object", "properties": {"city": {"enum": ["Ærø", "Oslo"]}}, "required": ["city"]}
FORMAT = {"type": "json_schema", "schema": NARROW | {"additionalProperties": False}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
async def test_a_call_that_is_asked_for_is_made(serving, choice, stream):
    """The model here has nothing to say: what makes sense is what it is held to."""
    tools = [{"name": "weather", "input_schema": NARROW | {"additionalProperties": False}}]
    choice = choice | {"disable_parallel_tool_use": True}
    asked = ASKED | {"tools": tools, "tool_choice": choice, "stream": stream}
    async with serving() as server:
        raw = (await server.post(PATH, asked)).body
    content = told(checked_events(raw)) if stream else checked_message(raw)["content"]
    assert [block["type"] for block in content] == ["tool_use"]
    assert content[0]["name"] == "weather"
    assert content[0]["input"]["city"] in ("Ærø", "Oslo")
    assert b'"stop_reason":"tool_use"' in raw


@pytest.mark.parametrize("fields", [{"output_config": {"format": FORMAT}}, {"output_format": FORMAT}])
async def test_an_answer_is_held_to_its_format(serving, fields):
    asked = {name: value for name, value in ASKED.items() if name != "tools"}
    async with serving() as server:
        answer = checked_message((await server.post(PATH, asked | fields)).body)
    (block,) = answer["content"]
    assert json.loads(block["text"])["city"] in ("Ærø", "Oslo")


@pytest.mark.parametrize("field", ["output_config.format", "output_format"])
async def test_a_format_that_no_answer_can_be_held_to_is_named(serving, field):
    wanted = {"type": "json_schema", "schema": {"not": {}}}
    fields = {"output_config": {"format": wanted}} if "." in field else {field: wanted}
    async with serving() as server:
        answer = await server.post(PATH, ASKED | {"tools": None} | fields)
    assert answer.status == 400
    assert answer.json()["error"]["message"].startswith(field)


@pytest.mark.parametrize("choice", [{"type": "none"}, {"type": "auto"}])
async def test_words_alone_are_words(serving, choice):
    async with serving(template=TEMPLATE, script=["Hello."]) as server:
        answer = checked_message((await server.post(PATH, ASKED | {"tool_choice": choice})).body)
    assert (answer["content"], answer["stop_reason"]) == ([{"type": "text", "text": "Hello."}], "end_turn")


async def test_a_call_that_max_tokens_cuts_off_is_not_told_as_one_that_can_be_run(serving):
    async with serving(template=TEMPLATE, script=[calling("Ærøskøbing" * 20)] * 2) as server:
        asked = ASKED | {"max_tokens": 60}
        whole = checked_message((await server.post(PATH, asked)).body)
        assert (whole["content"], whole["stop_reason"]) == ([], "max_tokens")
        streamed = checked_events((await server.post(PATH, asked | {"stream": True})).body)
        assert streamed[-2]["delta"]["stop_reason"] == "max_tokens"
