"""Whatever JSON, or no JSON, a client sends: an answer or a 4xx in OpenAI's shape, never a 5xx."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.generation.request import Limits

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(["", "a", "user", "text", "none", "\ud800", "\x00", "x" * 300, "<|im_end|>", "raise"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
ID = st.integers(-1, 400).map(str)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "developer", "tool", "assistant", "wizard"])},
        optional={
            "content": st.text(max_size=5)
            | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": SCALARS}), max_size=2)
            | SCALARS,
            "tool_calls": st.lists(
                st.dictionaries(st.sampled_from(["function", "id"]), ANYTHING), max_size=2
            ),
            "name": SCALARS,
        },
    ),
    min_size=1,
    max_size=3,
)
PROMPTS = (
    st.text(max_size=8)
    | st.lists(st.integers(-1, 401), max_size=6)
    | st.lists(st.text(max_size=3), max_size=3)
    | st.lists(st.lists(st.integers(0, 399), max_size=3), max_size=3)
)
SMALL = st.integers(-1, 3)
REAL = st.floats(-2.5, 2.5) | st.integers(-2, 2) | st.floats()
SWITCH = st.booleans() | st.none()
IDS = st.lists(st.integers(-1, 400), max_size=3)
# Each field with values of its own type, in range and around it.
TYPED = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "min_tokens", "n", "best_of", "top_k"), SMALL),
    **dict.fromkeys(("logprobs", "top_logprobs", "priority"), SMALL | st.integers() | st.booleans()),
    **dict.fromkeys(("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"), REAL),
    **dict.fromkeys(("stream", "echo", "ignore_eos", "include_stop_str_in_output"), SWITCH),
    "seed": st.integers(),
    "repetition_penalty": REAL,
    "deadline_ms": REAL | st.integers(),
    "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=3),
    "stop_token_ids": IDS,
    "logit_bias": st.dictionaries(ID, st.floats(-101, 101), max_size=3),
    "suffix": st.text(max_size=3),
    "stream_options": st.dictionaries(st.sampled_from(["include_usage", "x"]), SWITCH),
    "tools": st.lists(st.fixed_dictionaries({"function": st.just({"name": "f"}) | ANYTHING}), max_size=2),
    "tool_choice": st.sampled_from(["none", "auto", "required", "f"]),
    "response_format": st.fixed_dictionaries({"type": st.sampled_from(["text", "json_object"])}),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["enable_thinking", "tools"]), ANYTHING),
    "model": st.sampled_from(["local", "org/tiny", "other", ""]),
}
PAIRS = st.sampled_from(sorted(TYPED)).flatmap(lambda name: st.tuples(st.just(name), TYPED[name]))
STRAY = st.dictionaries(st.sampled_from(sorted(TYPED)), ANYTHING, max_size=1)
FIELDS = st.tuples(st.lists(PAIRS, max_size=6), STRAY).map(lambda drawn: dict(drawn[0]) | drawn[1])


def check(serving: Any, path: str, body: Any) -> None:
    """One request against a server of its own, and one after it that nothing may have disturbed."""

    async def run() -> None:
        async with serving(limits=Limits(max_tokens=4)) as server:
            answer = await server.post(path, body)
            if answer.status != 200:
                assert 400 <= answer.status < 500, answer.body
                assert answer.error["message"]
            assert server.idle()
            assert (await server.post("/v1/completions", {"prompt": "hi", "max_tokens": 1})).status == 200

    asyncio.run(run())


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


@settings(max_examples=150, deadline=None)
@given(fields=FIELDS, messages=MESSAGES | ANYTHING)
def test_no_chat_request_is_a_failure_of_ours(serving, fields, messages):
    check(serving, "/v1/chat/completions", encoded(fields | {"messages": messages}))


@settings(max_examples=150, deadline=None)
@given(fields=FIELDS, prompt=PROMPTS | ANYTHING)
def test_no_completion_request_is_a_failure_of_ours(serving, fields, prompt):
    check(serving, "/v1/completions", encoded(fields | {"prompt": prompt}))


@settings(max_examples=80, deadline=None)
@given(body=st.binary(max_size=60) | ANYTHING.map(encoded))
def test_no_body_is_a_failure_of_ours(serving, body):
    check(serving, "/v1/completions", body)
