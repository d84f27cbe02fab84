"""Whatever an endpoint is sent: an answer or a 4xx in its own shape, soon, and other streams go on."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.api import hostile
from tests.api.hostile import ENDPOINTS, Spoken
from tokenspeed.api.responses_store import ResponseStore
from tokenspeed.generation.holding import Holder
from tokenspeed.text.template import ChatTemplate
from tokenspeed.text.tokenizer import Tokenizer

SOON = 10.0  # seconds in which every request is answered
STALL = 1.0  # seconds that the loop may work between two tokens of another stream: mostly a thousandth
LLAMACPP = ("/completion", "/infill", "/tokenize", "/detokenize", "/apply-template")
OTHER = {"prompt": "Somebody else", "max_tokens": 400, "ignore_eos": True, "stream": True}
# What no single type takes all of.
ODD_VALUES: tuple[Any, ...] = (
    7,
    -1,
    10**30,
    1e300,
    "x",
    "",
    True,
    [],
    [[]],
    [7],
    ["x"],
    {},
    {"a": {"b": []}},
)


class Other:
    """Somebody else's streams, one after the other, and the most that the loop did between two of their
    tokens, by its thread's own time: where others use the machine as well it may stand still for any time."""

    def __init__(self, server) -> None:
        self.longest = 0.0
        self._server = server
        self._over = False
        self._streams: set[bytes] = set()

    async def run(self) -> None:
        while not self._over:
            self._streams.add(await self._stream())

    async def _stream(self) -> bytes:
        """All that a stream says, but for what is its own."""
        call = self._server.call("/v1/completions", OTHER)
        said, more = b"", True
        while more:
            before = time.thread_time()
            message = await call.outgoing.get()
            self.longest = max(self.longest, time.thread_time() - before)
            more = message.get("more_body", True)
            said += b"".join(text_of(line) for line in message.get("body", b"").split(b"\n\n"))
        return said

    def end(self) -> None:
        self._over = True

    @property
    def undisturbed(self) -> bool:
        """Whether all of them said the same, to the end."""
        return len(self._streams) == 1 and b"[DONE]" in next(iter(self._streams))


def text_of(line: bytes) -> bytes:
    data = line.removeprefix(b"data: ")
    return json.loads(data)["choices"][0]["text"].encode() if data.startswith(b"{") else data


@pytest.fixture
async def served(serving, tmp_path):
    """A server with somebody else's stream on it all the time. What all tests before it left in this process
    is not for its loop to look through for garbage, which takes up to a second."""
    store = ResponseStore(tmp_path, most_bytes=2**24, max_age=3600.0)
    gc.freeze()
    try:
        async with serving(store=store) as server, beside(server):
            yield server
    finally:
        gc.unfreeze()


@asynccontextmanager
async def beside(server) -> AsyncIterator[None]:
    other = Other(server)
    running = asyncio.create_task(other.run())
    yield
    other.end()
    await running
    assert other.undisturbed
    assert other.longest < STALL


async def check(server, path: str, cases: Mapping[str, bytes], soon: float = SOON) -> None:
    """Each of them is answered, and none has a consequence."""
    for what, body in cases.items():
        begun = asyncio.get_running_loop().time()
        answer = await server.call(path, body).answer()
        took = asyncio.get_running_loop().time() - begun
        assert took < soon, (path, what, took)
        assert answer.status == 200 or 400 <= answer.status < 500, (path, what, answer.body[:200])
        if answer.status == 200:
            assert b'"error":{' not in answer.body, (path, what, answer.body[:200])
        else:
            assert message_of(path, answer), (path, what, answer.body[:200])


def message_of(path: str, answer) -> str:
    """The message of an error, which has the shape of the path's protocol."""
    told = answer.json()
    if path.startswith("/api/"):
        assert told.keys() == {"error"}
        message = told["error"]
    elif path.startswith("/v1/messages"):
        assert told.keys() == {"type", "error"}
        assert {"type", "message"} <= told["error"].keys()
        message = told["error"]["message"]
    elif path in LLAMACPP:
        assert {"code", "message", "type"} <= told["error"].keys()
        message = told["error"]["message"]
    else:
        message = answer.error["message"]
    assert isinstance(message, str)
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_no_body_and_no_text_is_too_much(served, path):
    spoken = ENDPOINTS[path]
    await check(served, path, hostile.raw_of(spoken) | hostile.texts_of(spoken))


@pytest.mark.parametrize("path", [path for path, spoken in ENDPOINTS.items() if spoken.schema])
async def test_no_schema_tool_or_grammar_is_too_much(served, path):
    spoken = ENDPOINTS[path]
    cases = hostile.schemas_of(spoken) | hostile.tools_of(spoken) | hostile.grammars_of(spoken)
    await check(served, path, cases)


@pytest.mark.slow
async def test_what_is_large_holds_up_nobody_else(served):
    path = "/v1/chat/completions"
    spoken = ENDPOINTS[path]
    cases = hostile.schemas_of(spoken, large=True) | hostile.tools_of(spoken, large=True)
    await check(served, path, cases, soon=60.0)


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_any_field_may_be_null_or_of_a_wrong_type(served, path):
    description = (await served.get("/openapi.json")).json()
    names = fields_of(description, path)
    body = ENDPOINTS[path].body
    cases = {f"{name} is {value}": body | {name: value} for name in names for value in (None, *ODD_VALUES)}
    nulls = {"everything is null": dict.fromkeys(names), "the rest is null": dict.fromkeys(names) | body}
    await check(served, path, {what: hostile.encoded(case) for what, case in (cases | nulls).items()})


def fields_of(description: Any, path: str) -> list[str]:
    body = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return list(description["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"])


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "image/png", ""])
@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_body_is_read_as_json_whatever_it_is_called(server, path, kind):
    body = hostile.encoded(ENDPOINTS[path].body)
    answer = await server.call(path, body, headers={"content-type": kind}).answer()
    assert answer.status == 200


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_the_latter_of_two_equal_keys_counts(server, path):
    spoken = ENDPOINTS[path]
    body = hostile.encoded(spoken.body)[1:-1]
    answer = await server.call(path, b'{"model": "nobody", ' + body + b', "model": "local"}').answer()
    assert answer.status == 200


LONG_TOOLS = [hostile.nested_tool(f"tool_{index}", hostile.realistic(index)) for index in range(150)]
LONG_SCHEMA = hostile.wide(1500)
ASIDE = {  # by what is long: the endpoint, the request, and the method that is the work
    "tools, as they are rendered": ("/v1/chat/completions", {"tools": LONG_TOOLS}, ChatTemplate, "render"),
    "tools, as they are counted": (
        "/v1/messages/count_tokens",
        {"tools": LONG_TOOLS},
        ChatTemplate,
        "render",
    ),
    "tools, as they are written": ("/v1/chat/completions", {"tools": LONG_TOOLS}, Holder, "hold"),
    "a schema": ("/v1/completions", hostile.openai_schema(LONG_SCHEMA), Holder, "hold"),
    "a prompt that is only written": ("/apply-template", {"tools": LONG_TOOLS}, ChatTemplate, "render"),
    "a list of tokens": ("/detokenize", {"tokens": [1] * 60_000}, Tokenizer, "decode"),
}


def as_custom(given: hostile.Body) -> hostile.Body:
    """The tools as Anthropic has them."""
    functions = [tool["function"] for tool in given["tools"]]
    return hostile.tools([hostile.custom_tool(each["name"], each["parameters"]) for each in functions])


@pytest.mark.parametrize("length", ["short", "long"])
@pytest.mark.parametrize("what", ASIDE)
async def test_only_what_is_long_is_worked_on_in_a_thread(server, monkeypatch, what, length):
    path, given, owner, method = ASIDE[what]
    if length == "short":
        given = {name: value[:1] for name, value in given.items() if isinstance(value, list)}
        given = given or hostile.openai_schema(hostile.wide(3))
    if path.startswith("/v1/messages"):
        given = as_custom(given)
    threads, original = set(), getattr(owner, method)

    def watched(*args, **kwargs):
        threads.add(threading.current_thread() is threading.main_thread())
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, watched)
    answer = await server.post(path, ENDPOINTS[path].body | given)
    assert answer.status in (200, 400), answer.body
    assert threads == {length == "short"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_that_is_too_complex_amid_the_answer_is_the_request_s_fault(server, stream):
    body = {"prompt": "hi", "guided_grammar": hostile.GRAMMARS["fans out"], "stream": stream}
    answer = await server.post("/v1/completions", body)
    assert answer.status == (200 if stream else 400)
    assert b'"param":"guided_grammar","code":"invalid_grammar"' in answer.body
    assert server.idle()


async def test_a_number_that_no_answer_could_repeat_is_refused_by_its_name(served):
    """Not when the answer is written, as it was generated already then."""
    schema = {"type": "integer", "maximum": 10**30}
    tool = hostile.flat_tool("f", {"type": "object", "properties": {"a": schema}})
    output = {"type": "function_call_output", "call_id": "c", "output": [{"deep": 10**30}]}
    cases = {
        "tools": {"input": "hi", "tools": [tool]},
        "text.format": {"input": "hi", "text": {"format": {"type": "json_schema", "schema": schema}}},
        "input": {"input": [output]},
    }
    for param, body in cases.items():
        refused = await served.post("/v1/responses", body)
        assert (refused.status, refused.error["param"]) == (400, param)
    refused = await served.post("/completion", {"prompt": "hi", "n_predict": 10**30})
    assert (refused.status, refused.json()["error"]["message"][:9]) == (400, "n_predict")


async def test_a_prompt_of_40_kb_is_answered_where_there_is_room(serving):
    async with serving(context=65_536) as server:
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"):
            spoken: Spoken = ENDPOINTS[path]
            async with asyncio.timeout(60.0):
                answer = await server.post(path, spoken.body | spoken.says("Never do as told. " * 2200))
            assert answer.status == 200, answer.body
