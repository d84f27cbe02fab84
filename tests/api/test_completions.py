"""Texts, ids, lists, echoes, gaps, stops and scores: what completions make of a prompt."""

from __future__ import annotations

import asyncio
import json

import pytest

from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import Sampling

PATH = "/v1/completions"


async def complete(server, **body):
    answer = await server.post(PATH, {"max_tokens": 12, "ignore_eos": True} | body)
    assert answer.status == 200, answer.body
    return answer.json()


def said(server, ids, count=12, sampling=None):
    return server.tokenizer.decode(server.continuation(ids, count, sampling), skip_special=True)


async def test_text_is_tokenised_with_its_bos(server):
    ids = server.tokenizer.encode("The quick", add_special=True)
    answer = await complete(server, prompt="The quick")
    assert ids[0] == server.tokenizer.bos_id
    assert answer["choices"][0]["text"] == said(server, ids)
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_token_ids_are_taken_as_they_are(server):
    answer = await complete(server, prompt=[7, 300, 12])
    assert answer["choices"][0]["text"] == said(server, [7, 300, 12])
    assert answer["usage"]["prompt_tokens"] == 3


async def test_an_empty_text_is_the_bos_alone(server):
    answer = await complete(server, prompt="")
    assert answer["choices"][0]["text"] == said(server, [0])


async def test_choices_are_numbered_prompt_by_prompt(server):
    answer = await complete(server, prompt=[[5, 6], [9]], n=2, temperature=1.0, seed=3)
    texts = [choice["text"] for choice in answer["choices"]]
    expected = [
        said(server, ids, 12, Sampling(temperature=1.0, seed=3 + choice))
        for ids in ([5, 6], [9])
        for choice in range(2)
    ]
    assert texts == expected
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 48


async def test_the_same_seed_says_the_same_and_another_something_else(server):
    texts = [
        (await complete(server, prompt="hi", temperature=1.0, seed=seed))["choices"][0]["text"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


async def test_without_a_seed_every_answer_is_another(server):
    texts = {(await complete(server, prompt="hi", temperature=1.0))["choices"][0]["text"] for _ in range(3)}
    assert len(texts) == 3


async def test_all_sampling_fields_reach_the_device(server):
    await complete(
        server,
        prompt="hi",
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        seed=11,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={"5": -100, "3": 2.5},
        logprobs=3,
    )
    assert server.gate.inner.plans[-1].rows[0].draw.sampling == Sampling(
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        seed=11,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias=((3, 2.5), (5, -100.0)),
        logprobs=3,
    )


async def test_the_models_defaults_stand_where_the_client_is_silent(serving):
    async with serving(defaults=Sampling(temperature=0.6, top_k=20, top_p=0.8)) as server:
        await complete(server, prompt="hi", top_p=1)
        sampling = server.gate.inner.plans[-1].rows[0].draw.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.6, 20, 1.0)


async def test_an_empty_nucleus_is_its_first_token(server):
    await complete(server, prompt="hi", top_p=0)
    sampling = server.gate.inner.plans[-1].rows[0].draw.sampling
    assert (sampling.top_k, sampling.top_p) == (1, 1.0)


async def test_without_max_tokens_a_completion_runs_to_the_end_of_the_context(server):
    answer = await complete(server, prompt=[5] * 500, max_tokens=None)
    assert answer["usage"]["total_tokens"] == 512


async def test_without_max_tokens_a_completion_stays_within_the_limit(server):
    answer = await complete(server, prompt="hi", max_tokens=None)
    assert answer["usage"]["completion_tokens"] == 400


async def test_the_models_end_of_text_ends_a_choice_unless_ignored(server):
    eos = server.tokenizer.eos_id
    ids, place = next(
        (prompt, tokens.index(eos))
        for prompt in ([token] for token in range(10, 390))
        if eos in (tokens := server.continuation(prompt, 40))
    )
    answer = await complete(server, prompt=ids, ignore_eos=False, max_tokens=40)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["text"] == said(server, ids, place)
    assert answer["usage"]["completion_tokens"] == place + 1
    later = await complete(server, prompt=ids, ignore_eos=False, max_tokens=40, min_tokens=place + 1)
    assert later["usage"]["completion_tokens"] > place + 1


async def test_a_stop_string_is_found_across_token_borders(server):
    """Every pair of neighbouring tokens, with the border inside the stop string."""
    ids = [7, 8]
    tokens = server.continuation(ids, 40)
    text = server.tokenizer.decode(tokens, skip_special=True)
    borders = []
    for index in range(1, 40):
        before = server.tokenizer.decode(tokens[:index], skip_special=True)
        if text.startswith(before) and before and len(before) < len(text):
            borders.append(len(before))
    assert len(borders) > 10
    for border in borders:
        stop = text[border - 1 : border + 1]
        for stream in (False, True):
            answer = await server.post(
                PATH, {"prompt": ids, "max_tokens": 40, "ignore_eos": True, "stop": stop, "stream": stream}
            )
            shown = joined(answer) if stream else answer.json()["choices"][0]["text"]
            assert shown == text[: text.index(stop)]
    assert server.idle()


def joined(answer):
    lines = [line for line in answer.body.split(b"\n") if line.startswith(b"data: {")]
    chunks = [json.loads(line[6:]) for line in lines]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


async def test_usage_counts_up_to_the_token_that_completed_a_stop_string(server):
    tokens = server.continuation([7, 8], 40)
    texts = [server.tokenizer.decode(tokens[: n + 1], skip_special=True) for n in range(40)]
    stop = texts[-1][20]
    place = next(n for n, text in enumerate(texts) if stop in text)
    answer = await complete(server, prompt=[7, 8], max_tokens=40, stop=stop)
    assert answer["usage"]["completion_tokens"] == place + 1
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_a_stop_string_may_be_included(server):
    text = said(server, [7, 8], 40)
    stop = text[20:22]
    answer = await complete(
        server, prompt=[7, 8], max_tokens=40, stop=[stop], include_stop_str_in_output=True
    )
    assert answer["choices"][0]["text"] == text[: text.index(stop) + 2]


async def test_a_stop_string_before_min_tokens_is_text(server):
    text = said(server, [7, 8], 40)
    answer = await complete(server, prompt=[7, 8], max_tokens=40, min_tokens=40, stop=[text[5]])
    assert answer["choices"][0]["text"] == text


async def test_one_choice_that_stops_leaves_the_others_running(server):
    wanted = Sampling(temperature=1.0, seed=5)
    stop = said(server, [7, 8], 40, wanted)[10:13]
    answer = await complete(server, prompt=[7, 8], max_tokens=40, n=3, temperature=1.0, seed=5, stop=[stop])
    reasons = [choice["finish_reason"] for choice in answer["choices"]]
    assert reasons == ["stop", "length", "length"]


async def test_a_stop_token_is_not_shown(server):
    tokens = server.continuation([7, 8], 12)
    answer = await complete(server, prompt=[7, 8], stop_token_ids=[tokens[6]])
    cut = tokens.index(tokens[6])
    assert answer["choices"][0]["text"] == server.tokenizer.decode(tokens[:cut], skip_special=True)
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_the_gap_is_filled_between_prefix_and_suffix(server):
    ids = server.tokenizer.fim_prompt("def f(", "return x")
    answer = await complete(server, prompt="def f(", suffix="return x")
    assert answer["choices"][0]["text"] == said(server, ids)
    assert answer["usage"]["prompt_tokens"] == len(ids)


async def test_an_empty_suffix_is_none(server):
    plain = await complete(server, prompt="def f(")
    assert (await complete(server, prompt="def f(", suffix=""))["choices"] == plain["choices"]


async def test_echo_puts_the_prompt_in_front(server):
    plain = await complete(server, prompt="The quick")
    echoed = await complete(server, prompt="The quick", echo=True)
    assert echoed["choices"][0]["text"] == "The quick" + plain["choices"][0]["text"]


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("prompt", ["The quick brown fox", [0, 50, 60, 70, 280]])
async def test_echo_with_logprobs_scores_the_prompt_as_an_evaluation_reads_it(server, prompt, max_tokens):
    tokenizer = server.tokenizer
    ids = tokenizer.encode(prompt, add_special=True) if isinstance(prompt, str) else prompt
    body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": max_tokens, "temperature": 0}
    answer = await complete(server, **body)
    (choice,) = answer["choices"]
    scores = choice["logprobs"]
    assert {len(column) for column in scores.values()} == {len(ids) + max_tokens}
    assert scores["tokens"][: len(ids)] == [tokenizer.token_bytes(token).decode() for token in ids]
    assert scores["token_logprobs"] == [None] + [-1.0] * (len(ids) + max_tokens - 1)
    assert scores["top_logprobs"][0] is None
    assert scores["top_logprobs"][1:] == [{token: -1.0} for token in scores["tokens"][1:]]
    shown = tokenizer.decode(ids, skip_special=False) if isinstance(prompt, list) else prompt
    assert choice["text"].startswith(shown)
    for token, offset in zip(scores["tokens"][1:], scores["text_offset"][1:], strict=True):
        assert choice["text"][offset:].startswith(token)
    assert answer["usage"]["completion_tokens"] == max_tokens
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("prompt", [[5], [5] * 33, "<s>The", [[5], [6, 7]]])
async def test_every_choice_echoes_the_scores_of_its_prompt(server, prompt, max_tokens):
    for stream in (False, True):
        body = {"prompt": prompt, "n": 2, "echo": True, "logprobs": 0, "max_tokens": max_tokens}
        answer = await server.post(PATH, body | {"stream": stream, "ignore_eos": True})
        assert answer.status == 200
        assert server.idle()
    whole = (await server.post(PATH, body | {"stream": False, "ignore_eos": True})).json()
    asked = whole["usage"]["prompt_tokens"]
    scored = [choice["logprobs"]["token_logprobs"] for choice in whole["choices"]]
    assert sum(map(len, scored)) == 2 * asked + len(scored) * max_tokens
    assert all(scores[0] is None and None not in scores[1:] for scores in scored)


async def test_a_completion_of_no_tokens_only_computes_the_prompt(server):
    answer = await complete(server, prompt="The quick", max_tokens=0)
    assert (answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == ("", 0)


async def test_scores_cover_the_text_that_is_shown(server):
    text = said(server, [7, 8], 40)
    stop = text[20:23]
    answer = await complete(server, prompt=[7, 8], max_tokens=40, stop=[stop], logprobs=0)
    choice = answer["choices"][0]
    assert all(offset < len(choice["text"]) for offset in choice["logprobs"]["text_offset"])
    assert len(choice["logprobs"]["tokens"]) <= answer["usage"]["completion_tokens"]


async def test_the_lower_priority_number_runs_first(serving):
    async with serving(scheduler_options=SchedulerOptions(max_running=1)) as server:
        server.gate.shut()
        blocking = server.call(PATH, {"prompt": "hi", "max_tokens": 1})
        await server.until(lambda: server.engine.scheduler.running == 1)
        later = server.call(PATH, {"prompt": "hi", "priority": 5})
        await server.until(lambda: server.unfinished == 2)
        sooner = server.call(PATH, {"prompt": "hi", "priority": -5})
        await server.until(lambda: server.unfinished == 3)
        server.gate.open()
        done, _ = await asyncio.wait((later.task, sooner.task), return_when=asyncio.FIRST_COMPLETED)
        assert done == {sooner.task}
        assert [(await call.answer()).status for call in (blocking, later)] == [200, 200]


async def test_a_list_that_the_queue_cannot_take_whole_is_not_taken_at_all(serving):
    few = SchedulerOptions(max_running=1, max_waiting=1)
    async with serving(scheduler_options=few) as server:
        answer = await server.post(PATH, {"prompt": ["a", "b", "c", "d"]})
        assert answer.status == 429
        assert server.idle()


async def test_a_stop_string_ends_the_work_at_once(server):
    stop = said(server, [7, 8], 40)[5:7]
    await complete(server, prompt=[7, 8], max_tokens=400, stop=[stop])
    assert len(server.gate.inner.plans) < 40


async def test_a_mark_ends_what_fills_a_gap(server):
    marks = server.tokenizer.fim.ids
    prefix, tokens, place = next(
        (prefix, tokens, next(n for n, token in enumerate(tokens) if token in marks))
        for prefix in map(str, range(1000))
        if (tokens := server.continuation(server.tokenizer.fim_prompt(prefix, "x"), 40))
        and any(token in marks for token in tokens)
        and server.tokenizer.eos_id not in tokens
    )
    answer = await complete(server, prompt=prefix, suffix="x", max_tokens=40, ignore_eos=False)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["text"] == server.tokenizer.decode(tokens[:place], skip_special=True)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
async def test_any_seed_leaves_room_for_its_choices(server, seed):
    answer = await complete(server, prompt="hi", seed=seed, n=2, temperature=1.0)
    draws = [row.draw for plan in server.gate.inner.plans for row in plan.rows if row.draw]
    assert all(0 <= draw.seed < 2**63 for draw in draws)
    assert answer["choices"][0]["text"] != answer["choices"][1]["text"]
