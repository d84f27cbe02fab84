"""`python -m bench simulate`: what it prints and draws, and what it says of wrong arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import simulate as command
from bench.client import BenchError
from bench.simulation.arguments import parse
from bench.simulation.policies import device_of, variant
from bench.simulation.svg import Goal, Line, Panel, axis, figure
from bench.simulation.workloads import WORKLOADS, jobs_of, settings_of
from tokenspeed.core.accounts import Account
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.engine.recorder import Recorder
from tokenspeed.sim.device import DEVICES
from tokenspeed.sim.simulate import Traffic, simulate

SHORT = ("--duration", "4", "--seeds", "2")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", "bench.simulate", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["simulate", *arguments])
    assert command.main() == 0
    return capsys.readouterr().out


def rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|") and not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_policy_has_a_row_of_each_kind_and_a_line_in_the_plot(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plot, kept = tmp_path / "plot.svg", tmp_path / "figures.json"
    out = printed(capsys, monkeypatch, *SHORT, "--plot", str(plot), "--json", str(kept))
    policies = ["ours", "first-come", "priority", "shortest-first"]
    found = rows(out)
    assert [row[:2] for row in found[1:9]] == [
        [kind, policy] for kind in ("short", "long") for policy in policies
    ]
    assert [row[0] for row in found[10:]] == policies
    drawn = ElementTree.parse(plot).getroot()
    assert drawn.tag.endswith("svg")
    assert {text.text for text in drawn.iter() if text.tag.endswith("text")} >= set(policies)
    figures = json.loads(kept.read_text())
    assert [len(figures[policy]) for policy in policies] == [2, 2, 2, 2]
    assert (
        figures["ours"][0]["kinds"]["short"]["ttft_p50"]
        < figures["first-come"][0]["kinds"]["short"]["ttft_p50"]
    )


def test_the_front_has_a_row_for_each_setting_and_is_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plot = tmp_path / "front.svg"
    out = printed(
        capsys,
        monkeypatch,
        "--front",
        *SHORT,
        "--targets",
        "20,50",
        "--shares",
        "0.25,0.1",
        "--plot",
        str(plot),
    )
    assert [row[:2] for row in rows(out)[1:]] == [
        ["0.25", "20"],
        ["0.25", "50"],
        ["0.1", "20"],
        ["0.1", "50"],
    ]
    circles = [part for part in ElementTree.parse(plot).getroot().iter() if part.tag.endswith("circle")]
    assert len(circles) == 2 * 2 * 4 + 4  # two panels, p50 and p99, four settings; and the legend


def test_a_recording_is_replayed_beside_what_was_felt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, cpu, options = tmp_path / "recorded.jsonl", DEVICES["cpu"], SchedulerOptions(policy="first-come")
    jobs = jobs_of("mixed", settings_of("mixed", "cpu", {"duration": 20.0}), 0)
    recorder = Recorder(
        path, capacity=cpu.capacity, options=options, accounts={"a": Account()}, prefix_cache=True
    )
    simulate(Traffic(jobs), cpu, options, observers=[recorder])
    recorder.close()
    with path.open("a") as file:
        file.write('["ran", 1.0, 0.')  # as a server leaves it that was killed
    out = printed(capsys, monkeypatch, "--recording", str(path), "--policy", "ours")
    assert "cut off" in out
    whole = {row[0]: row for row in rows(out)[-3:]}
    assert list(whole) == ["recorded", "as recorded", "ours"]
    felt, again = (float(whole[name][1].replace(",", "")) for name in ("recorded", "as recorded"))
    assert again == pytest.approx(felt, rel=0.03)


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_workload_repeats_for_its_seed_and_fits_the_device(workload: str, device: str) -> None:
    settings = settings_of(workload, device, {})
    jobs = jobs_of(workload, settings, 3)
    assert jobs == jobs_of(workload, settings, 3)
    assert jobs != jobs_of(workload, settings, 4)
    longest = max(len(job.request.prompt) + job.request.max_tokens for job in jobs)
    assert longest <= DEVICES[device].capacity.max_context


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--policy", "fair"], "--policy: no 'fair'; give one of ours, first-come, priority, shortest-first"),
        (["--policy", "ours,target=3"], "no 'target'; did you mean 'target_step_ms'?"),
        (["--policy", "ours,target_step_ms=fast"], "target_step_ms=fast: is not a number"),
        (["--policy", "ours,max_running=0"], "max_running=0: must be 1 to 4096"),
        (["--policy", "ours,max_running=1.5"], "max_running=1.5: must be a whole number"),
        (["--policy", "ours,max_running"], "'max_running' is not option=value"),
        (["--policy", "ours,policy=priority"], "policy is what comes first"),
        (["--device", "a100"], "--device: no 'a100'; give one of h200-8b, cpu, or coefficients"),
        (["--device", "base=0.01,row=1"], "token is missing"),
        (["--device", "cpu,toke=1"], "no 'toke'; did you mean 'token'?"),
        (["--device", "cpu,token=-1"], "token=-1: must be a number ≥ 0"),
        (["--device", "cpu,blocks=0"], "blocks=0: must be a whole number ≥ 1"),
        (["--device", "cpu,base=0"], "base=0: a step takes some time"),
        (["--device", "cpu,base=nan"], "base=nan: is not a number"),
        (["--workload", "poisson", "--long-every", "2"], "--long-every has no effect on --workload poisson"),
        (["--front", "--policy", "ours"], "--front sweeps the default policy"),
        (["--targets", "5"], "--targets are what --front sweeps"),
        (["--plot", "plot.png"], "plots are SVG"),
        (["--plot", "no/such/folder/plot.svg"], "there is no folder"),
        (["--recording", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["--recording", "nowhere.jsonl", "--workload", "mixed"], "--workload has no effect on --recording"),
        (["--recording", "nowhere.jsonl", "--rate", "5"], "--rate has no effect on --recording"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments: list[str], told: str) -> None:
    with pytest.raises(BenchError) as raised:
        parse(arguments)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_wrong_argument_ends_the_command_with_one_line() -> None:
    ended = run("--policy", "fair")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: --policy: no 'fair'")
    assert ended.stderr.count("\n") == 1


def test_nobody_arriving_is_told() -> None:
    settings = settings_of("poisson", "cpu", {"duration": 1e-6})
    with pytest.raises(BenchError, match="nobody arrives"):
        jobs_of("poisson", settings, 0)


def test_a_device_is_given_by_name_with_changes_or_by_its_coefficients() -> None:
    changed = device_of("h200-8b,token=1e-5,blocks=100")
    assert changed.costs.token == 1e-5
    assert changed.costs.base == DEVICES["h200-8b"].costs.base
    assert changed.capacity.blocks == 100
    assert device_of("base=1,row=2,token=3,attended=4,read=5").costs.read == 5


def test_a_policy_is_a_preset_with_options() -> None:
    one = variant("first-come,step_tokens=2048", SchedulerOptions(max_running=7))
    assert (one.options.policy, one.options.step_tokens, one.options.max_running) == ("first-come", 2048, 7)
    assert one.options.target_step_ms == 0


def test_a_plot_escapes_what_it_is_given_and_stays_in_its_panel() -> None:
    line = Line("<ours & theirs>", [(1.0, 5.0), (100.0, 50.0)], "#000000", labels=["<1>", "2"])
    panel = Panel(
        "a < b", axis("x", [1.0, 100.0], log=True), axis("y", [5.0, 50.0]), [line], [Goal("&", "y", 20.0)]
    )
    drawn = ElementTree.fromstring(figure("t", "c", [panel]))
    width, height = (float(value) for value in drawn.attrib["viewBox"].split()[2:])
    for circle in drawn.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= width
        assert 0 <= float(circle.attrib["cy"]) <= height
