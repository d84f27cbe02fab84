"""Endpoints of many kinds, measured over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.client import BenchError
from bench.serve.arguments import Options, parse
from bench.serve.measure import measure
from bench.serve.notes import notes
from bench.serve.recording import Outcome, Recording
from bench.serve.summary import Summary

STREAMS = ("--workload", "streams", "--streams", "1,3", "--prompt", "40", "--output", "6", "--repeats", "2")
CHAT = (
    "--workload",
    "chat",
    "--rate",
    "50",
    "--duration",
    "0.5",
    "--prompt",
    "40",
    "--output",
    "6",
    "--repeats",
    "1",
)
Serve = Callable[..., Any]


async def measured(*arguments: str) -> Recording:
    options, _ = parse(arguments)
    assert isinstance(options, Options)
    return await measure(options, Console(file=io.StringIO()))


def outcomes(recording: Recording) -> list[Outcome]:
    return [outcome for repeat in recording.repeats for outcome in repeat.outcomes]


def told(recording: Recording) -> str:
    return "\n".join(notes(Summary(recording)))


async def test_prompts_have_the_length_that_was_asked_for_and_never_the_same_words(serve: Serve) -> None:
    endpoint = await serve()
    recording = await measured("--url", endpoint.url, *STREAMS)
    assert {outcome.prompt_tokens for outcome in outcomes(recording)} <= {39, 41}  # two tokens a word
    prompts = [body["prompt"] for body in endpoint.bodies[-8:]]
    assert len(set(prompts)) == 8
    assert all(body["temperature"] == 0 and body["ignore_eos"] for body in endpoint.bodies)


@pytest.mark.parametrize("workload", [STREAMS, CHAT])
@pytest.mark.parametrize("usage", ["last", "each"])
async def test_tokens_of_usage_are_counted_where_chunks_hold_several(
    serve: Serve, workload: tuple[str, ...], usage: str
) -> None:
    endpoint = await serve(tokens_a_chunk=4, usage=usage)
    recording = await measured("--url", endpoint.url, *workload)
    assert {(outcome.tokens, len(outcome.chunks)) for outcome in outcomes(recording)} == {(6, 2)}
    assert "sends 3.0 tokens a chunk" in told(recording)


async def test_an_endpoint_without_usage_is_measured_by_its_chunks_and_the_report_says_so(
    serve: Serve,
) -> None:
    endpoint = await serve(usage="never")
    recording = await measured("--url", endpoint.url, *STREAMS)
    assert {outcome.tokens for outcome in outcomes(recording)} == {6}
    assert recording.endpoints[0].sizing.measured  # by a whole answer, which has usage
    assert "does not tell usage" in told(recording)


async def test_a_role_alone_does_not_end_the_wait_for_the_first_token(serve: Serve) -> None:
    endpoint = await serve(pause=0.02)
    recording = await measured("--url", endpoint.url, *CHAT)
    first = outcomes(recording)[0]
    assert len(first.chunks) == 6
    assert first.chunks[0] - first.sent >= 0.04  # the role's pause and the first token's


async def test_fields_that_an_endpoint_refuses_are_left_out(serve: Serve) -> None:
    endpoint = await serve(refuses=("ignore_eos", "max_tokens"))
    recording = await measured("--url", endpoint.url, *CHAT)
    assert recording.endpoints[0].left_out == ["ignore_eos", "max_tokens"]
    assert {outcome.error for outcome in outcomes(recording)} == {None}
    assert endpoint.bodies[-1]["max_completion_tokens"] == 6
    assert "refuses 'ignore_eos'" in told(recording)


async def test_a_workload_goes_to_the_path_that_both_endpoints_have(serve: Serve) -> None:
    both, chats = await serve(), await serve(paths=("/v1/chat/completions",))
    recording = await measured("--url", both.url, "--versus", chats.url, *STREAMS)
    assert [endpoint.path for endpoint in recording.endpoints] == ["/chat/completions"] * 2


async def test_two_endpoints_take_turns_with_the_same_words(serve: Serve) -> None:
    order: list[str] = []
    first = await serve(on_request=lambda _: order.append("A"))
    second = await serve(on_request=lambda _: order.append("B"))
    recording = await measured("--url", first.url, "--versus", second.url, *STREAMS)
    assert [(repeat.endpoint, repeat.number) for repeat in recording.repeats] == [
        (0, 0),
        (1, 0),
        (1, 1),
        (0, 1),
    ]
    assert "".join(order[-16:]) == "AAAABBBBBBBBAAAA"
    assert {body["prompt"] for body in first.bodies[-8:]} == {body["prompt"] for body in second.bodies[-8:]}


async def test_answers_shorter_than_asked_are_told(serve: Serve) -> None:
    endpoint = await serve(answer_tokens=2)
    recording = await measured("--url", endpoint.url, *STREAMS)
    assert "8 of 8 answers have fewer tokens than were asked for" in told(recording)


async def test_failed_requests_are_counted_with_what_was_said(serve: Serve) -> None:
    endpoint = await serve(fails_at=8, breaks_at=9)
    recording = await measured("--url", endpoint.url, *STREAMS)
    summary = Summary(recording)
    assert summary.errors() == 2
    assert sorted(summary.error_counts(0)) == [("status 500: out of memory", 1), ("the device is lost", 1)]
    assert recording.ended_early is None


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'data: {"choices": [{"text": "a"', "Input data was truncated"),
        (b"data: [1]\n\n", "Expected `object`, got `array`"),
        (b'data: {"choices": [{"text": 3}]}\n\n', "Expected `str | null`, got `int`"),
        (b'data: {"choices": [{"text": "a", "finish_reason": null}]}\n\n', "without a finish_reason"),
        (b"<html>nothing of the kind</html>", "without a finish_reason"),
    ],
)
async def test_an_endpoint_that_streams_something_else_is_refused_with_the_reason(
    serve: Serve, raw: bytes, said: str
) -> None:
    endpoint = await serve(raw=raw)
    with pytest.raises(BenchError, match=said.replace("|", r"\|")):
        await measured("--url", endpoint.url, *STREAMS)


async def test_an_endpoint_that_dies_leaves_a_report_of_what_was_measured(serve: Serve) -> None:
    endpoint = await serve(dies_at=11)  # in the second repeat
    recording = await measured("--url", endpoint.url, "--name", "mine", *STREAMS)
    assert recording.ended_early == "mine does not answer any more"
    assert [repeat.complete for repeat in recording.repeats] == [True, False]
    summary = Summary(recording)
    assert summary.errors() >= 1
    row = next(row for row in summary.rows if row.figure.key == "ttft_p50")
    assert row.spreads[0] is not None  # of the first repeat
    assert "The run ended early" in told(recording)


async def test_an_endpoint_that_dies_in_its_first_repeat_is_reported_by_what_it_had_answered(
    serve: Serve,
) -> None:
    endpoint = await serve(dies_at=8)  # after four probes and two warm-ups
    recording = await measured("--url", endpoint.url, *STREAMS)
    assert not any(repeat.complete for repeat in recording.repeats)
    assert any(row.spreads[0] for row in Summary(recording).rows)


async def test_requests_are_sent_on_schedule_whatever_became_of_earlier_ones(serve: Serve) -> None:
    options, _ = parse(["--url", "http://unused", *CHAT])
    assert isinstance(options, Options)
    asked = len(options.workload.arrivals)
    before = 5  # four probes and a warm-up
    endpoint = await serve(held=range(before, before + asked))  # no answer before all have been sent
    recording = await measured("--url", endpoint.url, *CHAT, "--timeout", "60")
    assert [outcome.error for outcome in outcomes(recording)] == [None] * asked


async def test_the_clients_own_lateness_is_told_and_counts_as_waiting(serve: Serve) -> None:
    def block(number: int) -> None:  # the client shares this loop
        if number == 8:
            asyncio.get_running_loop().call_later(0, time.sleep, 0.2)

    endpoint = await serve(on_request=block)
    recording = await measured("--url", endpoint.url, *CHAT)
    late = max(outcomes(recording), key=lambda outcome: outcome.sent - outcome.scheduled)
    assert late.sent - late.scheduled > 0.1
    assert late.chunks[0] - late.scheduled > late.chunks[0] - late.sent + 0.1
    assert "late; TTFT holds that" in told(recording)


async def test_a_trace_is_played_as_it_stands(serve: Serve, tmp_path: Path) -> None:
    endpoint = await serve()
    lines = [
        {"at": 0.0, "prompt_tokens": 41, "max_tokens": 3, "kind": "long", "priority": 2},
        {"at": 0.02, "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 2},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    recording = await measured("--url", endpoint.url, "--trace", str(path), "--repeats", "1")
    first, second = endpoint.bodies[-2:]
    assert (first["priority"], first["max_tokens"]) == (2, 3)
    assert second["messages"] == [{"role": "user", "content": "a b c"}]
    assert [outcome.kind for outcome in outcomes(recording)] == ["long", "all"]


async def test_a_request_too_large_for_an_endpoint_is_told_before_anything_is_measured(serve: Serve) -> None:
    endpoint = await serve(context=1000)
    with pytest.raises(BenchError, match=r"'long' request of 2,000 tokens: .*maximum context length is 1000"):
        await measured("--url", endpoint.url, "--workload", "mixed", "--long-prompt", "2000")


async def test_a_wrong_model_is_told_in_the_endpoints_words(serve: Serve) -> None:
    endpoint = await serve()
    with pytest.raises(BenchError, match="no model 'other'"):
        await measured("--url", endpoint.url, "--model", "other", *STREAMS)


async def test_an_address_without_an_endpoint_is_told(serve: Serve) -> None:
    endpoint = await serve()
    with pytest.raises(BenchError, match="is this an OpenAI-compatible address"):
        await measured("--url", f"{endpoint.url}/elsewhere", *STREAMS)
    endpoint.die()
    with pytest.raises(BenchError, match="cannot connect"):
        await measured("--url", endpoint.url, *STREAMS)


async def test_ctrl_c_ends_the_run_with_what_was_measured(serve: Serve) -> None:
    def interrupt(number: int) -> None:
        if number == 11:
            signal.raise_signal(signal.SIGINT)

    endpoint = await serve(on_request=interrupt)
    recording = await measured("--url", endpoint.url, *STREAMS)
    assert recording.ended_early == "Ctrl-C"
    assert [repeat.complete for repeat in recording.repeats] == [True, False]


async def test_light_is_bandwidth_over_bytes_and_a_figure_of_one_stream(serve: Serve) -> None:
    endpoint = await serve()
    recording = await measured("--url", endpoint.url, *STREAMS, "--light", "1M:1G")
    assert recording.light is not None
    assert recording.light.tokens_per_second == 1000
    rows = {(row.kind, row.figure.key): row.spreads[0] for row in Summary(recording).rows}
    rate, part = rows["1 stream", "decode_p50"], rows["1 stream", "light"]
    assert rate is not None
    assert part is not None
    assert part.median == pytest.approx(rate.median / 1000)
    assert ("3 streams", "light") not in rows


async def test_the_bandwidth_is_measured_where_none_is_stated(serve: Serve) -> None:
    endpoint = await serve()
    recording = await measured("--url", endpoint.url, *STREAMS, "--light", "100M")
    assert recording.light is not None
    assert recording.light.measured
    assert recording.light.bandwidth > 1e8
