"""LiteLLM, by each of its providers for local endpoints, against the real server."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches one as it is imported

import litellm

from tests.clients.conftest import CONTEXT, MODEL, Server

ASKED: list[Any] = [{"role": "user", "content": "Write a function that adds two numbers."}]
FORCING = ["openai", "hosted_vllm", "lm_studio", "anthropic"]
PROVIDERS = [*FORCING, "ollama_chat", "ollama"]
ADDS_PATH = ("anthropic", "ollama_chat", "ollama")  # to the address of the server


class Weather(BaseModel, extra="forbid"):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    degrees: Literal[10, 20]


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": Weather.model_json_schema()},
}
Ask = Callable[..., Any]


@pytest.fixture
def ask(server: Server) -> Ask:
    def call(provider: str, **more: Any) -> Any:
        base = server.root if provider in ADDS_PATH else server.v1
        asked = {"messages": ASKED, "max_tokens": 24, "temperature": 0, "num_retries": 0, **more}
        return litellm.completion(model=f"{provider}/{MODEL}", api_base=base, api_key="none", **asked)

    return call


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_streamed_answer_says_what_one_in_one_piece_does(ask: Ask, provider: str) -> None:
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(provider, stream=True)]
    assert "".join(pieces) == ask(provider).choices[0].message.content != ""


@pytest.mark.parametrize("provider", FORCING)
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_is_answered_and_the_model_goes_on(ask: Ask, provider: str, stream: bool) -> None:
    how = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
    answer = ask(provider, stream=stream, **how)
    message = (litellm.stream_chunk_builder(list(answer)) if stream else answer).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    assert '"city"' in call.function.arguments  # hosted_vllm takes additionalProperties out of a schema
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    again = ask(provider, messages=[*ASKED, message.model_dump(), result], tools=[TOOL])
    assert again.usage.prompt_tokens > 0
    assert again.choices[0].finish_reason in ("stop", "length", "tool_calls")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_answer_fits_the_schema_that_was_asked_for(ask: Ask, provider: str) -> None:
    answer = ask(provider, response_format=Weather, max_tokens=100)
    Weather.model_validate_json(answer.choices[0].message.content)


def test_a_gap_is_filled(server: Server) -> None:
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        api_base=server.v1,
        api_key="none",
        prompt="def f(",
        suffix="    return x\n",
        max_tokens=8,
        temperature=0,
    )
    assert answer.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "ollama"])
def test_texts_are_embedded(server: Server, provider: str) -> None:
    base = server.root if provider in ADDS_PATH else server.v1
    answer = litellm.embedding(
        model=f"{provider}/{MODEL}", api_base=base, api_key="none", input=["def add(a, b):", "import os"]
    )
    assert len(answer.data) == 2


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_an_error_is_of_the_client_s_own_kind(ask: Ask, provider: str) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(provider, messages=[{"role": "user", "content": "x " * 2 * CONTEXT}])
