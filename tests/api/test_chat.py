"""What the model is told of a conversation, and what is told of its reply."""

from __future__ import annotations

import json

import pytest

PATH = "/v1/chat/completions"
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def prompt_of(server, messages, **fields) -> str:
    """The prompt as the device got it."""
    answer = await server.post(PATH, {"messages": messages, "max_tokens": 1} | fields)
    assert answer.status == 200, answer.body
    (row,) = server.gate.inner.plans[0].rows
    assert answer.json()["usage"]["prompt_tokens"] == len(row.tokens)
    return server.tokenizer.decode(row.tokens, skip_special=False)


def turn(role, text):
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


START = "<|im_start|>assistant\n"


async def test_messages_become_the_templates_prompt(server):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Größe?", "name": "me"},
        {"role": "assistant", "content": "1 m"},
        {"role": "user", "content": "And?"},
    ]
    expected = "".join(turn(message["role"], message["content"]) for message in messages) + START
    assert await prompt_of(server, messages) == expected


async def test_a_developer_is_the_system(server):
    expected = turn("system", "Be brief.") + START
    assert await prompt_of(server, [{"role": "developer", "content": "Be brief."}]) == expected


async def test_parts_of_text_are_joined_by_lines(server):
    parts = [{"type": "text", "text": "a", "cache_control": {}}, {"type": "input_text", "text": "b"}]
    assert await prompt_of(server, [{"role": "user", "content": parts}]) == turn("user", "a\nb") + START


@pytest.mark.parametrize("content", [None, "", []])
async def test_a_reply_that_only_called_tools_has_no_text(server, content):
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": content, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    expected = turn("user", "hi") + turn("assistant", "") + turn("tool", "sunny") + START
    assert await prompt_of(server, messages) == expected


async def test_tools_are_told_to_the_model_unless_none_may_be_called(server):
    hi = [{"role": "user", "content": "hi"}]
    tools = [TOOL, {"type": "web_search"}]
    told = await prompt_of(server, hi, tools=tools, tool_choice="auto")
    assert told == f"<|im_start|>tools\n{json.dumps(TOOL)}\n<|im_end|>\n" + turn("user", "hi") + START


async def test_tools_that_may_not_be_called_are_not_told(server):
    hi = [{"role": "user", "content": "hi"}]
    assert await prompt_of(server, hi, tools=[TOOL], tool_choice="none") == turn("user", "hi") + START


async def test_the_template_reads_what_the_client_sets_for_it(server):
    hi = [{"role": "user", "content": "hi"}]
    told = await prompt_of(server, hi, chat_template_kwargs={"enable_thinking": False})
    assert told == turn("user", "hi") + START + "False"


async def test_a_reply_can_be_continued(server):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, I"}]
    told = await prompt_of(server, messages, continue_final_message=True)
    assert told == turn("user", "hi") + "<|im_start|>assistant\nWell, I"


async def test_the_later_name_of_max_tokens_wins(server):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "max_completion_tokens": 3}
    answer = (await server.post(PATH, body | {"ignore_eos": True})).json()
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("fields", "tokens"), [({}, 3), ({"max_tokens": 2}, 2), ({"max_completion_tokens": 4}, 4)]
)
async def test_what_llama_cpp_calls_max_tokens_counts_where_no_other_is_given(server, fields, tokens):
    body = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "n_predict": 3}
    answer = (await server.post(PATH, body | fields)).json()
    assert answer["usage"]["completion_tokens"] == tokens


@pytest.mark.parametrize("most", [-1, 100_000])
async def test_by_that_name_more_than_may_be_generated_is_what_may_be(server, most):
    body = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "n_predict": most}
    answer = (await server.post(PATH, body)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 400  # the limit of this server


async def test_an_editor_warms_the_cache_with_nothing_to_predict(server):
    body = {
        "messages": [{"role": "user", "content": "hi " * 40}],
        "n_predict": 0,
        "samplers": [],
        "response_fields": [""],
    }
    answer = (await server.post(PATH, body)).json()
    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["usage"]["completion_tokens"] == 0
    again = (await server.post(PATH, body | {"n_predict": 1})).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_a_whole_reply_has_the_shape_that_clients_read(server):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "ignore_eos": True}
    answer = (await server.post(PATH, body)).json()
    (choice,) = answer["choices"]
    assert (answer["object"], answer["model"]) == ("chat.completion", "org/tiny")
    assert answer["id"].startswith("chatcmpl-")
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"].keys() == {"role", "content", "refusal"}
    assert (choice["message"]["role"], choice["logprobs"]) == ("assistant", None)


async def test_log_probabilities_say_token_bytes_and_alternatives(server):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "ignore_eos": True}
    answer = (await server.post(PATH, body | {"logprobs": True, "top_logprobs": 0})).json()
    (choice,) = answer["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == 9
    spelled = b"".join(bytes(entry["bytes"]) for entry in content)
    assert spelled.decode(errors="replace") == choice["message"]["content"]
    assert all(entry["logprob"] == -1.0 and entry["top_logprobs"] == [] for entry in content)
