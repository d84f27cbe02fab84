"""Whatever is sent as a message: an answer or a 4xx in Anthropic's shape that names the field."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.anthropic_shapes import ERROR, checked, checked_events, checked_message
from tokenspeed.api.anthropic_types import MessagesRequest
from tokenspeed.generation.request import Limits

PATHS = ("/v1/messages", "/v1/messages/count_tokens")
HI = {"role": "user", "content": "hi"}
ASKED = {"max_tokens": 4, "messages": [HI]}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
FIRST = "messages[0].content[0]"


def user(*blocks):
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def result(content):
    return user({"type": "tool_result", "tool_use_id": "t", "content": content})


# What is wrong, and what the message must hold of it.
WRONG = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [None]}, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [HI, {"role": "user", "content": 3}]}, "messages[1].content"),
    ({"messages": [{"role": "user", "content": "raise"}]}, "no such word"),
    ({"messages": [HI, {"role": "assistant", "content": [USE]}]}, "tool_result"),
    (user(None), FIRST),
    (user({}), f"{FIRST}.type"),
    (user({"type": None}), f"{FIRST}.type"),
    (user({"type": "video"}), f"{FIRST}.type: Invalid value 'video'"),
    (user({"type": "text"}), f"{FIRST}.text"),
    (user({"type": "text", "text": None}), f"{FIRST}.text"),
    (user({"type": "image", "source": {"type": "base64"}}), f"{FIRST}.type: 'image' is not supported"),
    (user({"type": "document", "source": {"type": "base64", "data": ""}}), "reads text only"),
    (user({"type": "document"}), "reads text only"),
    (user({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}), "server_tool_use"),
    (user(USE), "tool_use"),
    (user(USE | {"input": "x"}), f"{FIRST}.input"),
    (user(USE | {"name": None}), f"{FIRST}.name"),
    (user({"type": "tool_result"}), f"{FIRST}.tool_use_id"),
    (result(7), f"{FIRST}.content"),
    (result([{"type": "image"}]), f"{FIRST}.content[0].type: 'image' is not supported"),
    (result([{"type": "tool_use"}]), f"{FIRST}.content[0].type"),
    (
        {"messages": [HI, {"role": "assistant", "content": result("x")["messages"][0]["content"]}]},
        "tool_result",
    ),
    ({"system": 7}, "system"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"system": [{"type": "text"}]}, "system[0].text"),
    ({"tools": {}}, "tools"),
    ({"tools": [None]}, "tools[0]"),
    ({"tools": [{}]}, "tools[0].name"),
    ({"tools": [{"name": "two words"}]}, "tools[0].name"),
    ({"tools": [TOOL | {"input_schema": "x"}]}, "tools[0].input_schema"),
    ({"tools": [TOOL | {"description": 7}]}, "tools[0].description"),
    ({"tools": [TOOL] * 2000}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": {"type": "any"}}, "no tool to call"),
    ({"tool_choice": {"type": "tool", "name": "f"}}, "'f'"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "'g'"),
    ({"tools": [TOOL], "tool_choice": {"type": "often"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": ["auto"]}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}}, "parallel"),
    ({"thinking": True}, "thinking"),
    ({"thinking": {"type": "a bit"}}, "thinking.type"),
    ({"thinking": {"type": []}}, "thinking.type"),
    ({"thinking": {"budget_tokens": 2000}}, "thinking.type"),
    ({"output_config": []}, "output_config"),
    ({"output_config": {"effort": 1}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"output_format": {"type": "json_schema", "schema": []}}, "output_format.schema"),
    ({"model": 7}, "model"),
    ({"stream": "yes"}, "stream"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"stop_sequences": [1]}, "stop_sequences[0]"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_k": 0.5}, "top_k"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
]
# What matters only where something is generated.
UNFIT = [
    ({"max_tokens": None}, "max_tokens is required"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": -(10**3000)}, "max_tokens"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 10**30}, "top_k"),
]
CASES = [*((path, *case) for case in WRONG for path in PATHS), *((PATHS[0], *case) for case in UNFIT)]
RAW = [b"", b"{", b"null", b"[]", b"7", b"[" * 100_000, b'{"messages": "\xff"}', b'{"max_tokens": NaN}']


def refused(answer, words=""):
    assert 400 <= answer.status < 500, answer.body
    error = checked(ERROR, answer.body)["error"]
    assert words in error["message"], error
    assert ".py" not in error["message"]
    return error["type"]


@pytest.mark.parametrize(("path", "fields", "words"), CASES)
async def test_what_is_wrong_is_named(server, path, fields, words):
    for stream in (False, True):
        answer = await server.post(path, ASKED | {"stream": stream} | fields)
        assert refused(answer, words) == "invalid_request_error"
    assert server.idle()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", RAW)
async def test_what_is_no_request_is_told(server, path, body):
    assert refused(await server.post(path, body)) == "invalid_request_error"


async def test_a_lone_surrogate_is_told_where_it_is(server):
    body = b'{"max_tokens": 1, "messages": [{"role": "user", "content": "\\ud800"}]}'
    refused(await server.post(PATHS[0], body), "messages[0].content")


async def test_max_tokens_must_be_there(server):
    refused(await server.post(PATHS[0], {"messages": [HI]}), "max_tokens is required")


async def test_null_is_absent_everywhere(server):
    optional = set(MessagesRequest.__struct_fields__) - {"messages", "max_tokens"}
    blocks = [
        {"type": "text", "text": "a", "citations": None, "cache_control": None},
        {"type": "thinking", "thinking": None, "signature": None},
        {"type": "tool_result", "tool_use_id": "t", "content": None, "is_error": None},
        {"type": "search_result", "content": None, "source": None, "title": None},
    ]
    turns = [{"role": "user", "content": blocks}, {"role": "user", "content": None}]
    nothing = {"output_config": {"format": None, "effort": None}}
    tools = {"tools": [{"type": None, "name": "f", "description": None, "input_schema": None}]}
    for fields in (dict.fromkeys(optional), nothing, tools, {"messages": turns}):
        answer = await server.post(PATHS[0], ASKED | fields)
        assert answer.status == 200, answer.body


async def test_what_other_servers_know_is_ignored(server):
    fields = {
        "metadata": {"user_id": "me"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": []},
        "mcp_servers": [],
        "container": None,
        "tools": [
            {"type": "web_search_20250305", "name": "web_search"},
            {"type": "bash_20250124", "name": "b"},
        ],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "summarized"},
        "no_such": [1],
    }
    checked_message((await server.post(PATHS[0], ASKED | fields)).body)


@pytest.mark.parametrize("path", ["/messages", "//v1//messages/", "/v1/messages"])
async def test_a_path_is_taken_as_clients_write_it(server, path):
    checked_message((await server.post(path, ASKED)).body)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(["", "a", "\ud800", "raise"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KINDS = [
    "text",
    "thinking",
    "redacted_thinking",
    "tool_use",
    "tool_result",
    "image",
    "document",
    "search_result",
    "x",
]
FIELDS = {
    "text": SCALARS,
    "thinking": SCALARS,
    "id": SCALARS,
    "name": SCALARS,
    "input": ANYTHING,
    "tool_use_id": st.just("t") | SCALARS,
    "content": ANYTHING | st.just([{"type": "text", "text": "a"}]),
    "is_error": SCALARS,
    "source": ANYTHING | st.just({"type": "text", "data": "a"}),
    "title": SCALARS,
}
BLOCKS = st.lists(st.fixed_dictionaries({"type": st.sampled_from(KINDS)}, optional=FIELDS), max_size=3)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"])}, optional={"content": BLOCKS | SCALARS}
    ),
    max_size=4,
)
# Of a thread the error has a field that is in the beta of the API alone.
OWN = {"messages", "max_tokens", "thread"}
KNOWN = st.sampled_from(sorted(set(MessagesRequest.__struct_fields__) - OWN))


@settings(max_examples=200, deadline=None)
@given(turns=TURNS | ANYTHING, fields=st.dictionaries(KNOWN, ANYTHING, max_size=2), stream=st.booleans())
def test_no_message_is_a_failure_of_ours(serving, turns, fields, stream):
    async def run():
        async with serving(limits=Limits(max_tokens=4)) as server:
            body = json.dumps({"max_tokens": 9, "stream": stream, **fields, "messages": turns}).encode()
            for path in PATHS:
                answer = await server.post(path, body)
                if answer.status != 200:
                    refused(answer)
                elif path == PATHS[0] and answer.headers["content-type"].startswith("text/event-stream"):
                    assert checked_events(answer.body)[-1]["type"] == "message_stop"
                elif path == PATHS[0]:
                    checked_message(answer.body)
            assert server.idle()

    asyncio.run(run())
