"""LangChain's chat models, in each protocol that it speaks, against the real server."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from tests.clients.conftest import CONTEXT, MODEL, Server

# Its models leave their connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

ASKED = "Write a function that adds two numbers."


class Weather(BaseModel, extra="forbid"):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    degrees: Literal[10, 20]


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """What it left is no other test's garbage."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def chat(server: Server, most: int) -> BaseChatModel:
    return ChatOpenAI(
        model=MODEL,
        base_url=server.v1,
        api_key="none",
        max_retries=0,
        temperature=0,
        max_tokens=most,
        stream_usage=True,
    )


def responses(server: Server, most: int) -> BaseChatModel:
    return ChatOpenAI(
        model=MODEL,
        base_url=server.v1,
        api_key="none",
        max_retries=0,
        temperature=0,
        max_tokens=most,
        use_responses_api=True,
    )


def messages(server: Server, most: int) -> BaseChatModel:
    return ChatAnthropic(
        model=MODEL, base_url=server.root, api_key="none", max_retries=0, temperature=0, max_tokens=most
    )


def ollama(server: Server, most: int) -> BaseChatModel:
    return ChatOllama(model=MODEL, base_url=server.root, temperature=0, num_predict=most)


Make = Callable[[Server, int], BaseChatModel]
KINDS = [chat, responses, messages, ollama]
FORCING = [chat, responses, messages]  # Ollama's API cannot force a call


@pytest.mark.parametrize("make", KINDS)
def test_a_streamed_answer_says_what_one_in_one_piece_does(server: Server, make: Make) -> None:
    model = make(server, 24)
    whole = model.invoke(ASKED)
    streamed: AIMessageChunk | None = None
    for piece in model.stream(ASKED):
        assert isinstance(piece, AIMessageChunk)
        streamed = piece if streamed is None else streamed + piece
    assert streamed is not None
    assert streamed.text == whole.text != ""
    assert streamed.usage_metadata is not None
    assert whole.usage_metadata is not None
    assert streamed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"] > 0


async def test_an_async_chat_streams_the_same_text(server: Server) -> None:
    model = chat(server, 16)
    pieces = [piece.text async for piece in model.astream(ASKED)]
    assert "".join(pieces) == (await model.ainvoke(ASKED)).text


@pytest.mark.parametrize("make", FORCING)
@pytest.mark.parametrize("choice", ["any", "Weather"])
def test_a_forced_call_is_answered_and_the_model_goes_on(server: Server, make: Make, choice: str) -> None:
    model = make(server, 100)
    first = model.bind_tools([Weather], tool_choice=choice, parallel_tool_calls=False).invoke(ASKED)
    assert isinstance(first, AIMessage)
    (call,) = first.tool_calls
    assert call["name"] == "Weather"
    Weather.model_validate(call["args"])
    result = ToolMessage("sunny", tool_call_id=call["id"])
    second = make(server, 8).bind_tools([Weather]).invoke([HumanMessage(ASKED), first, result])
    assert isinstance(second, AIMessage)
    assert second.usage_metadata is not None
    assert first.usage_metadata is not None
    assert second.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"]


@pytest.mark.parametrize("make", FORCING)
def test_a_streamed_call_is_put_together_from_its_pieces(server: Server, make: Make) -> None:
    model = make(server, 100).bind_tools([Weather], tool_choice="any", parallel_tool_calls=False)
    pieces = [piece for piece in model.stream(ASKED) if isinstance(piece, AIMessageChunk)]
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    (call,) = whole.tool_calls
    Weather.model_validate(call["args"])


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (chat, "function_calling"),
        (chat, "json_schema"),
        (responses, "json_schema"),
        (responses, "function_calling"),
        (messages, "json_schema"),
        (messages, "function_calling"),
        (ollama, "json_schema"),
    ],
)
def test_an_output_is_of_the_type_that_was_asked_for(server: Server, make: Make, method: str) -> None:
    model = make(server, 100).with_structured_output(Weather, method=method)
    assert isinstance(model.invoke(ASKED), Weather)


def test_an_answer_in_json_mode_is_an_object(server: Server) -> None:
    """Which has whatever fields the model likes; the first brace alone is certain of one that is cut."""
    model = chat(server, 8).bind(response_format={"type": "json_object"})
    assert model.invoke(ASKED).text.lstrip().startswith("{")


@pytest.mark.parametrize("kind", ["openai", "ollama"])
def test_a_text_is_completed_in_a_stream_as_in_one_piece(server: Server, kind: str) -> None:
    model: Any
    if kind == "openai":
        model = OpenAI(
            model=MODEL, base_url=server.v1, api_key="none", max_retries=0, temperature=0, max_tokens=12
        )
    else:
        model = OllamaLLM(model=MODEL, base_url=server.root, temperature=0, num_predict=12)
    assert "".join(model.stream("import os\n")) == model.invoke("import os\n") != ""


@pytest.mark.parametrize("kind", ["openai", "ollama"])
def test_texts_are_embedded_alone_and_together(server: Server, kind: str) -> None:
    embeddings: Any
    if kind == "openai":
        embeddings = OpenAIEmbeddings(
            model=MODEL, base_url=server.v1, api_key="none", check_embedding_ctx_length=False
        )
    else:
        embeddings = OllamaEmbeddings(model=MODEL, base_url=server.root)
    texts = ["def add(a, b):", "import os"]
    assert embeddings.embed_documents(texts) == [embeddings.embed_query(text) for text in texts]


@pytest.mark.parametrize("make", [chat, responses])
def test_a_prompt_that_is_too_long_is_an_error_of_the_client_s_own_kind(server: Server, make: Make) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        make(server, 4).invoke("x " * 2 * CONTEXT)
    assert raised.value.code == "context_length_exceeded"
