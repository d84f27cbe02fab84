"""The GPU bench: its pure parts, its client processes at a strange endpoint, all of it on a real server."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp.web
import numpy as np
import pytest
from safetensors.torch import load_file

from bench import checkpoints
from bench.client import BenchError
from bench.gpu_serve.arguments import parse
from bench.gpu_serve.clients import Clients
from bench.gpu_serve.measure import Played, Player
from bench.gpu_serve.plans import NAMES, WARM_OUTPUT, WARM_PROMPT, plans
from bench.gpu_serve.report import notes, row_json, rows_of, start_rows
from bench.gpu_serve.run import Measurement
from bench.gpu_serve.server import risen
from bench.gpu_serve.summary import of_kind, spread, summary
from bench.gpu_serve.targets import TARGETS, Target
from bench.peers import Contestant
from bench.serve.recording import Outcome
from tokenspeed import builtin

ROOT = Path(__file__).parents[2]


def outcome(kind: str, ttft: float, chunks: int, tokens: int, **fields: Any) -> Outcome:
    """Answered at a steady pace of a chunk every 10 ms."""
    times = [ttft + 0.01 * number for number in range(chunks)]
    ended = times[-1] if times else 1.0
    known = {"prompt_tokens": 8, "completion_tokens": tokens, "finish": "length"}
    return Outcome(kind, 0, 0.0, tokens, 0.0, ended, times, **known | fields)


def plan(name: str, scale: float = 1.0) -> Any:
    (found,) = plans((name,), scale)
    return found


# -- what is asked -----------------------------------------------------------------------------------


def test_the_workloads_are_those_that_the_goals_are_about() -> None:
    kinds = {kind for each in plans(NAMES, 1.0) for kind in each.kinds()} | {"start"}
    shown = {
        (kind, figure.key) for each in plans(NAMES, 1.0) for kind in each.kinds() for figure in each.shows
    }
    for targets in TARGETS.values():
        assert {kind for kind, _ in targets} <= kinds
        assert set(targets) <= shown | {("start", "first_token")}


def test_the_mixed_workload_is_short_chats_and_two_long_prompts_every_three_seconds() -> None:
    arrivals = plan("mixed").arrivals
    long = [arrival for arrival in arrivals if arrival.kind == "long"]
    assert [arrival.at for arrival in long] == [at for at in np.arange(1.5, 24, 3) for _ in range(2)]
    assert {(arrival.prompt_tokens, arrival.max_tokens) for arrival in long} == {(30_000, 64)}
    short = [arrival for arrival in arrivals if arrival.kind == "short"]
    assert 300 < len(short) < 470
    assert all(64 <= a.prompt_tokens <= 400 and a.max_tokens == 96 for a in short)


def test_a_warm_up_has_as_many_requests_at_once_but_short_ones_beside_the_largest_of_each_kind() -> None:
    streams = plan("s256").warm_up()
    assert len(streams) == 256
    assert sorted(arrival.prompt_tokens for arrival in streams) == [WARM_PROMPT] * 255 + [512]
    assert {arrival.max_tokens for arrival in streams} == {WARM_OUTPUT}
    ladder = plan("prompts").warm_up()
    assert sorted(arrival.prompt_tokens for arrival in ladder) == [128, 2048, 8192, 30_000]
    mixed = plan("mixed").warm_up()
    assert len(mixed) == 16
    assert {(arrival.at, arrival.phase) for arrival in mixed} == {(0.0, 0)}
    assert max(arrival.prompt_tokens for arrival in mixed) == 30_000


def test_a_scale_shrinks_tokens_requests_and_seconds() -> None:
    small = plan("uniform", 0.05)
    assert len(small.arrivals) == 13
    assert all(5 <= a.prompt_tokens <= 51 and 5 <= a.max_tokens <= 51 for a in small.arrivals)
    assert plan("mixed", 0.05).arrivals[-1].at < 2.0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--only", "one,tow"], "no workload 'tow'; there are one,"),
        (["--shape", "llama9b"], "no shape 'llama9b'; there are draft600m, llama8b"),
        (["--url", "http://x", "--only", "start"], "'start' needs one of our own"),
        (["--url", "http://x", "--set", "a.b=1"], "have no effect"),
        (["--url", "http://x", "--shape", "llama8b,qwen600m"], "name one --shape at most"),
        (["--folder", "nowhere"], "tells no vocab_size"),
        (["--scale", "2"], "not above 0 and at most 1"),
        (["--clients", "0"], "one at least"),
    ],
)
def test_arguments_without_sense_are_told_in_one_line(given: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=told) as error:
        parse(["--out", str(tmp_path), *given])
    assert "\n" not in str(error.value)


def test_without_names_everything_is_measured_that_can_be(tmp_path: Path) -> None:
    both = parse(["--out", str(tmp_path)])
    assert [(each.name, each.vocab) for each in both.subjects] == [("llama8b", 128256), ("qwen600m", 151936)]
    assert both.names == NAMES
    other = parse(["--out", str(tmp_path), "--url", "127.0.0.1:1", "--shape", "llama8b", "--name", "vllm"])
    assert [(each.name, each.shape, each.vocab) for each in other.subjects] == [("vllm", "llama8b", 128256)]
    assert "start" not in other.names


# -- what it makes of answers ------------------------------------------------------------------------


def test_percentiles_are_over_all_requests_of_a_kind_however_many_processes_sent_them() -> None:
    told = of_kind([outcome("x", 0.001 * number, 3, 6) for number in range(1, 101)])
    assert told["ttft_ms"]["p50"] == pytest.approx(50.5)
    assert told["ttft_ms"]["p99"] == pytest.approx(99.01)
    assert (told["ttft_ms"]["least"], told["ttft_ms"]["largest"]) == (1.0, 100.0)
    assert told["gap_ms"] == spread([10.0] * 200)
    assert (told["chunks"], told["output_tokens"], told["tokens_per_chunk"]) == (300, 600, 2.0)
    assert told["seconds"] == pytest.approx(0.12)
    assert told["output_tokens_per_s"] == pytest.approx(5000)


def test_tokens_are_those_of_the_usage_and_a_gap_is_between_chunks() -> None:
    told = of_kind([outcome("x", 0.1, 5, 20)])
    assert told["decode_tokens_per_s"]["p50"] == pytest.approx(16 / 0.04)
    assert told["gap_ms"]["count"] == 4


def test_failures_are_counted_told_and_in_no_percentile() -> None:
    played = Played(
        plan("s8"), [outcome("8 streams", 0.1, 2, 2), outcome("8 streams", 0.1, 0, 2, error="timeout")]
    )
    told = summary(played)
    kind = told["kinds"]["8 streams"]
    assert (kind["requests"], kind["failed"], kind["errors"]) == (2, 1, {"timeout": 1})
    assert kind["ttft_ms"]["count"] == 1
    rate = rows_of(played)[0]
    assert (rate.told, row_json(rate, Target(goal=0.0, vllm=None))["goal_met"]) == ("1 FAILED", False)
    assert any("1 of 2 requests FAILED (1 × timeout)" in note for note in notes([played], [told], 0.0))


def test_a_client_that_was_late_or_busy_is_told() -> None:
    late = outcome("8 streams", 0.1, 2, 2)
    late.sent = 0.02
    played = Played(plan("s8"), [late])
    told = notes([played], [summary(played)], 0.9)
    assert any("20.0 ms late" in note for note in told)
    assert any("90% of a core" in note for note in told)


def test_a_workload_that_was_not_run_has_rows_without_a_value_and_a_note() -> None:
    played = Played(plan("one"), not_run="no time left")
    assert {row.value for row in rows_of(played)} == {None}
    assert json.dumps(summary(played))
    assert notes([played], [summary(played)], 0.0) == ["1 stream, 128/256: no time left; raise --budget"]


def test_a_row_says_whether_its_goal_is_met_and_how_many_times_better_it_is() -> None:
    rate, wait = rows_of(Played(plan("one"), [outcome("1 stream", 0.01, 101, 101)]))
    assert rate.value == pytest.approx(100)
    told = row_json(rate, Target(goal=80, vllm=50))
    assert (told["goal_met"], told["times_vllm"]) == (True, pytest.approx(2.0))
    told = row_json(wait, Target(goal=8, vllm=20))
    assert (told["goal_met"], told["times_vllm"]) == (False, pytest.approx(2.0))


def test_the_slower_start_counts_and_both_are_told() -> None:
    (row,) = start_rows([{"first_token_s": 9.0}, {"first_token_s": 7.5}])
    assert (row.value, row.told) == (9.0, "(9.00 7.50)")


def test_metrics_of_a_workload_are_what_has_risen() -> None:
    assert risen({"a": 1.0, "b": 2.0}, {"a": 4.0, "b": 2.0, "c": 1.0}) == {"a": 3.0, "c": 1.0}


# -- checkpoints -------------------------------------------------------------------------------------

TINY = checkpoints.Shape("LlamaForCausalLM", 64, 3, 4, 2, 16, 128, 512, 5e5, 8192, tied=False)


def test_shards_hold_every_tensor_of_the_shape_and_stay_below_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 100_000)
    checkpoints.write_shards(TINY, tmp_path)
    placed = json.loads((tmp_path / checkpoints.INDEX).read_text())["weight_map"]
    files = sorted(set(placed.values()))
    assert len(files) > 2
    loaded = {}
    for file in files:
        held = load_file(tmp_path / file)
        assert sum(tensor.nbytes for tensor in held.values()) <= 100_000
        assert all(placed[name] == file for name in held)
        loaded |= held
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == dict(checkpoints.tensors(TINY))
    deep = loaded["model.layers.2.mlp.down_proj.weight"].float()
    assert 0.3 < deep.std() * deep.shape[1] ** 0.5 < 1.5
    norm = loaded["model.norm.weight"].float()
    assert ((norm >= 1) & (norm < 1.3)).all()


def test_a_folder_without_weights_says_all_else_about_the_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(checkpoints.SHAPES, "tiny", TINY)
    folder = checkpoints.weightless("tiny", tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert (config["max_position_embeddings"], config["tie_word_embeddings"]) == (8192, False)
    assert checkpoints.step_bytes(checkpoints.SHAPES["llama8b"]) == pytest.approx(15.0e9, rel=0.01)


# -- over sockets ------------------------------------------------------------------------------------


ENDLESS = 26  # tokens of an answer that never comes


@asynccontextmanager
async def endpoint(seen: list[dict[str, Any]]) -> AsyncIterator[str]:
    """Two tokens a chunk; every third request fails."""

    async def handle(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        if request.method == "GET":
            return aiohttp.web.Response(status=404)
        body = json.loads(await request.read())
        seen.append(body)
        if body["max_tokens"] == ENDLESS:
            await asyncio.Event().wait()  # for ever
        if len(seen) % 3 == 0:
            return aiohttp.web.json_response({"error": {"message": "out of luck"}}, status=500)
        answer = aiohttp.web.StreamResponse()
        await answer.prepare(request)
        tokens = body["max_tokens"]
        for left in range(tokens - 2, -1, -2):
            choice = {"index": 0, "text": " w w", "finish_reason": None if left else "length"}
            await answer.write(b"data: %s\n\n" % json.dumps({"choices": [choice]}).encode())
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": tokens}
        await answer.write(b"data: %s\n\n" % json.dumps({"choices": [], "usage": usage}).encode())
        await answer.write(b"data: [DONE]\n\n")
        return answer

    answering = aiohttp.web.Server(handle)
    server = await asyncio.get_running_loop().create_server(answering, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await answering.shutdown(1.0)


def play(url: str, wanted: Any) -> Played:
    with Clients(2, url, None) as clients:
        return Player(clients, url, "m", 1000).play(wanted, 60.0)


async def test_processes_share_the_requests_and_everything_of_them_is_merged() -> None:
    seen: list[dict[str, Any]] = []
    wanted = plan("s8", 0.75)  # 6 streams, 384/192; as many before them
    async with endpoint(seen) as url:
        played = await asyncio.to_thread(play, url, wanted)
    told = summary(played)["kinds"]["6 streams"]
    assert (told["requests"], told["failed"], played.warm_up_failed) == (6, 2, 2)
    assert told["errors"] == {"status 500: out of luck": 2}
    assert (told["output_tokens"], told["tokens_per_chunk"], told["without_usage"]) == (4 * 192, 2.0, 0)
    assert all(0 <= one.scheduled <= one.sent <= one.ended for one in played.outcomes)
    measured = [body for body in seen if body["max_tokens"] == 192]
    assert {len(body["prompt"]) for body in measured} == {384}
    assert all(100 <= token < 900 for body in seen for token in body["prompt"])
    assert len({tuple(body["prompt"][:16]) for body in seen}) == len(seen)
    assert measured[0] | {"prompt": []} == {
        "model": "m",
        "prompt": [],
        "max_tokens": 192,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_starts_are_taken_twice_from_a_folder_with_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(checkpoints.SHAPES, "qwen600m", TINY)
    commands = []

    @contextmanager
    def started(contestant: Contestant, patience: float) -> Iterator[Any]:
        commands.append(contestant.command)
        yield SimpleNamespace(ready_seconds=3.0, start_seconds=3.0 + len(commands))

    monkeypatch.setattr("bench.gpu_serve.run.started", started)
    places = ("--out", str(tmp_path), "--cache", str(tmp_path / "cache"))
    options = parse([*places, "--shape", "qwen600m", "--only", "start", "--set", "a.b=1"])
    Measurement(options, options.subjects[0], time.monotonic() + 60).run()
    kept = json.loads((tmp_path / "qwen600m.json").read_text())
    assert [start["first_token_s"] for start in kept["starts"]] == [4.0, 5.0]
    assert [(row["figure"], row["value"], row["vllm_0_24"]) for row in kept["rows"]] == [
        ("first_token", 5.0, 101)
    ]
    assert commands[0] == commands[1]
    assert "--random-weights" not in commands[0]
    assert commands[0][-2:] == ("--set", "a.b=1")
    assert (tmp_path / "cache/qwen600m/model-00001-of-00001.safetensors").is_file()


async def test_a_request_without_an_end_fails_when_the_time_of_its_workload_is_over() -> None:
    wanted = replace(plan("s8", 0.1), timeout=1.2)  # answers of 26 tokens
    async with endpoint([]) as url:
        played = await asyncio.to_thread(play, url, wanted)
    assert [one.error for one in played.outcomes] == ["no end within the time of the workload"] * 2


@pytest.mark.slow
async def test_a_run_starts_the_server_measures_it_and_leaves_its_file(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", "gpu_serve", "--folder", str(builtin.MODEL), "--out", str(tmp_path)),
        *("--only", "one,s8", "--scale", "0.02", "--clients", "2", "--name", "builtin"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    raw, err = await process.communicate()
    out = raw.decode()
    kept = json.loads((tmp_path / "builtin.json").read_text())
    assert (process.returncode in (0, 1), "Traceback" in err.decode()) == (True, False)
    assert kept["error"] is None
    assert "1 stream, 4/5" in out
    assert [workload["workload"] for workload in kept["workloads"]] == ["one", "s8"]
    counts = [kind for workload in kept["workloads"] for kind in workload["kinds"].values()]
    assert [(kind["requests"], kind["failed"], kind["output_tokens"]) for kind in counts] == [
        (5, 0, 25),
        (2, 0, 10),
    ]
    assert all(row["value"] > 0 and row["goal"] is None for row in kept["rows"])
    risen = kept["workloads"][1]["server_metrics"]
    assert sum(value for name, value in risen.items() if name.startswith("tokenspeed_generated_tokens")) == 10
