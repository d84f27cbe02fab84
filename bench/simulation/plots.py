"""What is drawn of runs: distributions of the time to first token, and the front of what can be traded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.simulation.figures import Run, spread
from bench.simulation.svg import Goal, Line, Panel, Point, axis, figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's palette
POINTS = 200  # of a distribution at most


class Trial(NamedTuple):
    """One setting of the policy in a sweep, and what it gave on each seed."""

    target_step_ms: float
    eldest_share: float
    runs: Sequence[Run]


def distributions(title: str, runs: Mapping[str, Sequence[Run]]) -> str:
    """For each kind of requests, the share of them that had their first token by then; as SVG."""
    kinds = list(dict.fromkeys(kind for of_policy in runs.values() for run in of_policy for kind in run.ttft))
    panels = []
    for kind in kinds:
        lines = []
        for index, (name, of_policy) in enumerate(runs.items()):
            found = sorted(value for run in of_policy for value in run.ttft.get(kind, []))
            if found:
                colour = COLOURS[index % len(COLOURS)]
                lines.append(Line(name, _shares(found), colour, dashed=index > 0, mark=0))
        values = [value for line in lines for value, _ in line.points]
        panels.append(
            Panel(
                f"{kind} requests",
                axis("time to first token, ms", values, log=True),
                axis("share that had it by then, %", [0.0, 100.0], low=0.0),
                lines,
            )
        )
    return figure(title, f"{title}: share of requests that had their first token by then", panels)


def front(title: str, trials: Sequence[Trial], baseline: Sequence[Run], goals: bool) -> str:
    """Short TTFT against what it costs the long, and against the gaps, for every setting tried; as SVG."""
    short, long = extremes(baseline)
    shares = list(dict.fromkeys(trial.eldest_share for trial in trials))
    by_ratio: list[Line] = []
    by_gap: list[Line] = []
    for index, share in enumerate(shares):
        colour = COLOURS[index % len(COLOURS)]
        of_share = [trial for trial in trials if trial.eldest_share == share]
        for percent, dashed in ((50, False), (99, True)):
            name = f"{short} p{percent}, eldest_share {share:g}"
            labels = [f"{trial.target_step_ms:g}" for trial in of_share] if index == 0 else []
            ttft = [middle(trial.runs, short, f"ttft_p{percent}") for trial in of_share]
            waits = [long_ratio(trial.runs, baseline, long) for trial in of_share]
            gaps = [middle(trial.runs, short, "gap_p99") for trial in of_share]
            for lines, across in ((by_ratio, waits), (by_gap, gaps)):
                points: list[Point] = list(zip(across, ttft, strict=True))
                lines.append(Line(name, points, colour, dashed, labels=labels, label_above=dashed))
    told = [Goal("p50 goal", "y", 50.0), Goal("p99 goal", "y", 100.0)] if goals else []
    heights = [y for line in by_ratio for _, y in line.points] + [goal.value for goal in told]
    y = axis(f"{short} time to first token, ms", heights, log=True)
    ratios = [x for line in by_ratio for x, _ in line.points]
    across_ratio = axis(f"{long} TTFT p50 ÷ first-come's", ratios, log=True)
    across_gap = axis(f"{short} gap p99, ms", [x for line in by_gap for x, _ in line.points], low=0.0)
    sides = ([*told, Goal("goal", "x", 1.25)], [*told, Goal("goal", "x", 60.0)]) if goals else ([], [])
    panels = [
        Panel(
            f"Against what the {long} ones wait more",
            across_ratio,
            y,
            by_ratio,
            _within(sides[0], across_ratio.high),
        ),
        Panel("Against the gap between tokens", across_gap, y, by_gap, _within(sides[1], across_gap.high)),
    ]
    return figure(
        title,
        f"{title}: what each step target costs. Numbers beside points are target_step_ms.",
        panels,
    )


def extremes(runs: Sequence[Run]) -> tuple[str, str]:
    """The kinds of requests with the shortest and with the longest prompts."""
    kinds = list(runs[0].kinds)
    return kinds[0], kinds[-1]


def middle(runs: Sequence[Run], kind: str, key: str) -> float:
    """The median over seeds; NaN where there is none."""
    found = spread(run.kinds.get(kind, {}).get(key) for run in runs)
    return float("nan") if found is None else found.middle


def long_ratio(runs: Sequence[Run], baseline: Sequence[Run], kind: str) -> float:
    """The median over seeds of the ratio of the median times to first token."""
    ratios = []
    for run, base in zip(runs, baseline, strict=True):
        mine, theirs = run.kinds[kind]["ttft_p50"], base.kinds[kind]["ttft_p50"]
        ratios.append(mine / theirs if mine and theirs else None)
    found = spread(ratios)
    return float("nan") if found is None else found.middle


def _within(goals: Sequence[Goal], high: float) -> list[Goal]:
    return [goal for goal in goals if goal.axis == "y" or goal.value <= high]


def _shares(found: Sequence[float]) -> list[Point]:
    """The distribution function, thinned to what can be seen."""
    count = len(found)
    picks = sorted({round(i * (count - 1) / (POINTS - 1)) for i in range(POINTS)})
    return [(found[pick], 100.0 * (pick + 1) / count) for pick in picks]
