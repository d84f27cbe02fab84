"""Items become the messages that templates know; what cannot is told by its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenspeed.api.endpoint import Asking
from tokenspeed.api.keys import ANYONE
from tokenspeed.api.responses import ResponsesDialect
from tokenspeed.api.responses_input import Conversation
from tokenspeed.api.responses_store import Record, ResponseStore
from tokenspeed.errors import RequestError
from tokenspeed.generation.outputs import CallDelta, CallStart, Delta, Ended, ReasoningDelta, Usage
from tokenspeed.generation.request import ChatPrompt, GenerationRequest

PATH = "/v1/responses"
INVALID, TYPE, MISSING = "invalid_value", "invalid_type", "missing_required_parameter"
UNSUPPORTED, NO_TEXT = "unsupported_parameter", "unsupported_content"


def messages(*items: dict[str, Any], instructions: str | None = None) -> list[dict[str, Any]]:
    conversation = Conversation(instructions)
    for index, item in enumerate(items):
        conversation.add(f"input[{index}]", item)
    return conversation.messages()


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def called(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def read(asked: dict[str, Any], store: ResponseStore | None = None) -> GenerationRequest:
    dialect = ResponsesDialect(store)
    body = json.dumps({"input": "hi", **asked}).encode()
    return dialect.read(dialect.decoder.decode(body), Asking(body, "m", ANYONE)).request


def prompt_of(request: GenerationRequest) -> ChatPrompt:
    (prompt,) = request.prompts
    assert isinstance(prompt, ChatPrompt)
    return prompt


@pytest.mark.parametrize(
    "content",
    [
        "a\nb",
        [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        [{"type": "text", "text": "a"}, {"type": "output_text", "text": "b", "annotations": []}],
        ["a", {"type": "refusal", "refusal": "b"}],
    ],
)
def test_text_comes_in_one_piece_or_in_parts(content: Any) -> None:
    assert messages({"type": "message", **user(content)}) == messages(user(content)) == [user("a\nb")]


def test_what_an_assistant_does_in_a_row_is_one_message() -> None:
    assert messages(
        user("Weather?"),
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I look."}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "no"}]},
        {"type": "message", "role": "assistant", "content": "It is sunny."},
        user("Thanks"),
    ) == [
        user("Weather?"),
        {
            "role": "assistant",
            "content": "Wait.",
            "reasoning_content": "I look.",
            "tool_calls": [called("c1", "f", {"x": 1}), called("c2", "g", {})],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "name": "g", "content": "no"},
        {"role": "assistant", "content": "It is sunny."},
        user("Thanks"),
    ]


def test_all_of_the_thinking_goes_before_a_summary_of_it() -> None:
    summary = [{"type": "summary_text", "text": "short"}]
    item = {"type": "reasoning", "summary": summary, "content": [{"type": "reasoning_text", "text": "long"}]}
    assert messages(item)[0]["reasoning_content"] == "long"


def test_thinking_that_another_server_sealed_is_left_out() -> None:
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
    assert messages(sealed, {**sealed, "encrypted_content": "tokenspeed:%%%"}) == []


def test_the_system_has_one_message_in_front() -> None:
    items = [{"role": "developer", "content": "b"}, user("hi"), {"role": "system", "content": "c"}]
    assert messages(*items, instructions="a") == [
        {"role": "system", "content": "a\n\nb"},
        user("hi"),
        {"role": "system", "content": "c"},
    ]


@pytest.mark.parametrize(
    ("call", "name", "arguments"),
    [
        (
            {"type": "custom_tool_call", "name": "patch", "input": "*** Begin"},
            "patch",
            {"input": "*** Begin"},
        ),
        (
            {"type": "local_shell_call", "action": {"type": "exec", "command": ["ls"]}},
            "local_shell",
            {"type": "exec", "command": ["ls"]},
        ),
        ({"type": "shell_call", "action": {"commands": ["ls"]}}, "shell", {"commands": ["ls"]}),
        (
            {"type": "function_call", "namespace": "files", "name": "read", "arguments": "{}"},
            "files__read",
            {},
        ),
        (
            {"type": "function_call", "namespace": "mcp__a__", "name": "b", "arguments": "{}"},
            "mcp__a__b",
            {},
        ),
        ({"type": "function_call", "name": "f", "arguments": "not json"}, "f", "not json"),
    ],
)
def test_every_kind_of_call_is_one_of_a_function(call: dict[str, Any], name: str, arguments: Any) -> None:
    (message,) = messages({"call_id": "c", **call})
    assert message["tool_calls"] == [called("c", name, arguments)]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ({"type": "function_call_output", "output": None}, ""),
        ({"type": "function_call_output", "output": {"content": "x"}}, '{"content":"x"}'),
        ({"type": "custom_tool_call_output", "output": "Done!"}, "Done!"),
        ({"type": "local_shell_call_output", "output": "README"}, "README"),
        ({"type": "shell_call_output", "output": [{"stdout": "a", "stderr": "b"}, {"stdout": ""}]}, "a\nb"),
        ({"type": "apply_patch_call_output", "status": "completed"}, "completed"),
    ],
)
def test_every_kind_of_output_is_a_tools_text(output: dict[str, Any], text: str) -> None:
    assert messages({"call_id": "c", **output}) == [{"role": "tool", "tool_call_id": "c", "content": text}]


def test_what_another_server_did_by_itself_is_left_out() -> None:
    assert messages(user("hi"), {"type": "web_search_call", "id": "ws_1", "status": "completed"}) == [
        user("hi")
    ]


def test_thinking_and_calls_that_were_kept_come_back(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, most_bytes=2**20, max_age=60.0)
    dialect = ResponsesDialect(store)
    tools = [{"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "f"}]}]
    body = json.dumps({"input": "hi", "tools": tools}).encode()
    writer = dialect.read(dialect.decoder.decode(body), Asking(body, "m", ANYONE)).writer
    usage = Usage(1, 1, 0)
    writer.start(usage)
    outputs = [ReasoningDelta(0, "Hm."), Delta(0, "Wait."), CallStart(0, 0, "c1", "ns__f")]
    writer.write([*outputs, CallDelta(0, 0, '{"x": 1}'), Ended(0, "tool_calls", None)], lambda: usage)
    writer.end(usage)
    store.save("", Record(writer.final, [{"id": "i", **user("hi")}]))
    more = [{"type": "function_call_output", "call_id": "c1", "output": "1"}]
    again = read({"previous_response_id": writer.final["id"], "input": more}, store)
    assert prompt_of(again).messages == [
        user("hi"),
        {
            "role": "assistant",
            "content": "Wait.",
            "reasoning_content": "Hm.",
            "tool_calls": [called("c1", "ns__f", {"x": 1})],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "ns__f", "content": "1"},
    ]


def test_fields_of_the_request_are_those_of_the_generation() -> None:
    asked = {
        "max_output_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_logprobs": 3,
        "top_k": 9,
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "name": "f"}],
        "tool_choice": {"type": "function", "name": "f"},
        "reasoning": {"effort": "high"},
    }
    request = read(asked)
    assert (request.max_tokens, request.logprobs) == (7, 3)
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.5, 0.25, 9)
    assert request.tools is not None
    assert (request.tools.only, request.tools.parallel) == ("f", False)
    assert prompt_of(request).extra == {"reasoning_effort": "high"}
    assert prompt_of(read({"reasoning": {"effort": "none"}})).extra == {"enable_thinking": False}


@pytest.mark.parametrize(("choice", "many"), [("required", True), ({"type": "function", "name": "f"}, False)])
def test_a_function_that_is_named_is_called_once(choice: object, many: bool) -> None:
    asked = {"tools": [{"type": "function", "name": "f"}], "parallel_tool_calls": True}
    request = read(asked | {"tool_choice": choice})
    assert request.tools is not None
    assert request.tools.parallel is many


def test_a_function_in_a_namespace_can_be_chosen() -> None:
    tools = [{"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "f"}]}]
    request = read({"tools": tools, "tool_choice": {"type": "function", "name": "f", "namespace": "ns"}})
    assert request.tools is not None
    assert request.tools.only == "ns__f"


def test_a_format_is_asked_for_beside_the_text() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    given = {"type": "json_schema", "name": "A", "schema": schema, "strict": True}
    request = read({"text": {"format": given, "verbosity": "low"}})
    assert request.format is not None
    assert read({"text": {"format": {"type": "text"}}}).format is None


def test_null_is_absence_and_the_unknown_is_ignored() -> None:
    fields = ResponsesDialect.decoder.type.__struct_fields__
    nothing = {name: None for name in fields if name != "input"} | {"client_metadata": {}, "new_one": [1]}
    request, plain = read(nothing), read({})
    assert (request.sampling, request.max_tokens, request.prompts) == (
        plain.sampling,
        plain.max_tokens,
        plain.prompts,
    )


def item(value: Any) -> dict[str, Any]:
    return {"input": [user("hi"), value]}


CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "x"}
CASES = [
    ({"input": None}, "input", MISSING),
    ({"input": 7}, "input", TYPE),
    ({"input": ["hi"]}, "input[0]", TYPE),
    (item({"type": "telepathy"}), "input[1].type", INVALID),
    (item({"type": 3}), "input[1].type", INVALID),
    (item({"type": ["message"]}), "input[1].type", INVALID),
    (item({}), "input[1].role", INVALID),
    (item({"role": "wizard", "content": "x"}), "input[1].role", INVALID),
    (item({"role": ["user"], "content": "x"}), "input[1].role", INVALID),
    (item({"role": "user", "content": 7}), "input[1].content", INVALID),
    (item(user([7])), "input[1].content[0]", INVALID),
    (item(user([{"text": "x"}])), "input[1].content[0]", INVALID),
    (item(user([{"type": "input_text"}])), "input[1].content[0].text", INVALID),
    (item(user([{"type": "input_image", "image_url": "x"}])), "input[1].content[0].type", NO_TEXT),
    (item(user([{"type": "input_file", "file_id": "x"}])), "input[1].content[0].type", NO_TEXT),
    (item(user([{"type": "smell"}])), "input[1].content[0].type", NO_TEXT),
    (item({**OUTPUT, "output": [{"type": "input_image"}]}), "input[1].output[0].type", NO_TEXT),
    (item({**OUTPUT, "output": 7}), "input[1].output", INVALID),
    (item({**OUTPUT, "call_id": 7}), "input[1].call_id", INVALID),
    (item({**CALL, "call_id": None}), "input[1].call_id", INVALID),
    (item({**CALL, "name": None}), "input[1].name", INVALID),
    (item({**CALL, "arguments": [1]}), "input[1].arguments", INVALID),
    (item({"type": "custom_tool_call", "call_id": "c", "name": "f", "input": {}}), "input[1].input", INVALID),
    (item({"type": "reasoning", "summary": 7}), "input[1].summary", INVALID),
    (item({"type": "item_reference"}), "input[1].id", INVALID),
    (item({"type": "item_reference", "id": "msg_1"}), "input[1].id", "item_not_found"),
    (item({"id": "msg_" + "0" * 24 + "o0"}), "input[1].id", "item_not_found"),
    ({"previous_response_id": "resp_" + "0" * 24}, "previous_response_id", "previous_response_not_found"),
    ({"previous_response_id": "../../x"}, "previous_response_id", "previous_response_not_found"),
    ({"previous_response_id": 7}, "previous_response_id", TYPE),
    ({"background": True}, "background", UNSUPPORTED),
    ({"conversation": "conv_1"}, "conversation", UNSUPPORTED),
    ({"conversation": {"id": "conv_1"}}, "conversation", UNSUPPORTED),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", UNSUPPORTED),
    ({"truncation": "auto"}, "truncation", UNSUPPORTED),
    ({"n": 2}, "n", INVALID),
    ({"instructions": 7}, "instructions", TYPE),
    ({"max_output_tokens": 0}, "max_output_tokens", INVALID),
    ({"max_output_tokens": 401}, "max_output_tokens", INVALID),
    ({"max_output_tokens": "9"}, "max_output_tokens", TYPE),
    ({"temperature": 3}, "temperature", INVALID),
    ({"top_p": -1}, "top_p", INVALID),
    ({"top_logprobs": 21}, "top_logprobs", INVALID),
    ({"include": "all"}, "include", TYPE),
    ({"metadata": {"a": 1}}, "metadata[...]", TYPE),
    ({"reasoning": {"effort": 3}}, "reasoning.effort", TYPE),
    ({"text": {"format": "json"}}, "text.format", TYPE),
    ({"text": {"format": {"type": "yaml"}}}, "text.format.type", INVALID),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", MISSING),
    (
        {"text": {"format": {"type": "json_object"}}, "response_format": {"type": "json_object"}},
        "text.format",
        INVALID,
    ),
    ({"tools": {}}, "tools", TYPE),
    ({"tools": [7]}, "tools[0]", TYPE),
    ({"tools": [{"type": "function"}]}, "tools[0].name", INVALID),
    ({"tools": [{"type": "function", "name": "f", "parameters": 7}]}, "tools[0].parameters", INVALID),
    ({"tools": [{"type": "namespace", "tools": []}]}, "tools[0].name", INVALID),
    ({"tools": [{"type": "namespace", "name": "n", "tools": 7}]}, "tools[0].tools", INVALID),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [7]}]}, "tools[0].tools[0]", INVALID),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [{}]}]}, "tools[0].tools[0].name", INVALID),
    (
        {"tools": [{"type": "namespace", "name": "{n}", "tools": [{"name": "f"}]}]},
        "tools[0].tools[0].name",
        INVALID,
    ),
    ({"tools": [{}] * 1025}, "tools", INVALID),
    ({"tool_choice": "required"}, "tool_choice", INVALID),
    ({"tool_choice": "often"}, "tool_choice", INVALID),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice", INVALID),
    ({"tool_choice": {"type": "function", "name": "g"}}, "tool_choice", INVALID),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", None),
    ({"input": "raise"}, "messages", None),
]


@pytest.mark.parametrize(("body", "param", "code"), CASES)
async def test_a_wrong_field_is_named(server, body, param, code):
    for stream in (False, True):
        answer = await server.post(PATH, {"stream": stream, "input": "hi"} | body)
        assert answer.status == 400, answer.body
        assert (answer.error["param"], answer.error["code"]) == (param, code), answer.error
        assert answer.error["type"] == "invalid_request_error"
        assert param.partition("[...")[0] in answer.error["message"] or code is None
    assert server.idle()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"input": "\\ud800"}', b'{"input": ' + b"[" * 100_000])
async def test_what_is_no_json_is_told(server, body):
    assert (await server.post(PATH, body)).status == 400


def test_an_item_that_was_kept_and_cannot_be_read_any_more_is_told_by_the_field_that_led_to_it(
    tmp_path: Path,
) -> None:
    store = ResponseStore(tmp_path, most_bytes=2**20, max_age=60.0)
    response_id = "resp_" + "0" * 24
    store.save("", Record({"id": response_id, "output": []}, [{"id": "i", "type": "telepathy"}]))
    with pytest.raises(RequestError) as caught:
        read({"previous_response_id": response_id}, store)
    assert caught.value.param == "previous_response_id.type"
