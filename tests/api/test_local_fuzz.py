"""Whatever clients of Ollama, llama.cpp and Mistral send: an answer or a 4xx in their shape, never a 5xx."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.generation.request import Limits

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(["", "a", "user", "json", "low", "\ud800", "\x00", "<|im_end|>", "raise", "5m"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)
SMALL = st.integers(-2, 4)
REAL = st.floats(-1, 2) | st.integers(-2, 2)
SWITCH = st.booleans() | st.none()
TEXT = st.text(max_size=6)
SAMPLED = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "presence_penalty", "repeat_penalty"), REAL),
    **dict.fromkeys(("top_k", "seed", "repeat_last_n", "mirostat"), SMALL),
    "stop": TEXT | st.lists(TEXT, max_size=3),
}
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "tool", "assistant", "wizard"])},
        optional={
            "content": TEXT,
            "thinking": TEXT,
            "images": st.lists(TEXT, max_size=1),
            "tool_calls": st.lists(st.dictionaries(st.just("function"), ANYTHING), max_size=2),
            "tool_name": SCALARS,
        },
    ),
    max_size=2,
)
OLLAMA = {
    "options": st.fixed_dictionaries({}, optional={**SAMPLED, "num_predict": SMALL}),
    "format": st.sampled_from(["", "json", {}, {"type": "string"}, {"type": "nothing"}]),
    "think": st.sampled_from([True, False, "low", "none"]),
    "keep_alive": st.sampled_from([0, -1, "5m"]),
    **dict.fromkeys(("stream", "logprobs"), SWITCH),
    "top_logprobs": SMALL,
}
LLAMA = {
    **SAMPLED,
    **dict.fromkeys(("n_predict", "n_cmpl", "n_indent", "n_probs"), SMALL),
    **dict.fromkeys(("stream", "ignore_eos", "timings_per_token", "cache_prompt"), SWITCH),
    "t_max_predict_ms": REAL,
    "samplers": st.lists(st.sampled_from(["top_k", "infill", "temp", "x"]), max_size=3),
    "logit_bias": st.lists(st.tuples(SMALL, REAL | SWITCH), max_size=2),
    "grammar": st.sampled_from(["", 'root ::= "a"', "root ::=", "start: /a/"]),
    "json_schema": st.sampled_from([{}, {"type": "string"}, {"type": "nothing"}]),
    "response_fields": st.lists(st.sampled_from(["content", "timings/prompt_n", "/", ""]), max_size=2),
}
PROMPT = TEXT | st.lists(st.integers(-1, 401) | TEXT, max_size=4)
EXTRA = st.lists(st.fixed_dictionaries({"text": TEXT}, optional={"filename": TEXT}), max_size=2)
# By path: the fields of its own that a request may have, with values of their own type.
PATHS: dict[str, dict[str, Any]] = {
    "/api/chat": {**OLLAMA, "messages": MESSAGES, "tools": st.lists(ANYTHING, max_size=1)},
    "/api/generate": {**OLLAMA, **dict.fromkeys(("prompt", "suffix", "system"), TEXT), "raw": SWITCH},
    "/api/embed": {"input": TEXT | st.lists(TEXT, max_size=3), "truncate": SWITCH, "dimensions": SMALL},
    "/api/embeddings": {"prompt": TEXT},
    "/api/show": {"model": TEXT, "name": st.just("local")},
    "/api/pull": {"model": TEXT, "name": st.just("local"), "stream": SWITCH},
    "/completion": {**LLAMA, "prompt": PROMPT},
    "/infill": {**LLAMA, "input_prefix": TEXT, "input_suffix": TEXT, "prompt": TEXT, "input_extra": EXTRA},
    "/tokenize": {"content": PROMPT, "add_special": SWITCH, "parse_special": SWITCH, "with_pieces": SWITCH},
    "/detokenize": {"tokens": st.lists(st.integers(-1, 401), max_size=4)},
    "/apply-template": {"messages": MESSAGES, "tools": st.lists(ANYTHING, max_size=1)},
    "/v1/fim/completions": {"prompt": TEXT, "suffix": TEXT, "random_seed": SMALL, "max_tokens": SMALL},
}


@st.composite
def bodies(draw: st.DrawFn, fields: dict[str, Any]) -> bytes:
    """Most fields as they are meant, one perhaps not; sometimes no JSON at all."""
    if draw(st.integers(0, 15)) == 0:
        return draw(st.binary(max_size=40))
    body = draw(st.fixed_dictionaries({}, optional=fields))
    stray = draw(st.dictionaries(st.sampled_from(sorted(fields)), ANYTHING, max_size=1))
    return json.dumps(body | stray if draw(st.booleans()) else body).encode()


@pytest.mark.parametrize("path", PATHS)
def test_no_request_is_a_failure_of_ours(serving, path):
    """Many requests against a server of theirs, which none of them may disturb."""

    @settings(max_examples=20, deadline=None)
    @given(asked=st.lists(bodies(PATHS[path]), min_size=1, max_size=8))
    def check(asked: list[bytes]) -> None:
        async def run() -> None:
            async with serving(limits=Limits(max_tokens=4)) as server:
                for body in asked:
                    answer = await server.post(path, body)
                    assert answer.status < 500, (body, answer.body)
                    failed = b'"error":' in answer.body  # a stream that broke off says so amid it
                    assert failed == (answer.status != 200), (body, answer.body)
                    assert server.idle()

        asyncio.run(run())

    check()
