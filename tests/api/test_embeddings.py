"""Vectors of texts and of token ids, through OpenAI's own client and through plain calls."""

from __future__ import annotations

import base64
import json

import numpy as np
import openai
import pytest

from tokenspeed.api.options import KeyOptions
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.generation.embedding import EmbeddingOptions
from tokenspeed.generation.request import Limits
from tokenspeed.sim.backend import HIDDEN, embedding

PATH = "/v1/embeddings"
TEXTS = ["The quick", "brown fox", "jumps over the lazy dog."]
INVALID, TYPE = "invalid_value", "invalid_type"


def expected(ids, pooling="last", dimensions=HIDDEN):
    """What the simulated model says of these ids: float32, of length 1."""
    vector = embedding(tuple(ids), pooling)[:dimensions]
    return (vector / np.linalg.norm(vector)).astype(np.float32).tolist()


def ids_of(server, text):
    return server.tokenizer.encode(text, add_special=True)


async def embed(server, **body):
    answer = await server.post(PATH, body)
    assert answer.status == 200, answer.body
    return answer.json()


def read(entry):
    """A vector of an answer, however it is encoded, as the float32 that it holds."""
    given = entry["embedding"]
    return (
        np.frombuffer(base64.b64decode(given), "<f4")
        if isinstance(given, str)
        else np.array(given, np.float32)
    )


# -- through the official client ---------------------------------------------------------------------


async def test_openais_client_reads_the_same_vectors_as_numbers_and_as_base64(server, client):
    given = [
        await client.embeddings.create(model="local", input=TEXTS, **how)
        for how in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"})
    ]
    default, numbers, encoded = given
    wanted = [expected(ids_of(server, text)) for text in TEXTS]
    assert [np.array(each.embedding, np.float32).tolist() for each in default.data] == wanted
    assert [np.array(each.embedding, np.float32).tolist() for each in numbers.data] == wanted
    raw = [np.frombuffer(base64.b64decode(each.embedding), "<f4") for each in encoded.data]
    assert [each.tolist() for each in raw] == wanted
    assert [each.index for each in numbers.data] == [0, 1, 2]
    assert {each.object for each in numbers.data} == {"embedding"}
    assert (numbers.object, numbers.model) == ("list", "local")


async def test_one_text_is_one_vector_and_its_tokens_are_counted(server, client):
    ids = ids_of(server, TEXTS[0])
    answer = await client.embeddings.create(model="org/tiny", input=TEXTS[0])
    assert len(answer.data) == 1
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (len(ids), len(ids))
    assert answer.model == "org/tiny"


async def test_token_ids_are_taken_as_they_are_alone_and_in_lists(server, client):
    """As clients send them that tokenise, and cut long texts, themselves."""
    prompts = [[7, 300, 12], [5], [9] * 40]
    many = await client.embeddings.create(model="local", input=prompts)
    assert [np.array(each.embedding, np.float32).tolist() for each in many.data] == [
        expected(prompt) for prompt in prompts
    ]
    one = await client.embeddings.create(model="local", input=prompts[0])
    assert one.data[0].embedding == many.data[0].embedding
    assert many.usage.prompt_tokens == 44


async def test_a_client_reads_what_is_wrong_as_its_own_kind_of_error(client):
    with pytest.raises(openai.BadRequestError) as told:
        await client.embeddings.create(model="local", input=[1] * 513)
    assert (told.value.code, told.value.param) == ("context_length_exceeded", "input")
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="text-embedding-3-small", input="hi")


# -- what a vector is --------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [None, 1, 5, HIDDEN])
async def test_a_vector_has_length_1_whatever_is_cut_off(server, dimensions):
    (entry,) = (await embed(server, input=[3, 4], dimensions=dimensions))["data"]
    assert read(entry).tolist() == expected([3, 4], dimensions=dimensions or HIDDEN)
    assert np.linalg.norm(read(entry)) == pytest.approx(1.0, abs=1e-6)


async def test_a_request_may_ask_for_the_other_pooling(serving):
    for default, other in (("last", "mean"), ("mean", "last")):
        async with serving(embeddings=EmbeddingOptions(pooling=default)) as server:
            for asked, got in ((None, default), (default, default), (other, other)):
                (entry,) = (await embed(server, input=[3, 4, 5], pooling=asked))["data"]
                assert read(entry).tolist() == expected([3, 4, 5], got)


@pytest.mark.parametrize("pooling", ["last", "mean"])
async def test_a_text_has_the_same_vector_alone_among_others_and_again(server, pooling):
    alone = [await embed(server, input=text, pooling=pooling) for text in TEXTS]
    together = await embed(server, input=[*TEXTS, *TEXTS], pooling=pooling)
    vectors = [entry["embedding"] for entry in together["data"]]
    assert vectors == [answer["data"][0]["embedding"] for answer in alone] * 2
    assert together["usage"]["prompt_tokens"] == 2 * sum(answer["usage"]["prompt_tokens"] for answer in alone)


async def test_unknown_fields_and_nulls_change_nothing(server):
    plain = await embed(server, input="hi")
    nulls = dict.fromkeys(["model", "encoding_format", "dimensions", "pooling", "user"])
    assert await embed(server, input="hi", **nulls) == plain
    assert await embed(server, input="hi", user="me", input_type="query") == plain


async def test_embedding_generates_nothing_and_holds_nothing_afterwards(server):
    await embed(server, input=TEXTS)
    assert all(row.draw is None for plan in server.gate.inner.plans for row in plan.rows)
    assert server.idle()


@pytest.mark.parametrize("path", ["/embeddings", "/v1/embeddings", "//v1/embeddings/"])
async def test_the_route_is_found_with_and_without_v1(server, path):
    assert (await server.post(path, {"input": "hi"})).status == 200


# -- what is wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": None}, "input", TYPE),
        ({"input": 7}, "input", TYPE),
        ({"input": {"text": "hi"}}, "input", TYPE),
        ({"input": ["hi", 7]}, "input", TYPE),
        ({"input": [[1], "hi"]}, "input", TYPE),
        ({"input": [[1.5]]}, "input[0][0]", TYPE),
        ({"input": [True]}, "input[0]", TYPE),
        ({"input": ""}, "input", INVALID),
        ({"input": []}, "input", INVALID),
        ({"input": ["hi", ""]}, "input", INVALID),
        ({"input": [[1, 2], []]}, "input", INVALID),
        ({"input": [400]}, "input", INVALID),
        ({"input": [-1]}, "input", INVALID),
        ({"input": [[1], [10**30]]}, "input", INVALID),
        ({"input": ["hi"] * 9}, "input", INVALID),
        ({"input": [1] * 513}, "input", "context_length_exceeded"),
        ({"input": "word " * 2000}, "input", "context_length_exceeded"),
        ({"input": "hi", "dimensions": 0}, "dimensions", INVALID),
        ({"input": "hi", "dimensions": HIDDEN + 1}, "dimensions", INVALID),
        ({"input": "hi", "dimensions": 10**25}, "dimensions", INVALID),
        ({"input": "hi", "dimensions": 2.5}, "dimensions", TYPE),
        ({"input": "hi", "encoding_format": "int8"}, "encoding_format", TYPE),
        ({"input": "hi", "pooling": "cls"}, "pooling", TYPE),
        ({"input": "hi", "truncate_prompt_tokens": 8}, "truncate_prompt_tokens", "unsupported_parameter"),
        ({"input": "hi", "model": "other"}, "model", "model_not_found"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
async def test_what_is_wrong_is_told_with_its_field(serving, body, param, code):
    async with serving(limits=Limits(max_inputs=8)) as server:
        answer = await server.post(PATH, body)
        assert answer.status in (400, 404)
        assert (answer.error["param"], answer.error["code"]) == (param, code)
        assert server.idle()
        assert not server.gate.inner.plans


async def test_a_prompt_may_fill_the_whole_context(server):
    answer = await embed(server, input=[1] * 512)
    assert read(answer["data"][0]).tolist() == expected([1] * 512)


async def test_prompts_beyond_the_servers_limit_are_refused(serving):
    async with serving(limits=Limits(max_prompt_tokens=10)) as server:
        answer = await server.post(PATH, {"input": [[1], [1] * 11]})
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("count", [1, 20])
async def test_a_step_that_fails_is_a_500_and_leaves_nothing_behind(server, count):
    server.failing.append("")
    answer = await server.post(PATH, {"input": ["hi"] * count})
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert server.idle()
    server.failing.clear()
    assert (await server.post(PATH, {"input": "hi"})).status == 200


# -- many inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_waiting", [0, 3, 1024])
async def test_more_inputs_than_the_queue_takes_are_all_embedded_in_their_order(serving, max_waiting):
    few = SchedulerOptions(max_running=2, max_waiting=max_waiting)
    async with serving(scheduler_options=few) as server:
        prompts = [[1 + number % 300, number // 300] for number in range(500)]
        answer = await embed(server, input=prompts)
        assert [entry["index"] for entry in answer["data"]] == list(range(500))
        assert [read(entry).tolist() for entry in answer["data"]] == [expected(each) for each in prompts]
        assert server.idle()


async def test_no_more_inputs_of_a_request_queue_than_the_option_says(serving):
    async with serving(embeddings=EmbeddingOptions(at_once=5)) as server:
        server.gate.shut()
        call = server.call(PATH, {"input": [[n] for n in range(1, 40)]})
        await server.until(lambda: server.unfinished == 5)
        other = server.call("/v1/completions", {"prompt": "hi", "max_tokens": 1})
        await server.until(lambda: server.unfinished == 6)
        server.gate.open()
        assert [(await each.answer()).status for each in (call, other)] == [200, 200]


async def test_a_queue_that_others_fill_is_a_429(serving):
    async with serving(scheduler_options=SchedulerOptions(max_running=1, max_waiting=0)) as server:
        server.gate.shut()
        other = server.call("/v1/completions", {"prompt": "hi", "max_tokens": 1})
        await server.until(lambda: server.unfinished == 1)
        refused = await server.post(PATH, {"input": TEXTS})
        assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1
        server.gate.open()
        assert (await other.answer()).status == 200


async def test_inputs_count_against_the_key_that_sends_them(serving):
    keys = {"alice": KeyOptions(secret="wonderland", max_running=1, max_waiting=1)}
    async with serving(keys=keys) as server:
        headers = {"authorization": "Bearer wonderland"}
        assert (await server.post(PATH, {"input": TEXTS})).status == 401
        server.gate.shut()
        call = server.call(PATH, {"input": TEXTS}, headers=headers)
        await server.until(lambda: server.unfinished == 2)
        server.gate.open()
        assert (await call.answer()).status == 200


# -- a client that vanishes --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 200])
async def test_a_client_that_vanishes_ends_the_work(server, count):
    server.gate.shut()
    call = server.call(PATH, {"input": [[1, 2, 3]] * count})
    await server.until(lambda: server.engine.held_blocks > 0)
    call.disconnect()
    await call.task
    assert server.idle()


async def test_a_real_client_that_gives_up_ends_the_work(server, client):
    server.gate.shut()
    with pytest.raises(openai.APITimeoutError):
        await client.embeddings.create(model="local", input=TEXTS, timeout=0.2)
    await server.until(server.idle)
