"""Chat templates, held against `transformers` byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tokenspeed.errors import ModelError, RequestError
from tokenspeed.text.template import ChatTemplate, parse_arguments

unhurried = settings(deadline=None)  # a busy machine may take its time
TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("templates/*")
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place, <b>now</b> & here, in °C",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "enum": ["Zürich", "東京"]},
                "days": {"type": "integer"},
            },
            "required": ["place"],
        },
    },
}
CALL = {"name": "weather", "arguments": {"place": "東京", "days": 1.5, "why": None}}


def user(content: Any = "Hello, 世界! <&> 🙂\n") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = " Hi there ", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: Any = "You are terse.") -> dict[str, Any]:
    return {"role": "system", "content": content}


def called(*ids: str, content: Any = None) -> dict[str, Any]:
    return assistant(content, tool_calls=[{"id": name, "type": "function", "function": CALL} for name in ids])


def result(content: Any = '{"celsius": -3}') -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": content}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [user()],
    "system": [system(), user()],
    "several turns": [system(), user(), assistant(), user("And  then?"), assistant("So."), user("")],
    "null content": [user("a"), assistant(None), user("b")],
    "empty content": [user(""), assistant(""), user("")],
    "a tool's result": [user("Cold?"), called("abcdefghi"), result(), assistant("Yes."), user("Thanks")],
    "text beside a call": [user("Cold?"), called("abcdefghi", content="Let me see."), result()],
    "several calls": [user("Cold?"), called("abcdefghi", "jklmnopqr"), result(), result("[1]")],
    "a call's id too short": [user("Cold?"), called("call_1"), result()],
    "reasoning kept": [user("2+2"), assistant("4", reasoning_content="two and\ntwo"), user("3+3")],
    "reasoning last": [user("2+2"), assistant("4", reasoning="two and two")],
    "reasoning under an older name": [user("2+2"), assistant("4", thinking="two"), user("3")],
    "reasoning in the text": [user("2+2"), assistant("<think>\ntwo\n</think>\n\n4"), user("3+3")],
    "reasoning null": [user("2+2"), assistant("4", reasoning_content=None, reasoning="r", tool_calls=None)],
    "parts": [
        system([{"type": "text", "text": "Be."}]),
        user([{"type": "text", "text": " a "}, {"type": "image"}]),
    ],
    "user twice": [user("a"), user("b")],
    "a role of its own": [{"role": "critic", "content": "Meh."}],
    "no content": [user("a"), {"role": "assistant"}],
    "only system": [system()],
}
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "thinking off": {"enable_thinking": False},
    "options": {"date_string": "1 Jan 2030", "tools_in_user_message": False, "bos_token": "<begin>"},
    "documents": {"documents": [{"title": t, "text": "ü"} for t in ("one", "two", "three")]},
}


@pytest.fixture(scope="module")
def oracle(bpe: Any) -> PreTrainedTokenizerFast:
    library = tokenizers.Tokenizer.from_str(bpe._backend.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=library, **TOKENS)


@cache
def compiled(text: str) -> ChatTemplate:
    return ChatTemplate({"default": text}, TOKENS)


def ours(text: str, messages: list[dict[str, Any]], **options: Any) -> str | None:
    try:
        return compiled(text).render(messages, **options)
    except RequestError:
        return None


def theirs(
    oracle: PreTrainedTokenizerFast, text: str, messages: list[dict[str, Any]], **options: Any
) -> str | None:
    extra = options.pop("extra", {})
    try:
        return str(
            oracle.apply_chat_template(messages, chat_template=text, tokenize=False, **options, **extra)
        )
    except Exception:  # whatever the template raises
        return None


@pytest.mark.parametrize("prompt", [True, False], ids=["prompt", "no prompt"])
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("tools", [None, [], [WEATHER, WEATHER]], ids=["no tools", "empty tools", "tools"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_rendered_as_transformers_renders_it(
    name: str, tools: Any, extra: str, prompt: bool, oracle: PreTrainedTokenizerFast
) -> None:
    for title, messages in CONVERSATIONS.items():
        options: dict[str, Any] = {"tools": tools, "add_generation_prompt": prompt, "extra": EXTRAS[extra]}
        expected = theirs(oracle, TEMPLATES[name], messages, **options)
        assert ours(TEMPLATES[name], messages, **options) == expected, title


@pytest.mark.parametrize("name", TEMPLATES)
def test_most_conversations_are_rendered_at_all(name: str) -> None:
    rendered = [ours(TEMPLATES[name], messages) for messages in CONVERSATIONS.values()]
    assert sum(text is not None for text in rendered) >= len(CONVERSATIONS) // 3


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "training"])
@pytest.mark.parametrize("last", ["Sure, he", "Sure, here:  ", [{"type": "text", "text": "Sure"}], ""])
def test_a_continued_message_is_left_open_as_transformers_leaves_it(
    name: str, last: Any, oracle: PreTrainedTokenizerFast
) -> None:
    messages = [user("Name one."), assistant(last)]
    expected = theirs(
        oracle, TEMPLATES[name], messages, continue_final_message=True, add_generation_prompt=False
    )
    assert ours(TEMPLATES[name], messages, continue_final=True) == expected


@unhurried
@given(text=st.text(), value=st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_any_value_is_written_as_json_as_transformers_writes_it(
    text: str, value: Any, oracle: PreTrainedTokenizerFast
) -> None:
    template = "{{ messages[0] | tojson }}|{{ tools | tojson(indent=2) }}|{{ messages[0].content }}"
    messages = [user(text)]
    tools = [{"b": value, "a": text}]
    assert ours(template, messages, tools=tools) == theirs(oracle, template, messages, tools=tools)


def test_the_date_is_the_clocks() -> None:
    moment = datetime(2031, 7, 4, 12, 30, tzinfo=UTC)
    template = ChatTemplate({"default": "{{ strftime_now('%d %b %Y, %H:%M') }}"}, now=lambda: moment)
    assert template.render([user()]) == "04 Jul 2031, 12:30"


HOSTILE = [
    "{{ raise_exception('only\nusers may speak') }}",
    "{{ messages[0].nothing.more }}",
    "{{ nothing() }}",
    "{{ messages[0].content + 1 }}",
    "{{ 1 // 0 }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ ''.__class__.__mro__ }}{{ ().__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__.json }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * ['a'] }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "{{ messages | tojson(indent='x', sort_keys=1) | int(base=99) }}{{ {1: again} | tojson }}",
    "{% include 'passwd' %}",
    "{{ '\\ud800'.encode() }}",
]


@pytest.mark.parametrize("template", HOSTILE)
def test_a_template_that_fails_is_the_requests_error_in_one_line(template: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate({"default": template}).render([user()])
    assert caught.value.param == "messages"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > len("the chat template")


def test_a_template_tells_in_its_own_words_what_it_does_not_take() -> None:
    with pytest.raises(RequestError, match="does not take these messages: roles must alternate"):
        ChatTemplate({"default": "{{ raise_exception('roles must  alternate') }}"}).render([user()])


@pytest.mark.parametrize("template", ["{% if %}", "{{ a | nonesuch }}", "{% for x in y %}", "{{ 'a' }"])
def test_a_broken_template_is_the_checkpoints_error(template: str, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(chat_template="line one\n" + template)
    with pytest.raises(ModelError, match="the chat template 'default' is broken, line 2: ") as caught:
        ChatTemplate.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_template_refuses_chat(checkpoint: Callable[..., Path]) -> None:
    template = ChatTemplate.load(checkpoint())
    assert not template.exists
    with pytest.raises(RequestError, match="no chat template; use /v1/completions"):
        template.render([user()])


def test_a_template_of_the_config_sees_the_tokens_that_the_config_names(
    checkpoint: Callable[..., Path],
) -> None:
    folder = checkpoint(
        chat_template="{{ bos_token }}{{ eos_token }}{{ image }}", extra_special_tokens={"image": "<i>"}
    )
    template = ChatTemplate.load(folder)
    assert template.exists
    assert template.render([user()]) == "<s></s><i>"


def test_a_file_of_its_own_goes_before_the_config(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(chat_template="old")
    (folder / "chat_template.jinja").write_text("new {{ eos_token }}")
    assert ChatTemplate.load(folder).render([user()]) == "new </s>"
    assert ChatTemplate.load(folder).source == "new {{ eos_token }}"


@pytest.mark.parametrize("as_files", [True, False])
def test_of_named_templates_tools_choose(as_files: bool, checkpoint: Callable[..., Path]) -> None:
    named = {"default": "plain", "tool_use": "tools"}
    if as_files:
        folder = checkpoint()
        (folder / "additional_chat_templates").mkdir()
        (folder / "chat_template.jinja").write_text("plain")
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    else:
        folder = checkpoint(chat_template=[{"name": n, "template": t} for n, t in named.items()])
    template = ChatTemplate.load(folder)
    assert template.render([user()]) == "plain"
    assert template.render([user()], tools=[WEATHER]) == "tools"


def test_named_templates_without_a_default_serve_tools_alone() -> None:
    template = ChatTemplate({"tool_use": "tools"})
    assert template.render([user()], tools=[WEATHER]) == "tools"
    with pytest.raises(RequestError, match="no chat template"):
        template.render([user()])


@pytest.mark.parametrize("value", [7, [{"name": "default"}], {"default": None}, [{"template": "a"}]])
def test_a_template_that_is_no_text_is_the_checkpoints_error(
    value: Any, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match="neither a text nor named texts"):
        ChatTemplate.load(checkpoint(chat_template=value))


def test_a_template_file_that_is_not_text_is_the_checkpoints_error(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint()
    (folder / "chat_template.jinja").write_bytes(b"abc\xff")
    with pytest.raises(ModelError, match=r"chat_template.jinja is not UTF-8 text \(byte 3\)"):
        ChatTemplate.load(folder)


def test_no_messages_are_the_requests_error() -> None:
    with pytest.raises(RequestError, match="messages is empty"):
        ChatTemplate({"default": "a"}).render([])


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_a_client_cannot_replace_what_the_request_says_elsewhere(name: str) -> None:
    with pytest.raises(RequestError, match=f"{name!r} cannot be set here") as caught:
        ChatTemplate({"default": "a"}).render([user()], extra={name: []})
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize("messages", [[user()], [assistant(None)], [assistant([{"type": "image"}])]])
def test_only_text_that_is_shown_can_be_continued(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(RequestError, match="continue"):
        ChatTemplate({"default": "{{ messages[0].role }}"}).render(messages, continue_final=True)


def test_rendering_leaves_the_messages_as_they_were() -> None:
    messages = CONVERSATIONS["reasoning null"]
    before = json.dumps(messages)
    ChatTemplate({"default": TEMPLATES["qwen3"]}).render(messages, continue_final=True)
    parse_arguments(messages)
    assert json.dumps(messages) == before


def test_arguments_of_tool_calls_become_objects() -> None:
    texts = ['{"a": [1]}', "{", "[1]", ""]
    calls = [{"id": text, "function": {"name": "f", "arguments": text}} for text in texts]
    odd = ["call", {"function": None}, {"function": {"arguments": {"b": 2}}}]
    (message,) = parse_arguments([assistant(None, tool_calls=[*calls, *odd])])
    arguments = [call["function"]["arguments"] for call in message["tool_calls"][: len(texts)]]
    assert arguments == [{"a": [1]}, "{", "[1]", ""]
    assert message["tool_calls"][len(texts) :] == odd
    assert message["tool_calls"][0]["id"] == texts[0]
