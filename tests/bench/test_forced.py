"""The bench of drafts that hold by chance: what its backend makes of a step, and what it tells of a run."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.checkpoints import SHAPES, weightless
from bench.forced.__main__ import main
from bench.forced.backend import Forced, Verdicts
from tests.engine.test_engine import Server, finishes, lie, request, tokens_of
from tokenspeed.core.plan import Capacity, Draw, Row, RowResult, StepPlan, StepResult
from tokenspeed.core.request import FinishReason, Sampling
from tokenspeed.core.speculation import Speculation, SpeculationOptions
from tokenspeed.engine.engine import Engine
from tokenspeed.model.checkpoint import no_weights, resolve
from tokenspeed.model.draft import check_draft
from tokenspeed.model.loading import described
from tokenspeed.sim.clock import run

GREEDY = Draw(Sampling(temperature=0.0), 0, 5)
ASKING = Row(1, 4, (7,), (0, 1), GREEDY, guess=3)


class Fixed:
    """A backend that gives what it was made with."""

    capacity = Capacity(8, 4, 32)

    def __init__(self, *rows: RowResult) -> None:
        self.rows = rows

    def submit(self, plan: StepPlan) -> Awaitable[StepResult]:
        given: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
        given.set_result(StepResult(self.rows, 0.25, 0.5))
        return given

    async def close(self) -> None: ...


def decided(chance: float, row: Row, result: RowResult) -> RowResult:
    async def main() -> StepResult:
        return await Forced(Fixed(result), Verdicts(chance)).submit(StepPlan(1, (row,)))

    given = run(main())
    assert (given.seconds, given.idle) == (0.25, 0.5)
    return given.rows[0]


# -- the backend -------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [(9,), (1, 9), (1, 2, 3, 9)])
def test_drafts_hold_by_chance_and_not_by_what_the_model_drew(own: tuple[int, ...]) -> None:
    given = RowResult(own, guessed=(1, 2, 3))
    assert decided(1.0, ASKING, given).tokens == (1, 2, 3, 9)
    assert decided(0.0, ASKING, given).tokens == (9,)


@pytest.mark.parametrize(
    ("row", "given"),
    [
        (ASKING, RowResult(error="its logits were not finite")),
        (ASKING, RowResult((9,))),  # the draft model found nothing
        (ASKING._replace(guess=0, drafts=(1, 2)), RowResult((1, 9))),
        (ASKING._replace(guess=0), RowResult((9,))),
    ],
)
def test_whatever_is_no_guess_that_came_passes_unchanged(row: Row, given: RowResult) -> None:
    assert decided(1.0, row, given) == given


def test_drafts_hold_as_often_as_is_asked() -> None:
    """Each behind those that held before it: 0.5 + 0.25 + 0.125 of three."""

    async def main() -> float:
        forced = Forced(Fixed(RowResult((9,), guessed=(1, 2, 3))), Verdicts(0.5))
        steps = [await forced.submit(StepPlan(1, (ASKING,))) for _ in range(4000)]
        return sum(len(step.rows[0].tokens) - 1 for step in steps) / len(steps)

    assert run(main()) == pytest.approx(0.875, abs=0.05)


def engine_with(chance: float, control: str, fails: set[int] | None = None) -> Server:
    """Its draft model is always wrong."""
    speculation = Speculation(SpeculationOptions(drafter="model", control=control), guesses=True)
    server = Server(
        blocks=200, speculation=speculation, fails=fails, guesses=lambda row, right: lie(0, right)
    )
    server.engine = Engine(server.scheduler, Forced(server.backend, Verdicts(chance)))
    return server


@given(st.floats(0.0, 1.0), st.sampled_from(["adaptive", "always"]), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_an_engine_sees_nothing_but_drafts_that_hold(chance: float, control: str, streams: int) -> None:
    """All blocks, positions and the draft model's memory agree after every step, and answers are whole."""
    wanted = [request(f"r{n}", (n, 2, 3), 30, n=1 + n % 2) for n in range(streams)]

    async def main() -> None:
        server = engine_with(chance, control)
        async with server:
            got = await asyncio.gather(*map(server.events, wanted))
        for each, events in zip(wanted, got, strict=True):
            assert [len(tokens_of(events, choice)) for choice in range(each.n)] == [30] * each.n
        counts = server.scheduler.speculation.counts
        assert counts.accepted.total() <= counts.drafted.total()
        if chance == 1.0:
            assert counts.accepted == counts.drafted

    run(main())


def test_a_step_that_fails_fails_as_without_it() -> None:
    async def main() -> None:
        async with engine_with(1.0, "always", fails={3}) as server:
            events = await server.events(request("r", (1, 2, 3), 60))
        assert finishes(events)[0].reason is FinishReason.ERROR
        assert finishes(events)[0].error == "the simulated device failed"

    run(main())


# -- all of it ---------------------------------------------------------------------------------------


def test_a_draft_model_is_there_for_the_large_shape(tmp_path: Path) -> None:
    model, draft = (
        resolve(str(weightless(name, tmp_path)), weights=no_weights) for name in ("llama8b", "draft600m")
    )
    check_draft(draft, model, described(model).family.spec)
    assert SHAPES["draft600m"].max_context == SHAPES["llama8b"].max_context


def test_a_small_run_tells_what_held_and_leaves_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "run.json"
    tiny = ("--shape", "tiny", "--draft-shape", "tiny", "--cache", str(tmp_path))
    asked = ("--chances", "0,1", "--streams", "1,2", "--tokens", "40", "--prompt", "9", "--rounds", "1")
    pinned = (
        "--set",
        "device.name=cpu",
        "--set",
        "cache.memory_mib=64",
        "--set",
        "speculation.control=always",
    )
    monkeypatch.setattr(sys, "argv", ["forced", *tiny, *asked, *pinned, "--out", str(kept)])
    assert main() == 0
    told = json.loads(kept.read_text())
    assert [one["streams"] for one in told["workloads"]] == [1, 2]
    assert told["workloads"][0]["goals"] == {"p = 0": 0.97, "p = 1": None}
    for one in told["workloads"]:
        assert one["held"] == {"p = 0": 0.0, "p = 1": 1.0}
        (round_,) = one["rounds"]
        assert list(round_) == ["off", "p = 0", "p = 1"]
        assert not round_["off"]["drafted"]
        assert {played["whole"]["tokens"] for played in round_.values()} == {40 * one["streams"]}
    for played in told["workloads"][0]["rounds"][0].values():
        whole = played["whole"]
        assert whole["tokens"] == whole["steps"] + played["accepted"].get("model", 0)
    out, err = capsys.readouterr()
    assert "1 stream, 9 in, 40 out" in out
    assert err.count("warm-up") == 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--chances", "0,1.5"), "--chances: 1.5 is not between 0 and 1"),
        (("--chances", "0,often"), "--chances: '0,often' is no list"),
        (("--streams", "0"), "--streams: 0 is less than 1"),
        (("--streams", "9", "--set", "scheduler.max_running=8"), "--streams: 9 do not run at once"),
        (("--rounds", "0"), "--rounds: 0 is less than 1"),
        (("--tokens", "1"), "--tokens: 1 is less than 8"),
        (("--shape", "tiny"), "--shape and --draft-shape belong together"),
        (("--shape", "tinny", "--draft-shape", "tiny"), "there is no shape 'tinny'; there are draft600m,"),
        (("--model", "x"), "--model and --draft belong together"),
        (("--model", "x", "--shape", "tiny"), "leave one of them out"),
        (("--set", "speculation.drafter=ngram"), "drafts are those of a draft model here, not ngram"),
        (("--set", "speculation.drafts=3"), "drafts"),
        (("--out", "/nowhere/file.json"), "--out: there is no folder /nowhere"),
    ],
)
def test_arguments_without_sense_are_told_in_one_line(
    given: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["forced", *given])
    assert main() == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert told in err
