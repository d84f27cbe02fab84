"""The table, and everything as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.cpu_report import rounded, spread
from bench.forced.run import GOALS, Options, mode_of
from bench.speculation.report import played_json, ratios
from bench.speculation.run import OFF, Played, Result, rate

GOAL_OF = {mode_of(chance): goal for chance, goal in GOALS.items()}


def goal(result: Result, mode: str) -> float | None:
    """Those of one stream are the only ones."""
    return GOAL_OF.get(mode) if len(result.workload.phases[0].clients) == 1 else None


def drafts_a_step(played: Played) -> float:
    return played.drafted.total() / max(played.whole.steps, 1)


def share_held(rounds: Sequence[Played]) -> float | None:
    """Of all drafts that were verified; None where none was."""
    drafted = sum(played.drafted.total() for played in rounds)
    return sum(played.accepted.total() for played in rounds) / drafted if drafted else None


def report(console: Console, results: Sequence[Result], about: Mapping[str, Any]) -> None:
    """One row for every mode of every number of streams."""
    made = Table(
        title=Text(f"forced acceptance on {about['device']}"),
        title_justify="left",
        caption="medians over rounds (least..largest); drafts that held, of all; goals are of one stream",
    )
    made.add_column("streams")
    made.add_column("mode")
    for column in ("tok/s", "times off", "goal", "tokens a step", "drafts a step", "held"):
        made.add_column(column, justify="right")
    for result in results:
        for mode in result.rounds[0]:
            made.add_row(*_cells(result, mode))
        made.add_section()
    console.print(made)


def _cells(result: Result, mode: str) -> list[str | Text]:
    rounds = [played[mode] for played in result.rounds]
    speeds = spread([rate(result.workload, played) for played in rounds], 0)
    a_step = f"{median(played.decode.a_step for played in rounds):.2f}"
    if mode == OFF:
        return [Text(result.workload.title), mode, speeds, "", "", a_step, "", ""]
    times, wanted, held = ratios(result, mode), goal(result, mode), share_held(rounds)
    met = wanted is not None and median(times) >= wanted
    style = "" if wanted is None else "bold green" if met else "bold red"
    told = "" if wanted is None else f"≥ {wanted:g} {'✓' if met else '✗'}"
    drafts = f"{median(drafts_a_step(played) for played in rounds):.2f}"
    share = "–" if held is None else f"{held:.0%}"
    return ["", mode, speeds, Text(spread(times, 2), style), Text(told, style), a_step, drafts, share]


def as_json(results: Sequence[Result], about: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Of every number of streams the ratios, and of every round and mode what was counted."""
    made: dict[str, Any] = {
        "machine": dict(about),
        "settings": list(options.settings),
        "prompt": options.prompt,
        "tokens": options.tokens,
        "workloads": [_workload_json(result) for result in results],
    }
    kept: dict[str, Any] = rounded(made)
    return kept


def _workload_json(result: Result) -> dict[str, Any]:
    modes = [mode for mode in result.rounds[0] if mode != OFF]
    return {
        "streams": len(result.workload.phases[0].clients),
        "title": result.workload.title,
        "goals": {mode: goal(result, mode) for mode in modes},
        "times": {mode: ratios(result, mode) for mode in modes},
        "held": {mode: share_held([played[mode] for played in result.rounds]) for mode in modes},
        "rounds": [{mode: played_json(one) for mode, one in played.items()} for played in result.rounds],
    }
