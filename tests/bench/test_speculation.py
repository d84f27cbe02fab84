"""The bench of speculation: what it asks, how it counts, and that it sees where answers depend on drafts."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.client import BenchError
from bench.speculation.__main__ import main
from bench.speculation.meter import Amount, Meter
from bench.speculation.prompts import AGAIN_LINES, FILE_LINES, beginnings, edits, noise, repeated, sources
from bench.speculation.report import as_json, goal_met, ratios
from bench.speculation.run import ADAPTIVE, ALWAYS, OFF, Answer, Answers, Played, Result
from bench.speculation.workloads import ALIKE, CHOICES, NAMES, PHASES, Workload, workloads
from tokenspeed.generation.request import GenerationRequest, TextPrompt

FILES = [f"file {n}" for n in range(16)]


def workload(name: str, scale: float = 1.0) -> Workload:
    (found,) = workloads((name,), FILES, scale)
    return found


# -- what is asked -----------------------------------------------------------------------------------


def test_an_edit_is_a_file_and_then_its_beginning() -> None:
    for prompt in edits(sources(), 5):
        lines = prompt.splitlines()
        assert len(lines) == FILE_LINES + 2 + AGAIN_LINES
        assert lines[FILE_LINES + 2 :] == lines[:AGAIN_LINES]


def test_beginnings_end_with_the_docstring_of_a_function() -> None:
    found = beginnings(sources(), 64)
    assert len(found) == len(set(found)) == 64
    assert all(text.startswith(("def ", "@")) and text.endswith('"""\n') for text in found)


def test_the_same_is_asked_in_every_run() -> None:
    assert noise(8) == noise(8)
    assert sources() == sources()
    for name in NAMES:
        first, second = workload(name), workload(name)
        for one, other in zip(first.phases, second.phases, strict=True):
            asked = [[next(c.asks()) for c in phase.clients] for phase in (one, other)]
            assert asked[0] == asked[1]


def test_every_request_of_a_workload_has_a_name_of_its_own() -> None:
    for name in NAMES:
        names = [
            request.id
            for phase in workload(name).phases
            for client in phase.clients
            for request, _ in zip(client.asks(), range(4), strict=False)
        ]
        assert len(names) == len(set(names))


def test_clients_of_a_mixture_ask_without_end_until_their_phase_is_over() -> None:
    phases = workload("mixed").phases
    assert [len(phase.clients) for phase in phases] == [sum(shares.values()) for shares in PHASES]
    assert {phase.seconds for phase in phases} == {10.0}
    asked = phases[0].clients[0].asks()
    assert len({next(asked).id for _ in range(100)}) == 100


def test_choices_are_one_prompt_after_the_other_by_several_at_once_with_other_draws() -> None:
    for phase in workload("choices").phases:
        asked = [next(client.asks()) for client in phase.clients]
        assert len({request.prompts for request in asked}) == 1
        assert len({request.sampling.seed for request in asked}) == len(asked) == CHOICES


def test_what_is_asked_again_is_asked_thrice() -> None:
    (client,) = workload("again").phases[0].clients
    asked = Counter(request.prompts for request in client.asks())
    assert len(asked) == ALIKE
    assert set(asked.values()) == {3}


def test_a_scale_shrinks_answers_streams_and_seconds() -> None:
    assert len(workload("open64", 0.1).phases[0].clients) == 6
    assert workload("edit", 0.1).phases[0].clients[0].tokens == 20
    assert {phase.seconds for phase in workload("mixed", 0.1).phases} == {1.0}


def test_lines_that_are_repeated_again_and_again_count_once() -> None:
    assert repeated("a\nb\nc\n", "b\nc\n") == 1.0
    assert repeated("a\nb\nc\n", "b\nb\nb\nb\n") == 0.25
    assert repeated("a\n", "") == 0.0


# -- how it is counted -------------------------------------------------------------------------------


def test_decode_is_counted_while_nobody_waits_for_a_first_token() -> None:
    now = SimpleNamespace(seconds=0.0, steps=0)
    meter = Meter(lambda: now.steps, lambda: now.seconds)

    def later() -> None:
        now.seconds += 1.0
        now.steps += 1

    meter.asked()
    meter.asked()
    later()
    meter.came(1, first=True)
    later()
    meter.came(4, first=False)  # while the other waits
    meter.came(1, first=True)
    later()
    meter.came(3, first=False)
    meter.came(2, first=False)
    meter.ended(begun=True)
    later()
    meter.came(5, first=False)
    meter.ended(begun=True)
    later()
    meter.asked()
    later()
    meter.ended(begun=False)
    assert meter.decode == Amount(tokens=10, seconds=2.0, steps=2)
    assert meter.whole == Amount(tokens=16, seconds=6.0, steps=6)
    assert (meter.decode.rate, meter.decode.a_step) == (5.0, 5.0)


def answer(text: str, *, ended: bool, name: str = "open 3") -> Answer:
    return Answer(GenerationRequest(name, (TextPrompt("x"),)), text, ended)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (answer("abc", ended=True), answer("abd", ended=True)),
        (answer("abc", ended=True), answer("ab", ended=True)),
        (answer("abc", ended=True), answer("abcd", ended=False)),
        (answer("ab", ended=False), answer("b", ended=False)),
    ],
)
def test_an_answer_that_differs_is_named(first: Answer, second: Answer) -> None:
    for order in ((first, second), (second, first)):
        answers = Answers()
        for one in order:
            answers.take(one)
        with pytest.raises(BenchError, match="others in mode 'always': those to 'open 3'"):
            answers.check("always")


def test_an_answer_that_was_cut_off_must_only_begin_alike() -> None:
    answers = Answers()
    for one in ("ab", "", "abcd"):
        answers.take(answer(one, ended=False))
    answers.take(answer("abcde", ended=True))
    answers.take(answer("abc", ended=False))
    answers.check(ADAPTIVE)
    assert answers.known["open 3"].text == "abcde"


def played(rate: float) -> Played:
    amount = Amount(tokens=round(rate * 2), seconds=2.0, steps=10)
    return Played(amount, amount, Counter(model=10), Counter(model=4))


def result(name: str, *rounds: tuple[float, float, float]) -> Result:
    """Of rates without speculation, adaptive and always."""
    return Result(
        workload(name),
        [dict(zip((OFF, ADAPTIVE, ALWAYS), map(played, rates), strict=True)) for rates in rounds],
    )


def test_ratios_are_taken_within_a_round_and_the_median_is_held_against_the_goal() -> None:
    found = result("open", (100, 150, 120), (200, 260, 100), (50, 80, 50))
    assert ratios(found, ADAPTIVE) == [1.5, 1.3, 1.6]
    assert ratios(found, ALWAYS) == [1.2, 0.5, 1.0]
    assert goal_met(found, 1.0) is True
    assert goal_met(result("open", (100, 139, 100)), 1.0) is False
    assert goal_met(found, 0.5) is None


def test_a_mixture_without_always_has_no_goal() -> None:
    found = result("mixed", (100, 120, 80))
    assert goal_met(found, 1.0) is True
    del found.rounds[0][ALWAYS]
    assert goal_met(found, 1.0) is None


def test_a_mixture_is_held_against_the_better_of_off_and_always_in_each_round() -> None:
    found = result("mixed", (100, 120, 200), (100, 150, 50))
    assert ratios(found, ADAPTIVE) == [0.6, 1.5]
    assert ratios(found, ALWAYS) == [2.0, 0.5]
    kept = as_json([found], {"cpu": "x"}, 1.0)["workloads"][0]
    assert kept["times"] == {ADAPTIVE: [0.6, 1.5], ALWAYS: [2.0, 0.5]}
    assert kept["rounds"][0][ALWAYS]["decode"]["tokens_per_s"] == 200.0


# -- all of it ---------------------------------------------------------------------------------------


def test_a_small_run_tells_every_mode_and_leaves_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "run.json"
    given = ("--scale", "0.02", "--rounds", "1", "--only", "open,hostile64,mixed", "--json", str(kept))
    monkeypatch.setattr(sys, "argv", ["speculation", *given, "--set", "cache.memory_mib=128"])
    assert main() == 0
    told = json.loads(kept.read_text())
    assert [one["workload"] for one in told["workloads"]] == ["open", "hostile64", "mixed"]
    for one in told["workloads"]:
        (round_,) = one["rounds"]
        assert set(round_) == {OFF, ADAPTIVE, ALWAYS}
        assert not round_[OFF]["drafted"]
        assert sum(round_[ALWAYS]["drafted"].values()) > 0
        if one["workload"] != "mixed":
            assert len({played["whole"]["tokens"] for played in round_.values()}) == 1
    out, err = capsys.readouterr()
    assert "hostile64: 4 streams, 8" in out
    assert err.count("warm-up") == 3


def test_answers_are_not_known_from_the_round_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts are the same in every round, and here none comes twice in one."""
    kept = tmp_path / "run.json"
    given = ("--scale", "0.05", "--rounds", "1", "--only", "again", "--modes", "adaptive,others")
    pinned = ("drafter=ngram", "control=always")
    settings = [part for setting in pinned for part in ("--set", f"speculation.{setting}")]
    monkeypatch.setattr(sys, "argv", ["speculation", *given, *settings, "--json", str(kept)])
    assert main() == 0
    (round_,) = json.loads(kept.read_text())["workloads"][0]["rounds"]
    assert round_["others"]["drafted"] == round_["adaptive"]["drafted"]
    assert round_["others"]["accepted"] == round_["adaptive"]["accepted"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--only", "open,opne"), "--only: there is no 'opne'; there are edit,"),
        (("--modes", "never"), "--modes: there is no 'never'; there are off,"),
        (("--rounds", "0"), "--rounds: there must be one at least"),
        (("--scale", "2"), "--scale: 2 is not above 0"),
        (("--set", "speculation.drafts=3"), "drafts"),
    ],
)
def test_arguments_without_sense_are_told_in_one_line(
    given: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["speculation", *given])
    assert main() == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert told in err
