"""Between a protocol and the engine: prompts to tokens, tokens to text, and an end to every request."""

from __future__ import annotations

import asyncio
import threading

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import TokenLogprob
from tokenspeed.errors import ContextLengthError, EngineError, OverloadedError
from tokenspeed.generation.outputs import Delta, Ended, Usage
from tokenspeed.generation.request import (
    ChatPrompt,
    GenerationRequest,
    SamplingFields,
    TextPrompt,
    TokenPrompt,
)
from tokenspeed.generation.text import ChoiceText
from tokenspeed.generation.weight import INLINE_CHARACTERS
from tokenspeed.text.tokenizer import Tokenizer

PAIR = (TokenPrompt((5, 6)), TokenPrompt((9,)))
TOKENS = st.lists(st.integers(0, 399), max_size=30)
STOPS = st.lists(st.text("abe .Tqüñ你", min_size=1, max_size=3), max_size=3)


def request(*prompts, **fields):
    return GenerationRequest(
        id="r", prompts=prompts or PAIR, **{"max_tokens": 10, "ignore_eos": True} | fields
    )


async def outputs(generation):
    return [output async for batch in generation for output in batch]


def shown(given, choice):
    return "".join(output.text for output in given if isinstance(output, Delta) and output.choice == choice)


async def test_every_choice_of_every_prompt_ends_once(server):
    generation = await server.generator.start(request(n=2, sampling=SamplingFields(temperature=1, seed=1)))
    given = await outputs(generation)
    assert sorted(output.choice for output in given if isinstance(output, Ended)) == [0, 1, 2, 3]
    assert generation.usage[:4] == Usage(prompt=3, completion=40, cached=0)[:4]
    assert 0.0 < generation.usage.first < generation.usage.last


async def test_several_prompts_say_what_each_says_alone(server):
    together = await outputs(await server.generator.start(request(*PAIR)))
    for index, prompt in enumerate(PAIR):
        alone = await outputs(await server.generator.start(request(prompt)))
        assert shown(together, index) == shown(alone, 0)


async def test_closing_amid_several_prompts_leaves_nothing_behind(server):
    generation = await server.generator.start(request(max_tokens=300))
    await anext(generation)
    generation.close()
    generation.close()
    assert server.idle()


async def test_a_prompt_that_is_refused_takes_back_those_before_it(serving):
    async with serving(scheduler_options=SchedulerOptions(max_running=1, max_waiting=1)) as server:
        with pytest.raises(OverloadedError):
            await server.generator.start(request(*PAIR, *PAIR))
        assert server.idle()


async def test_no_prompt_is_submitted_if_any_is_too_long(server):
    with pytest.raises(ContextLengthError):
        await server.generator.start(request(TokenPrompt((5,)), TokenPrompt((5,) * 512)))
    assert server.unfinished == 0


async def test_a_failing_step_ends_all_choices_of_its_request(server):
    server.failing.append("now")
    generation = await server.generator.start(request(n=3))
    with pytest.raises(EngineError):
        await outputs(generation)
    assert server.idle()


async def test_a_server_that_stops_ends_requests_with_an_error(server):
    server.gate.shut()
    generation = await server.generator.start(request())
    await server.engine.stop()
    with pytest.raises(EngineError):
        await outputs(generation)


async def test_tokens_that_came_after_a_stop_string_are_not_counted(server):
    """The reader finds all tokens in one batch, those sampled after the stop string among them."""
    tokens = server.continuation([5, 6], 60)
    stop = server.tokenizer.decode(tokens, skip_special=True)[10]
    asked = request(TokenPrompt((5, 6)), max_tokens=60, stops=(stop,))
    generation = await server.generator.start(asked)
    await server.until(server.idle)
    given = await outputs(generation)
    assert [output for output in given if isinstance(output, Ended)] == [Ended(0, "stop", stop)]
    text = shown(given, 0)
    assert stop not in text
    count = generation.usage.completion
    assert stop in server.tokenizer.decode(tokens[:count], skip_special=True)
    assert stop not in server.tokenizer.decode(tokens[: count - 1], skip_special=True)


@pytest.mark.parametrize("characters", [10, INLINE_CHARACTERS + 1])
async def test_only_long_texts_are_tokenised_in_a_thread_of_their_own(server, monkeypatch, characters):
    threads = []
    encode = server.tokenizer.encode

    def watched(*args, **kwargs):
        threads.append(threading.current_thread())
        return encode(*args, **kwargs)

    monkeypatch.setattr(server.tokenizer, "encode", watched)
    text = TextPrompt("a" * characters)
    try:
        await outputs(await server.generator.start(request(text, max_tokens=1)))
    except ContextLengthError:
        assert characters > 512
    (thread,) = threads
    assert (thread is threading.main_thread()) == (characters <= INLINE_CHARACTERS)


async def test_long_texts_are_tokenised_one_at_a_time(server, monkeypatch):
    busy, together = threading.Lock(), []
    encode = server.tokenizer.encode

    def watched(*args, **kwargs):
        together.append(not busy.acquire(blocking=False))
        try:
            return encode(*args, **kwargs)
        finally:
            busy.release()

    monkeypatch.setattr(server.tokenizer, "encode", watched)
    text = TextPrompt("a b" * INLINE_CHARACTERS)
    starts = [server.generator.start(request(text)) for _ in range(4)]
    refused = await asyncio.gather(*starts, return_exceptions=True)
    assert [type(error) for error in refused] == [ContextLengthError] * 4
    assert together == [False] * 4


def spaced_words() -> Tokenizer:
    """A SentencePiece-style tokenizer, every token of which starts with a space."""
    words = {f"▁w{index}": index for index in range(400)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="▁w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    return Tokenizer(tokenizer.to_str().encode(), {})


async def test_only_a_text_of_its_own_loses_the_space_in_front(serving):
    user, reply = {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}
    async with serving(tokenizer=spaced_words()) as server:
        for prompt, space in (
            (TextPrompt("w1 w2"), True),
            (TokenPrompt((1, 2)), True),
            (ChatPrompt([user]), False),
            (ChatPrompt([user, reply], continue_final=True), True),
        ):
            text = shown(await outputs(await server.generator.start(request(prompt))), 0)
            assert text.startswith(" ") == space


@given(tokens=TOKENS, stops=STOPS, cuts=st.lists(st.integers(1, 4), min_size=30, max_size=30))
def test_text_does_not_depend_on_how_tokens_are_batched(tokenizer, tokens, stops, cuts):
    def run(sizes, logprobs):
        asked = request(stops=tuple(stops), logprobs=logprobs)
        state = ChoiceText(tokenizer, asked, continues=True, offset=0)
        texts, rest, scores = [], list(tokens), []
        for size in sizes:
            batch, rest = rest[:size], rest[size:]
            logs = [TokenLogprob(token, -0.5) for token in batch]
            texts.append(state.push(batch, logs))
            ended = state.stop is not None
            scores += state.take_scores(texts[-1], ended=ended)
            if ended:
                return "".join(texts), state.stop, state.tokens, scores
        texts.append(state.flush())
        scores += state.take_scores(texts[-1], ended=True)
        return "".join(texts), state.stop, state.tokens, scores

    one_by_one = run([1] * 30, None)
    assert run(cuts, None) == one_by_one
    text, stop, count, scores = run(cuts, 0)
    assert (text, stop, count) == one_by_one[:3]
    check_text(tokenizer, tokens, stops, one_by_one)
    check_scores(tokenizer, tokens, text, stop, scores)


def check_text(tokenizer, tokens, stops, given):
    """The text is what the tokenizer makes of all tokens, cut where the first stop string begins."""
    text, stop, count, _ = given
    whole = tokenizer.decode(tokens, skip_special=True)
    if stop is None:
        assert text == whole
        assert not any(each in whole for each in stops)
        return
    assert whole.startswith(text + stop)
    assert not any(each in text for each in stops)
    assert stop in tokenizer.decode(tokens[:count], skip_special=True)


def check_scores(tokenizer, tokens, text, stop, scores):
    """Scores are of the first tokens, in order, and lie inside the text that was shown."""
    assert [score.data for score in scores] == [tokenizer.token_bytes(t) for t in tokens[: len(scores)]]
    offsets = [score.offset for score in scores]
    assert offsets == sorted(offsets)
    if stop is None:
        assert len(scores) == len(tokens)
    else:
        assert all(offset < len(text) for offset in offsets)
