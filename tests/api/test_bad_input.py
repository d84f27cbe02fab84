"""A wrong request gets a 4xx in OpenAI's shape that names the field, and nothing else notices."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokenspeed.api.middleware import Boundary
from tokenspeed.generation.request import Limits

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = {"prompt": "hi"}
INVALID, TYPE, MISSING = "invalid_value", "invalid_type", "missing_required_parameter"
UNSUPPORTED = "unsupported_parameter"


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


# What both endpoints refuse alike: fields, the field named, the code.
BOTH = [
    ({"max_tokens": "many"}, "max_tokens", TYPE),
    ({"max_tokens": 1.5}, "max_tokens", TYPE),
    ({"max_tokens": True}, "max_tokens", TYPE),
    ({"max_tokens": -1}, "max_tokens", INVALID),
    ({"max_tokens": 401}, "max_tokens", INVALID),
    ({"max_tokens": 10**30}, "max_tokens", INVALID),
    ({"min_tokens": -1}, "min_tokens", INVALID),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", INVALID),
    ({"n": 0}, "n", INVALID),
    ({"n": 17}, "n", INVALID),
    ({"n": 10**25}, "n", INVALID),
    ({"temperature": -0.1}, "temperature", INVALID),
    ({"temperature": 2.1}, "temperature", INVALID),
    ({"temperature": 10**40}, "temperature", INVALID),
    ({"temperature": "hot"}, "temperature", TYPE),
    ({"top_p": 1.01}, "top_p", INVALID),
    ({"top_k": -2}, "top_k", INVALID),
    ({"top_k": 10**20}, "top_k", INVALID),
    ({"min_p": -1}, "min_p", INVALID),
    ({"presence_penalty": 2.5}, "presence_penalty", INVALID),
    ({"frequency_penalty": -2.5}, "frequency_penalty", INVALID),
    ({"repetition_penalty": 0}, "repetition_penalty", INVALID),
    ({"seed": 2**63}, "seed", INVALID),
    ({"seed": 0.5}, "seed", TYPE),
    ({"priority": 11}, "priority", INVALID),
    ({"priority": -11}, "priority", INVALID),
    ({"priority": 10**30}, "priority", INVALID),
    ({"priority": "high"}, "priority", TYPE),
    ({"priority": 0.5}, "priority", TYPE),
    ({"deadline_ms": 0}, "deadline_ms", INVALID),
    ({"deadline_ms": -1.5}, "deadline_ms", INVALID),
    ({"deadline_ms": "soon"}, "deadline_ms", TYPE),
    ({"deadline_ms": True}, "deadline_ms", TYPE),
    ({"speculation": "off"}, "speculation", TYPE),
    ({"speculation": 0}, "speculation", TYPE),
    ({"stop": ""}, "stop", INVALID),
    ({"stop": ["a", ""]}, "stop", INVALID),
    ({"stop": ["a"] * 17}, "stop", INVALID),
    ({"stop": "x" * 257}, "stop", INVALID),
    ({"stop": [1]}, "stop[0]", TYPE),
    ({"stop_token_ids": [400]}, "stop_token_ids", INVALID),
    ({"stop_token_ids": [-1]}, "stop_token_ids", INVALID),
    ({"stop_token_ids": list(range(17))}, "stop_token_ids", INVALID),
    ({"logit_bias": {"x": 1}}, "logit_bias", INVALID),
    ({"logit_bias": {"-1": 1}}, "logit_bias", INVALID),
    ({"logit_bias": {"٣": 1}}, "logit_bias", INVALID),
    ({"logit_bias": {"400": 1}}, "logit_bias", INVALID),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", INVALID),
    ({"logit_bias": {"1": 100.5}}, "logit_bias", INVALID),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", INVALID),
    ({"logit_bias": [1]}, "logit_bias", TYPE),
    ({"model": 7}, "model", TYPE),
    ({"stream": "yes"}, "stream", TYPE),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", TYPE),
    ({"response_format": {"type": "yaml"}}, "response_format.type", INVALID),
    ({"response_format": {"type": "json_schema"}}, "response_format.schema", MISSING),
    (
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        "response_format.json_schema.schema",
        MISSING,
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
        "response_format.json_schema.schema",
        INVALID,
    ),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format", INVALID),
    ({"guided_json": {"not": {}}}, "guided_json", "invalid_grammar"),
    ({"guided_json": "{"}, "guided_json", INVALID),
    ({"guided_regex": "("}, "guided_regex", "invalid_grammar"),
    ({"guided_grammar": "start: nowhere"}, "guided_grammar", "invalid_grammar"),
    ({"guided_choice": []}, "guided_choice", INVALID),
    ({"guided_choice": [""]}, "guided_choice", INVALID),
    ({"structured_outputs": {"yaml": 1}}, "structured_outputs.yaml", INVALID),
    ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex", INVALID),
    ({"use_beam_search": True}, "use_beam_search", UNSUPPORTED),
    ({"skip_special_tokens": False}, "skip_special_tokens", UNSUPPORTED),
]
OF_CHAT = [
    ({}, "messages", MISSING),
    ({"messages": None}, "messages", TYPE),
    ({"messages": []}, "messages", INVALID),
    ({"messages": "hi"}, "messages", TYPE),
    ({"messages": ["hi"]}, "messages[0]", TYPE),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", MISSING),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role", INVALID),
    ({"messages": [{"role": 3}]}, "messages[0].role", TYPE),
    (user(3), "messages[0].content", TYPE),
    (user([{"text": "hi"}]), "messages[0].content[0].type", MISSING),
    (user([{"type": "text"}]), "messages[0].content[0].text", MISSING),
    (user([{"type": "image_url", "image_url": {}}]), "messages[0].content[0].type", "unsupported_content"),
    (user("raise"), "messages", None),
    (CHAT | {"max_tokens": 0}, "max_tokens", INVALID),
    (CHAT | {"max_completion_tokens": 0, "max_tokens": 5}, "max_completion_tokens", INVALID),
    (CHAT | {"max_completion_tokens": 999}, "max_completion_tokens", INVALID),
    (CHAT | {"logprobs": 1}, "logprobs", TYPE),
    (CHAT | {"top_logprobs": 2}, "top_logprobs", INVALID),
    (CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs", INVALID),
    (CHAT | {"tools": [{"type": "function"}]}, "tools[0].function", INVALID),
    (CHAT | {"tools": [{"type": "function", "function": {"name": 1}}]}, "tools[0].function.name", INVALID),
    (CHAT | {"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name", INVALID),
    (
        CHAT | {"tools": [{"function": {"name": "f", "parameters": 1}}]},
        "tools[0].function.parameters",
        INVALID,
    ),
    (CHAT | {"tools": [3]}, "tools[0]", TYPE),
    (CHAT | {"tool_choice": "required"}, "tool_choice", INVALID),
    (CHAT | {"tool_choice": "always", "tools": [{"function": {"name": "f"}}]}, "tool_choice", INVALID),
    (CHAT | {"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", INVALID),
    (
        CHAT
        | {
            "tool_choice": "required",
            "tools": [{"function": {"name": "f", "strict": True, "parameters": {"not": {}}}}],
        },
        "tools",
        "invalid_grammar",
    ),
    (CHAT | {"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "tool_choice", INVALID),
    (CHAT | {"functions": [{"name": "f"}], "function_call": 3}, "function_call", TYPE),
    (CHAT | {"tools": {}}, "tools", TYPE),
    (CHAT | {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", None),
]
OF_COMPLETIONS = [
    ({}, "prompt", MISSING),
    ({"prompt": []}, "prompt", INVALID),
    ({"prompt": [[]]}, "prompt", INVALID),
    ({"prompt": {}}, "prompt", TYPE),
    ({"prompt": [1.5]}, "prompt[0]", TYPE),
    ({"prompt": [True]}, "prompt[0]", TYPE),
    ({"prompt": [1, "a"]}, "prompt", TYPE),
    ({"prompt": ["a", [1]]}, "prompt", TYPE),
    ({"prompt": [400]}, "prompt", INVALID),
    ({"prompt": [-1]}, "prompt", INVALID),
    ({"prompt": [10**30]}, "prompt", INVALID),
    ({"prompt": [["x"]]}, "prompt[0][0]", TYPE),
    ({"prompt": ["a"] * 17}, "prompt", INVALID),
    ({"prompt": ["a"] * 4, "n": 5}, "prompt", INVALID),
    (TEXT | {"logprobs": 21}, "logprobs", INVALID),
    (TEXT | {"logprobs": -1}, "logprobs", INVALID),
    (TEXT | {"best_of": 1, "n": 2}, "best_of", INVALID),
    (TEXT | {"best_of": 3, "stream": True}, "best_of", INVALID),
    (TEXT | {"best_of": 100}, "best_of", INVALID),
    (TEXT | {"tools": [{"function": {"name": "f"}}]}, "tools", UNSUPPORTED),
    (TEXT | {"tool_choice": "required"}, "tool_choice", UNSUPPORTED),
    (TEXT | {"suffix": "x", "echo": True}, "suffix", INVALID),
    ({"prompt": [1, 2], "suffix": "x"}, "suffix", INVALID),
]
CASES = [
    *[("/v1/chat/completions", CHAT | fields, param, code) for fields, param, code in BOTH],
    *[("/v1/completions", TEXT | fields, param, code) for fields, param, code in BOTH],
    *[("/v1/chat/completions", body, param, code) for body, param, code in OF_CHAT],
    *[("/v1/completions", body, param, code) for body, param, code in OF_COMPLETIONS],
]
RAW = [
    (b"", None, "invalid_json"),
    (b"{", None, "invalid_json"),
    (b"not json", None, "invalid_json"),
    (b'{"prompt": "hi"} trailing', None, "invalid_json"),
    (b"[" * 100_000, None, TYPE),
    (b'{"prompt": "hi", "x": ' + b"[" * 100_000, None, "invalid_json"),
    (b"[]", None, TYPE),
    (b"null", None, TYPE),
    (b'{"prompt": "hi", "temperature": NaN}', "temperature", INVALID),
    (b'{"prompt": "hi", "temperature": -Infinity}', "temperature", INVALID),
    (b'{"prompt": "hi", "temperature": 1e999}', "temperature", TYPE),
    (b'{"prompt": "hi", "deadline_ms": NaN}', "deadline_ms", INVALID),
    (b'{"prompt": "hi", "logit_bias": {"5": NaN}}', "logit_bias.5", INVALID),
    (b'{"prompt": "hi", "max_tokens": ' + b"9" * 5000 + b"}", "max_tokens", TYPE),
    (b'{"prompt": "\\ud800"}', "prompt", INVALID),
    (b'{"prompt": ["a", "\\udfff b"]}', "prompt[1]", INVALID),
    (b'{"prompt": "\xff\xfe"}', "prompt", INVALID),
    (b'{"prompt": "\xed\xa0\x80"}', "prompt", INVALID),
    (b'{"prompt": "hi", "user": {"name": "\\ud800"}}', "user.name", INVALID),
    (b'{"prompt": "hi", "\xff": 1}', None, INVALID),
    (b'{"prompt": "hi", "guided_json": "\xff"}', "guided_json", INVALID),
]


@pytest.mark.parametrize(("path", "body", "param", "code"), CASES)
async def test_a_wrong_field_is_named(server, path, body, param, code):
    for stream in (False, True):
        answer = await server.post(path, {"stream": stream} | body)
        assert answer.status == 400, answer.body
        assert (answer.error["param"], answer.error["code"]) == (param, code), answer.error
        assert answer.error["type"] == "invalid_request_error"
        if param is not None:
            assert param in answer.error["message"] or code is None
    assert server.idle()


@pytest.mark.parametrize(("body", "param", "code"), RAW)
async def test_what_is_not_json_or_not_unicode_is_told(server, body, param, code):
    answer = await server.post("/v1/completions", body)
    assert answer.status == 400
    assert (answer.error["param"], answer.error["code"]) == (param, code), answer.error


async def test_a_prompt_longer_than_the_context_is_told_both_numbers(server):
    answer = await server.post("/v1/completions", {"prompt": [5] * 600})
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert "512" in answer.error["message"]
    assert "600" in answer.error["message"]
    assert answer.error["param"] == "prompt"


async def test_a_text_longer_than_the_context_is_told_both_numbers_in_a_chat_as_well(server):
    for stream in (False, True):
        body = user("fox " * 100_000) | {"stream": stream}
        answer = await server.post("/v1/chat/completions", body)
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        assert answer.error["param"] == "messages"
        assert {"512", "your"} <= set(answer.error["message"].split())


async def test_a_prompt_that_leaves_too_little_room_is_told_both_numbers(server):
    answer = await server.post("/v1/completions", {"prompt": [5] * 500, "max_tokens": 20})
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert answer.error["param"] == "max_tokens"
    for number in ("512", "520", "500", "20"):
        assert number in answer.error["message"]


async def test_a_prompt_longer_than_the_limit_is_told_the_limit(serving):
    async with serving(limits=Limits(max_prompt_tokens=10)) as server:
        answer = await server.post("/v1/completions", {"prompt": [5] * 11})
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert "10" in answer.error["message"]


async def test_an_unknown_model_is_404_and_told_what_is_served(server):
    answer = await server.post("/v1/chat/completions", CHAT | {"model": "gpt-99"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert "org/tiny" in answer.error["message"]


async def test_a_model_without_fill_in_the_middle_says_so(serving):
    async with serving(special=["<s>", "</s>"]) as server:
        answer = await server.post("/v1/completions", TEXT | {"suffix": "x"})
    assert (answer.status, answer.error["param"]) == (400, "suffix")


async def test_a_path_that_is_not_there_is_404_in_the_same_shape(server):
    answer = await server.get("/v1/nothing")
    assert (answer.status, answer.error["code"]) == (404, "not_found")


async def test_a_method_that_is_not_taken_is_405_in_the_same_shape(server):
    answer = await server.get("/v1/chat/completions")
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


async def test_an_unexpected_exception_is_500_without_a_trace_and_is_logged(server, monkeypatch, caplog):
    async def explode(request, arrival):
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(server.generator, "start", explode)
    answer = await server.post("/v1/completions", TEXT)
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert "a secret" in caplog.text


async def test_an_exception_amid_an_answer_does_not_begin_a_second_one(caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    sent = []

    async def collect(message):
        sent.append(message["type"])

    await Boundary(app)({"type": "http", "path": "/"}, None, collect)
    assert sent == ["http.response.start"]
    assert "ZeroDivisionError" in caplog.text


async def test_null_is_absent_and_unknown_fields_are_ignored(server):
    fields = ("max_tokens", "stop", "seed", "logprobs", "n", "temperature", "tools", "response_format")
    body = CHAT | dict.fromkeys(fields) | {"user": "me", "metadata": {}, "store": False, "no_such": [1]}
    answer = await server.post("/v1/chat/completions", body)
    assert answer.status == 200


async def test_values_that_switch_a_field_off_are_taken(server):
    off = {
        "response_format": {"type": "text"},
        "tool_choice": "auto",
        "guided_json": None,
        "use_beam_search": False,
        "skip_special_tokens": True,
        "length_penalty": 1.0,
        "top_k": -1,
        "stop": [],
    }
    answer = await server.post("/v1/chat/completions", CHAT | off)
    assert answer.status == 200


async def test_a_body_is_json_whatever_its_content_type_says(server):
    for kind in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
        answer = await server.post("/v1/completions", json.dumps(TEXT | {"max_tokens": 1}).encode(), **kind)
        assert answer.status == 200
