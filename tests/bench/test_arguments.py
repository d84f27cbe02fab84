"""The command line: what is wrong is named before anything is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.client import BenchError
from bench.serve.arguments import Options, parse

URL = ("--url", "127.0.0.1:8000")
CHAT = (*URL, "--workload", "chat")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "give --url"),
        (URL, "give --workload, one of chat, mixed, prefill, streams, throughput, or --trace"),
        (("--url", "ftp://x", "--workload", "chat"), "'ftp://x' is not an address"),
        ((*CHAT, "--long-every", "3"), "--long-every has no effect on --workload chat"),
        ((*CHAT, "--trace", "x"), "--trace is a workload of its own"),
        ((*CHAT, "--from", "x"), "--from reports what was measured before"),
        ((*CHAT, "--versus-name", "x"), "need --versus"),
        ((*CHAT, "--objective", "tftt=1"), "--objective: no 'tftt'"),
        ((*CHAT, "--objective", "ttft=-1"), "--objective: ttft: -1 is not more than 0"),
        ((*CHAT, "--objective", "gap=fast"), "--objective: gap: 'fast' is not a number"),
        ((*CHAT, "--extra-body", "{"), "--extra-body: not JSON"),
        ((*CHAT, "--extra-body", "[]"), "--extra-body: give an object"),
        ((*CHAT, "--extra-body", '{"stream": false}'), "--extra-body: 'stream' is set by the bench itself"),
        ((*CHAT, "--light", "1G"), "--light is about one stream"),
        ((*URL, "--workload", "streams", "--light", "1X"), "--light: '1X' is not a number of bytes"),
        ((*CHAT, "--json", "/nowhere/x.json"), "there is no folder /nowhere"),
        ((*CHAT, "--html", "/"), "/: is a folder"),
    ],
)
def test_wrong_arguments_are_named(given: tuple[str, ...], told: str) -> None:
    with pytest.raises(BenchError) as error:
        parse(given)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--workload", "chatter"), "argument --workload: invalid choice: 'chatter'"),
        (("--rate", "fast"), "argument --rate: 'fast' is not a number"),
        (("--rate", "0"), "argument --rate: 0 is not more than 0"),
        (("--duration", "nan"), "argument --duration: nan is not more than 0"),
        (("--repeats", "0"), "argument --repeats: 0 is less than 1"),
        (("--prompt", "9-3"), "argument --prompt: 9-3: the first is larger"),
        (("--output", "many"), "argument --output: 'many' is not a whole number"),
        (("--streams", "1,,8"), "argument --streams: '' is not a whole number"),
    ],
)
def test_values_of_the_wrong_kind_are_named(
    given: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([*URL, *given])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def options(*given: str) -> Options:
    parsed, _ = parse(given)
    assert isinstance(parsed, Options)
    return parsed


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://host/", "http://host/v1"),
        ("https://host/openai/v1/", "https://host/openai/v1"),
    ],
)
def test_v1_is_added_to_an_address_without_a_path(given: str, base: str) -> None:
    assert options("--url", given, "--workload", "chat").targets[0].url == base


def test_two_endpoints_of_one_name_are_told_apart() -> None:
    targets = options(*CHAT, "--versus", "127.0.0.1:8000", "--model", "m", "--api-key", "k").targets
    assert [target.name for target in targets] == ["127.0.0.1:8000 (A)", "127.0.0.1:8000 (B)"]
    assert {(target.model, target.api_key) for target in targets} == {("m", "k")}


def test_a_workload_can_be_scaled_to_the_machine() -> None:
    scaled = options(
        *URL, "--workload", "mixed", "--rate", "2", "--duration", "20", "--prompt", "16-64", "--output", "24",
        "--long-prompt", "4000", "--long-output", "8", "--long-every", "10", "--long-count", "1",
    )  # fmt: skip
    arrivals = scaled.workload.arrivals
    assert {arrival.at for arrival in arrivals if arrival.kind == "long"} == {5.0, 15.0}
    assert {arrival.prompt_tokens for arrival in arrivals if arrival.kind == "long"} == {4000}
    assert all(16 <= arrival.prompt_tokens <= 64 for arrival in arrivals if arrival.kind == "short")
    assert scaled.settings.startswith("rate 2, duration 20, prompt 16-64, output 24, long prompt 4000")


def test_a_recording_is_reported_again(tmp_path: Path) -> None:
    wanted, outputs = parse(["--from", "run.json", "--json", str(tmp_path / "again.json")])
    assert wanted == Path("run.json")
    assert outputs.json == tmp_path / "again.json"
