"""The tables, and everything as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.cpu_report import rounded, spread
from bench.speculation.run import ADAPTIVE, ALWAYS, MODES, OFF, OTHERS, Played, Result, rate


def ratios(result: Result, mode: str) -> list[float]:
    """How many times as fast as without speculation, round by round.

    A mixture in the mode `adaptive` is held against what was better in the round, off or always.
    """
    against = (OFF, ALWAYS) if result.workload.timed and mode == ADAPTIVE else (OFF,)
    found = []
    for played in result.rounds:
        rates = {name: rate(result.workload, one) for name, one in played.items()}
        found.append(rates[mode] / max(rates[name] for name in against if name in rates))
    return found


def whole_ratios(result: Result, mode: str) -> list[float]:
    """How many times as fast as without speculation, with the waits for first tokens."""
    return [played[mode].whole.rate / played[OFF].whole.rate for played in result.rounds]


def modes(result: Result) -> list[str]:
    return [mode for mode in MODES if mode in result.rounds[0]]


def goal_met(result: Result, scale: float) -> bool | None:
    """None where there is no goal, or not what it is about: something shrunk, or only some of the modes."""
    goal = result.workload.goal
    needed = {ADAPTIVE, ALWAYS} if result.workload.timed else {ADAPTIVE}
    if goal is None or scale != 1 or not needed <= set(modes(result)):
        return None
    return median(ratios(result, ADAPTIVE)) >= goal


def report(console: Console, results: Sequence[Result], machine: Mapping[str, Any], scale: float) -> None:
    """How fast, then what came of the drafts."""
    console.print(_speeds(results, machine, scale))
    console.print(_drafts(results))


def _speeds(results: Sequence[Result], machine: Mapping[str, Any], scale: float) -> Table:
    made = Table(
        title=Text(f"speculation on {machine['cpu']}, {machine['threads']} threads"),
        title_justify="left",
        caption="medians over rounds (least..largest); mixed: adaptive over the better of off and always",
    )
    made.add_column("workload")
    for column in (
        "off, tok/s",
        "adaptive, times",
        "goal",
        "with first tokens",
        "others, times",
        "always, times",
    ):
        made.add_column(column, justify="right")
    for result in results:
        goal, met = result.workload.goal, goal_met(result, scale)
        style = "" if met is None else "bold green" if met else "bold red"
        sign = "" if met is None else " ✓" if met else " ✗"
        off = [rate(result.workload, played[OFF]) for played in result.rounds]
        made.add_row(
            Text(result.workload.title),
            spread(off, 0),
            Text(_times(result, ADAPTIVE), style=style),
            Text("" if goal is None else f"≥ {goal:g}{sign}", style=style),
            spread(whole_ratios(result, ADAPTIVE), 2) if ADAPTIVE in modes(result) else "",
            _times(result, OTHERS),
            _times(result, ALWAYS),
        )
    return made


def _times(result: Result, mode: str) -> str:
    return spread(ratios(result, mode), 2) if mode in modes(result) else ""


def _drafts(results: Sequence[Result]) -> Table:
    made = Table(title="drafts that were verified, of which held; over all rounds", title_justify="left")
    made.add_column("workload")
    made.add_column("mode")
    for column in ("looked up", "of the draft model", "tokens a step", "of the prompt's lines"):
        made.add_column(column, justify="right")
    for result in results:
        share = "" if result.repeated is None else f"{result.repeated:.0%}"
        for mode in modes(result):
            played = [round_[mode] for round_ in result.rounds]
            first = mode == OFF
            made.add_row(
                Text(result.workload.key if first else ""),
                mode,
                _held(played, "ngram"),
                _held(played, "model"),
                f"{median(one.decode.a_step for one in played):.2f}",
                share if first else "",
            )
        made.add_section()
    return made


def _held(played: Sequence[Played], drafter: str) -> str:
    drafted = sum(one.drafted[drafter] for one in played)
    held = sum(one.accepted[drafter] for one in played)
    return f"{drafted:,}, {held / drafted:.0%}" if drafted else "–"


def as_json(results: Sequence[Result], machine: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Of every workload the ratios, and of every round and mode what was counted."""
    made: dict[str, Any] = {
        "machine": dict(machine),
        "scale": scale,
        "workloads": [_workload_json(result, scale) for result in results],
    }
    kept: dict[str, Any] = rounded(made)
    return kept


def _workload_json(result: Result, scale: float) -> dict[str, Any]:
    return {
        "workload": result.workload.key,
        "title": result.workload.title,
        "goal": result.workload.goal,
        "goal_met": goal_met(result, scale),
        "times": {mode: ratios(result, mode) for mode in modes(result) if mode != OFF},
        "times_with_first_tokens": {
            mode: whole_ratios(result, mode) for mode in modes(result) if mode != OFF
        },
        "lines_of_the_prompt": result.repeated,
        "rounds": [{mode: played_json(one) for mode, one in played.items()} for played in result.rounds],
    }


def played_json(played: Played) -> dict[str, Any]:
    """What was counted."""
    amounts = {
        name: {
            "tokens": amount.tokens,
            "seconds": amount.seconds,
            "steps": amount.steps,
            "tokens_per_s": amount.rate,
            "tokens_per_step": amount.a_step,
        }
        for name, amount in (("decode", played.decode), ("whole", played.whole))
    }
    return {**amounts, "drafted": dict(played.drafted), "accepted": dict(played.accepted)}
