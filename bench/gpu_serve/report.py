"""The table, and the notes below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.gpu_serve.measure import Played
from bench.gpu_serve.targets import Target
from bench.serve.figures import DECODE_50, lasted, sample
from bench.serve.recording import Objective
from bench.serve.report import number

NO_TARGET = Target(None, None)
LATE = 0.05  # of the median wait, at p99: a client that is later has not asked what the workload says
BUSY = 0.7  # of a core: a client that used more may have noted tokens late
START_TITLE = "start, weights on the disk"


class Row(NamedTuple):
    """One line of the table; `told` stands behind the value. With requests that failed no goal is met."""

    workload: str
    kind: str
    key: str
    title: str
    unit: str
    less_is_better: bool
    value: float | None
    told: str = ""
    failed: int = 0


def rows_of(played: Played) -> list[Row]:
    """One for each figure that the workload shows, of every kind of its requests."""
    rows = []
    kinds = played.plan.kinds()
    for kind in kinds:
        outcomes = [outcome for outcome in played.outcomes if outcome.kind == kind]
        samples = [sample(outcome, Objective()) for outcome in outcomes]
        rates = [one.decode_rate for one in samples if one.decode_rate]
        title = played.plan.title if len(kinds) == 1 else f"{played.plan.title}: {kind}"
        for shown in played.plan.shows:
            value = shown.of(samples, lasted(outcomes)) if samples else None
            failed = sum(outcome.error is not None for outcome in outcomes)
            told = f"{failed} FAILED" if failed else _range(rates) if shown is DECODE_50 else ""
            less = shown.less_is_better
            rows.append(Row(title, kind, shown.key, shown.title, shown.unit, less, value, told, failed))
    return rows


def start_rows(starts: Sequence[Mapping[str, float]]) -> list[Row]:
    """The slower of the starts counts; all of them are told."""
    firsts = [start["first_token_s"] for start in starts]
    told = " ".join(number(first) for first in firsts)
    return [Row(START_TITLE, "start", "first_token", "first token", "s", True, max(firsts), f"({told})")]


def row_json(row: Row, target: Target) -> dict[str, Any]:
    """The line as it is kept."""
    return {
        "workload": row.workload,
        "kind": row.kind,
        "figure": row.key,
        "unit": row.unit,
        "value": row.value,
        "failed": row.failed,
        "goal": target.goal,
        "goal_met": _met(row, target),
        "vllm_0_24": target.vllm,
        "times_vllm": _times(row, target),
    }


def table(name: str, device: str, rows: Sequence[Row], targets: Mapping[tuple[str, str], Target]) -> Table:
    """Ours, the goal and vLLM's, line by line."""
    made = Table(title=Text(f"{name} on {device}"), title_justify="left")
    made.add_column("workload")
    made.add_column("figure")
    for column in ("measured", "goal", "vLLM 0.24", "times better"):
        made.add_column(column, justify="right")
    before = None
    for row in rows:
        if before not in (None, row.workload):
            made.add_section()
        made.add_row(*_cells(row, targets.get((row.kind, row.key), NO_TARGET), row.workload != before))
        before = row.workload
    return made


def notes(plays: Sequence[Played], summaries: Sequence[Mapping[str, Any]], busiest: float) -> list[str]:
    """Whatever makes a figure other than it looks: failures first, then what the client itself did."""
    found = []
    for played, told in zip(plays, summaries, strict=True):
        where = played.plan.title
        if played.not_run is not None:
            found.append(f"{where}: {played.not_run}; raise --budget")
        if played.warm_up_failed:
            found.append(f"{where}: {played.warm_up_failed} requests of its warm-up failed")
        for kind, one in told["kinds"].items():
            found += _failures(f"{where}, {kind}", one)
        late = told["client_late_ms"]
        waits = [one["ttft_ms"]["p50"] for one in told["kinds"].values() if one["ttft_ms"]]
        if waits and late["p99"] > LATE * min(waits):
            found.append(
                f"{where}: the clients sent 1% of the requests {number(late['p99'])} ms late or more"
            )
    if busiest > BUSY:
        found.append(f"a client process used {busiest:.0%} of a core: raise --clients")
    return found


def show(console: Console, made: Table, told: Sequence[str]) -> None:
    console.print(made)
    for note in told:
        console.print(Text(f"• {note}"))


def _failures(where: str, kind: Mapping[str, Any]) -> list[str]:
    found = []
    if kind["failed"]:
        causes = "; ".join(f"{count} × {error}" for error, count in kind["errors"].items())
        found.append(f"{where}: {kind['failed']} of {kind['requests']} requests FAILED ({causes})")
    if kind["ended_early"]:
        found.append(f"{where}: {kind['ended_early']} answers ended before the wanted number of tokens")
    if kind["without_usage"]:
        found.append(f"{where}: {kind['without_usage']} answers told no usage; their chunks count as tokens")
    return found


def _cells(row: Row, target: Target, first: bool) -> list[Text]:
    measured = "–" if row.value is None else f"{number(row.value)} {row.unit} {row.told}".rstrip()
    met, times = _met(row, target), _times(row, target)
    style = "bold red" if row.failed or met is False else "bold green" if met else ""
    sign = "≤" if row.less_is_better else "≥"
    goal = (
        ""
        if target.goal is None
        else f"{sign} {target.goal:,.6g}" + ("" if met is None else " ✓" if met else " ✗")
    )
    return [
        Text(row.workload if first else ""),
        Text(row.title),
        Text(measured, style=style),
        Text(goal, style=style),
        Text("" if target.vllm is None else f"{target.vllm:,.6g}"),
        Text("" if times is None else f"×{number(times)}"),
    ]


def _met(row: Row, target: Target) -> bool | None:
    if row.value is None or target.goal is None:
        return None
    reached = row.value <= target.goal if row.less_is_better else row.value >= target.goal
    return reached and not row.failed


def _times(row: Row, target: Target) -> float | None:
    if not row.value or target.vllm is None:
        return None
    return target.vllm / row.value if row.less_is_better else row.value / target.vllm


def _range(values: Sequence[float]) -> str:
    return f"({number(min(values))}..{number(max(values))})" if len(values) > 1 else ""
