"""What was measured, kept and read again, and what it says."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from bench.client import BenchError
from bench.serve.notes import notes
from bench.serve.recording import Outcome, Recording, load, save
from bench.serve.report import print_report
from bench.serve.summary import Row, Summary


def report(recording: Recording, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(Summary(recording), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(recording: Recording, kind: str, key: str) -> Row:
    return next(row for row in Summary(recording).rows if (row.kind, row.figure.key) == (kind, key))


def test_a_recording_that_is_read_again_gives_the_same_report(recording: Recording, tmp_path: Path) -> None:
    save(recording, tmp_path / "run.json")
    assert report(load(tmp_path / "run.json")) == report(recording)


def set_sent(raw: Any) -> None:
    raw["repeats"][0]["outcomes"][3]["sent"] = "now"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda raw: raw.update(schema="x/9"), "schema: expected 'tokenspeed-bench-serve/1', got 'x/9'"),
        (lambda raw: raw.update(workload="chatter"), "workload: 'chatter' is none of chat, mixed"),
        (lambda raw: raw.pop("seed"), "missing required field `seed`"),
        (lambda raw: raw["repeats"][1].update(endpoint=2), "repeats[1].endpoint: there is no endpoint 2"),
        (set_sent, "repeats[0].outcomes[3].sent: expected `float`, got `str`"),
        (lambda raw: raw["objective"].update(ttft=0), "objective.ttft: expected `float` > 0"),
        (lambda raw: raw.update(endpoints=[]), "endpoints: expected `array` of length >= 1"),
        (lambda raw: raw.update(coulour="red"), "unknown field `coulour`"),
    ],
)
def test_a_wrong_field_of_a_recording_is_named(
    recording: Recording, tmp_path: Path, change: Callable[[Any], Any], told: str
) -> None:
    raw = msgspec.to_builtins(recording)
    change(raw)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(BenchError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert told in str(error.value)


def test_a_recording_that_is_not_json_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema": 1,\n"made" 2}')
    with pytest.raises(BenchError, match=r"not JSON: .*, line 2"):
        load(tmp_path / "run.json")


def test_a_figure_is_the_median_of_the_repeats_with_the_least_and_the_largest(recording: Recording) -> None:
    spread = row(recording, "short", "ttft_p50").spreads[0]
    assert spread is not None
    assert spread == pytest.approx((14.645, 14.5, 14.79))  # ms; 10 ms × 1.45, then 1% and 2% more


def test_ratios_say_how_many_times_better_the_first_is(recording: Recording) -> None:
    faster = row(recording, "short", "ttft_p99").ratio
    assert faster is not None
    assert faster == pytest.approx((10, 10, 10))
    assert faster.verdict == "better"
    same = row(recording, "long", "ttft_p50").ratio
    assert same is not None
    assert same.verdict == "no difference"
    recording.endpoints.reverse()
    for repeat in recording.repeats:
        repeat.endpoint = 1 - repeat.endpoint
    slower = row(recording, "short", "ttft_p99").ratio
    assert slower is not None
    assert (slower.value, slower.verdict) == (pytest.approx(0.1), "worse")


def test_one_repeat_of_each_is_compared_by_resampling_its_requests(recording: Recording) -> None:
    del recording.repeats[2:]
    for number, outcome in enumerate(recording.repeats[1].outcomes):
        outcome.chunks[0] += 0.01 * (number % 3)
    ratio = row(recording, "short", "ttft_p50").ratio
    assert ratio is not None
    assert 9.99 < ratio.low < ratio.value < ratio.high
    assert ratio.verdict == "better"


def test_only_repeats_that_both_completed_are_compared(recording: Recording) -> None:
    recording.repeats[-1].complete = False
    recording.repeats[-1].outcomes = recording.repeats[-1].outcomes[:1]
    ratio = row(recording, "short", "ttft_p99").ratio
    assert ratio is not None
    assert ratio == pytest.approx((10, 10, 10))
    del recording.repeats[1:]
    assert row(recording, "short", "ttft_p99").ratio is None


def test_the_report_holds_every_figure_both_names_and_the_verdicts(recording: Recording) -> None:
    told = report(recording)
    for title in ("TTFT p50", "TTFT p95", "TTFT p99", "gap p50", "gap p99", "decode p50", "output of all"):
        assert title in told
    for text in ("goodput", "slow <&>", "better", "no difference", "×10.0 (10.0..10.0)", "late by 1.00 ms"):
        assert text in told
    assert "TTFT of at most 500 ms and 99% of their own gaps at most 100 ms" in told


def test_the_report_of_a_narrow_terminal_loses_no_figure(recording: Recording) -> None:
    assert "TTFT p99" in report(recording, width=80)


def test_a_late_and_busy_client_is_told(recording: Recording) -> None:
    recording.repeats[0].cpu_share = 0.9
    for outcome in recording.repeats[0].outcomes:
        outcome.sent += 0.05
    told = "\n".join(notes(Summary(recording)))
    assert "The client sent 1% of the requests to quick more than 51 ms late" in told
    assert "used 90% of a core for quick" in told


def test_prompts_of_another_length_than_wanted_are_told(recording: Recording) -> None:
    recording.prompt_tokens["long"] = 200.0
    assert "quick: long prompts have 100 tokens instead of 200" in "\n".join(notes(Summary(recording)))


def test_an_endpoint_that_answered_nothing_is_told(recording: Recording) -> None:
    for repeat in recording.repeats:
        if repeat.endpoint == 0:
            repeat.outcomes = [Outcome("short", 0, 0.0, 5, 0.0, error="gone")]
    told = report(recording)
    assert "quick answered nothing" in told
    assert "quick: 3 × gone" in told
