"""llama.cpp's completions: what its clients send, and what they read out of the answers."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.api.llamacpp_asking import INFILL, TEXT, events_of, posted
from tokenspeed.api.llamacpp_answers import LlamaWriter, Terms, picked
from tokenspeed.generation.outputs import Delta, Ended, Usage, Whole
from tokenspeed.generation.text import Alternative, ScoredToken

SPEECH = "Größe, naïve, 你好 🙂. The quick brown fox."
TIMINGS = {
    "cache_n",
    *(f"{part}_{name}" for part in ("prompt", "predicted") for name in ("n", "ms")),
    *(f"{part}_{name}" for part in ("prompt", "predicted") for name in ("per_token_ms", "per_second")),
}
USAGE = Usage(7, 5, 4, 0, (5,), 0.25, 1.25)


@pytest.mark.parametrize(("path", "body"), [("/completion", TEXT), ("/infill", INFILL)])
async def test_an_answer_has_what_clients_read(server, path, body):
    answer = await posted(server, path, body)
    assert (answer["stop"], answer["stop_type"], answer["stopping_word"]) == (True, "limit", "")
    assert (answer["tokens_predicted"], answer["truncated"], answer["index"]) == (30, False, 0)
    assert answer["tokens_cached"] == answer["tokens_evaluated"] + 30
    assert answer["model"] == "org/tiny"
    assert answer["generation_settings"]["n_predict"] == 30
    assert answer["timings"].keys() == TIMINGS
    assert answer["timings"]["prompt_ms"] > 0
    assert answer["timings"]["predicted_n"] == 30


@pytest.mark.parametrize(("path", "body"), [("/completion", TEXT), ("/infill", INFILL)])
async def test_a_stream_says_what_the_whole_answer_says(server, path, body):
    whole = await posted(server, path, body)
    answer = await server.post(path, body | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *pieces, last = events_of(answer.body)
    assert "".join(piece["content"] for piece in pieces) == whole["content"]
    assert not any(piece["stop"] for piece in pieces)
    assert last["content"] == ""
    ignored = ("content", "timings")
    assert {k: v for k, v in last.items() if k not in ignored} == {
        k: v for k, v in whole.items() if k not in ignored
    }
    counts = [piece["tokens_predicted"] for piece in pieces]
    assert counts == sorted(counts)


async def test_a_client_that_reads_lines_over_a_socket_sees_no_mark_at_the_end(server, listening):
    async with (
        listening(server.app) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", "/completion", json=TEXT | {"stream": True}) as response,
    ):
        lines = [line async for line in response.aiter_lines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["stop"] is True


async def test_why_an_answer_ended_is_told(serving):
    async with serving(script=[SPEECH] * 3) as server:
        whole = await posted(server, "/completion", {"prompt": "hi"})
        assert (whole["content"], whole["stop_type"], whole["stopping_word"]) == (SPEECH, "eos", "")
        stopped = await posted(server, "/completion", {"prompt": "hi", "stop": ["quick", "fox"]})
        assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", "quick")
        assert stopped["content"] == SPEECH[: SPEECH.index("quick")]
        short = await posted(server, "/completion", {"prompt": "hi", "n_predict": 3})
        assert (short["stop_type"], short["tokens_predicted"]) == ("limit", 3)


async def test_prompts_are_texts_ids_or_a_mix(server):
    encode = server.tokenizer.encode
    prompts = {
        "A fox": encode("A fox", add_special=True),
        (5, 6, 7): [5, 6, 7],
        ("A fox",): encode("A fox", add_special=True),
        ("A fox", 5, " ran"): [*encode("A fox", add_special=True), 5, *encode(" ran", add_special=False)],
        (5, "A fox"): [5, *encode("A fox", add_special=False)],
    }
    for prompt, ids in prompts.items():
        body = {"prompt": prompt if isinstance(prompt, str) else list(prompt), "n_predict": 9}
        answer = await posted(server, "/completion", body)
        assert answer["tokens_evaluated"] == len(ids)
        expected = server.tokenizer.decode(server.continuation(ids, 9), skip_special=True)
        assert answer["content"] == expected


async def test_several_choices_are_a_list(server):
    body = TEXT | {"n_cmpl": 3, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    answers = await posted(server, "/completion", body)
    assert [answer["index"] for answer in answers] == [0, 1, 2]
    assert [answer["tokens_predicted"] for answer in answers] == [30] * 3


async def test_nothing_to_predict_warms_the_cache_and_answers_at_once(server):
    body = {"prompt": list(range(100, 180)), "n_predict": 0}
    for stream in (False, True):
        answer = await server.post("/completion", body | {"stream": stream})
        told = events_of(answer.body)[-1] if stream else answer.json()
        assert (told["content"], told["tokens_predicted"], told["stop"]) == ("", 0, True)
    warmed = await posted(server, "/completion", body | {"n_predict": 1})
    assert warmed["timings"]["cache_n"] == 64
    assert warmed["timings"]["prompt_n"] == 16


async def test_only_the_fields_that_were_asked_for_are_sent(server):
    fields = ["content", "timings/prompt_n", "generation_settings/n_predict", "nothing", "content/deeper"]
    answer = await posted(server, "/infill", INFILL | {"response_fields": fields})
    assert answer.keys() == {"content", "timings/prompt_n", "generation_settings/n_predict"}
    assert answer["generation_settings/n_predict"] == 30


def test_a_field_within_another_keeps_its_name():
    assert picked({"a": {"b": 1}, "c": 2}, ["a/b", "a", "a/x", "d"]) == {"a/b": 1, "a": {"b": 1}}


async def test_sampling_is_taken_as_it_is_asked_for(server):
    one = await posted(server, "/completion", TEXT | {"temperature": 1.0, "seed": 3})
    other = await posted(server, "/completion", TEXT | {"temperature": 1.0, "seed": 3})
    third = await posted(server, "/completion", TEXT | {"temperature": 1.0, "seed": 4})
    assert one["content"] == other["content"] != third["content"]
    greedy = await posted(server, "/completion", TEXT | {"temperature": 0, "seed": 2**32 - 1})
    assert greedy["content"] == (await posted(server, "/completion", TEXT))["content"]


async def test_more_than_there_is_room_for_is_cut(server):
    answer = await posted(server, "/completion", {"prompt": [5] * 500, "n_predict": 999, "ignore_eos": True})
    assert (answer["tokens_predicted"], answer["stop_type"]) == (12, "limit")


@pytest.mark.parametrize(
    "held",
    [
        {"json_schema": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}},
        {"grammar": 'root ::= "{" ws "\\"a\\"" ws ":" ws ("true" | "false") ws "}"\nws ::= " "?'},
    ],
)
async def test_an_answer_is_held_to_a_schema_or_a_grammar(server, held):
    answer = await posted(server, "/completion", {"prompt": "The", "n_predict": 200} | held)
    assert isinstance(json.loads(answer["content"])["a"], bool)
    assert answer["stop_type"] == "eos"


async def test_log_probabilities_come_with_the_text(server):
    answer = await posted(server, "/completion", TEXT | {"n_probs": 2, "n_predict": 4})
    assert len(answer["completion_probabilities"]) == 4
    streamed = await server.post("/completion", TEXT | {"n_probs": 2, "n_predict": 4, "stream": True})
    told = [
        score for event in events_of(streamed.body) for score in event.get("completion_probabilities", ())
    ]
    assert told == answer["completion_probabilities"]


def test_events_are_exactly_these():
    top = (Alternative("b", b"b", -2.0),)
    score = ScoredToken("a", b"a", -0.5, top, 0)
    writer = LlamaWriter(Terms("m", {"n_predict": 5}, timed=True, scored=True))
    raw = writer.write([Delta(0, "a", (score,))], lambda: USAGE) + writer.write(
        [Ended(0, "stop", "X")], lambda: USAGE
    )
    piece, last = events_of(raw + writer.end(USAGE))
    timings = {
        "cache_n": 4,
        "prompt_n": 3,
        "prompt_ms": 250.0,
        "prompt_per_token_ms": 250.0 / 3,
        "prompt_per_second": 12.0,
        "predicted_n": 5,
        "predicted_ms": 1000.0,
        "predicted_per_token_ms": 200.0,
        "predicted_per_second": 5.0,
    }
    assert piece == {
        "index": 0,
        "content": "a",
        "tokens": [],
        "stop": False,
        "id_slot": -1,
        "tokens_predicted": 5,
        "tokens_evaluated": 7,
        "completion_probabilities": [
            {
                "token": "a",
                "bytes": [97],
                "logprob": -0.5,
                "top_logprobs": [{"token": "b", "bytes": [98], "logprob": -2.0}],
            }
        ],
        "timings": timings,
    }
    assert last == {
        "index": 0,
        "content": "",
        "tokens": [],
        "id_slot": -1,
        "stop": True,
        "model": "m",
        "tokens_predicted": 5,
        "tokens_evaluated": 7,
        "tokens_cached": 12,
        "generation_settings": {"n_predict": 5},
        "truncated": False,
        "stop_type": "word",
        "stopping_word": "X",
        "timings": timings,
    }


def test_an_answer_without_tokens_has_no_rates():
    writer = LlamaWriter(Terms("m", {}))
    answer = writer.whole([Whole(reason="length")], Usage(7, 0, 7, 0, (0,)))
    assert set(answer["timings"].values()) == {0, 7}


async def test_a_step_that_fails_amid_a_stream_is_an_event(server):
    call = server.call("/completion", TEXT | {"stream": True, "ignore_eos": True})
    first = await call.chunk()
    server.failing.append("now")
    *_, last = events_of(first + await call.answer_after_chunks())
    assert last["error"].keys() == {"code", "message", "type"}
    assert (last["error"]["code"], last["error"]["type"]) == (500, "server_error")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [("/completion", TEXT), ("/infill", INFILL)])
async def test_a_client_that_vanishes_ends_the_work(server, path, body, stream):
    server.gate.shut()
    call = server.call(path, body | {"stream": stream})
    await server.until(lambda: server.engine.held_blocks > 0)
    call.disconnect()
    await call.task
    assert server.idle()
