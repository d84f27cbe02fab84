"""The report in the terminal, and what is shown while the measurement runs."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from bench.serve.client import Tally
from bench.serve.figures import GOODPUT
from bench.serve.notes import notes
from bench.serve.statistics import Ratio
from bench.serve.summary import Row, Spread, Summary

BEYOND = 100.0  # times: an interval that reaches so far knows nothing
LOOKS_A_SECOND = 4.0
STYLES = {"better": "bold green", "worse": "bold red", "no difference": "dim"}


def number(value: float) -> str:
    """Three digits are all that a measurement on a shared machine holds."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.2e}")
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{min(digits, 3)}f}"


def spread_text(spread: Spread | None, unit: str) -> str:
    """`12.3 ms (11.9..13.0)`; without the spread where there is none."""
    if spread is None:
        return "–"
    middle = f"{number(spread.median)} {unit}".rstrip()
    if spread.least == spread.largest:
        return middle
    return f"{middle} ({number(spread.least)}..{number(spread.largest)})"


def ratio_text(ratio: Ratio | None) -> str:
    if ratio is None:
        return "–"
    if math.isinf(ratio.value) or ratio.value == 0:
        return "∞" if ratio.value else "0"
    low = number(ratio.low) if ratio.low > 1 / BEYOND else f"<{1 / BEYOND:g}"
    high = number(ratio.high) if ratio.high < BEYOND else f">{BEYOND:g}"
    return f"×{number(ratio.value)} ({low}..{high})"


def print_report(summary: Summary, console: Console) -> None:
    """Tables and notes."""
    recording = summary.recording
    console.print(Text(f"\n{recording.workload}: {recording.settings}", style="bold"))
    for endpoint in recording.endpoints:
        console.print(Text(f"{endpoint.name}: {endpoint.model} at {endpoint.url}{endpoint.path}"))
    console.print(_figures(summary))
    for index, endpoint in enumerate(recording.endpoints):
        for kind, told in summary.counts(index).items():
            console.print(Text(f"{endpoint.name}, {kind}: {told}"))
        console.print(Text(f"{endpoint.name}, client: {client_text(summary, index)}"))
    for told in filter(None, (objective_text(summary), light_text(summary))):
        console.print(Text(told))
    for note in notes(summary):
        console.print(Text(f"• {note}"))
    if summary.errors():
        failed = f"{summary.errors()} requests failed; figures are of those that were answered."
        console.print(Text(failed, style="bold red"))


def repeats_text(summary: Summary) -> str:
    """How many repeats the figures are of, which may be fewer than were wanted."""
    counts = [len(summary.repeats(index)) for index in range(len(summary.recording.endpoints))]
    told = " and ".join(map(str, dict.fromkeys(counts)))
    return f"{told} repeat" + ("" if told == "1" else "s")


def client_text(summary: Summary, index: int) -> str:
    middle, late, latest = summary.lateness(index)
    share = max((r.cpu_share for r in summary.recording.repeats if r.endpoint == index), default=0.0)
    return (
        f"late by {number(middle)} ms p50, {number(late)} p99, {number(latest)} at most; "
        f"used {share:.0%} of a core at most"
    )


def objective_text(summary: Summary) -> str:
    """Nothing where no figure is about it."""
    if not any(row.figure is GOODPUT for row in summary.rows):
        return ""
    objective = summary.recording.objective
    return (
        f"Goodput counts requests with a TTFT of at most {objective.ttft * 1e3:g} ms "
        f"and 99% of their own gaps at most {objective.gap * 1e3:g} ms."
    )


def light_text(summary: Summary) -> str:
    light = summary.recording.light
    if light is None:
        return ""
    how = "measured here" if light.measured else "as stated"
    return (
        f"Speed of light: {light.bandwidth / 1e9:,.1f} GB/s ({how}) ÷ {light.weight_bytes / 1e9:,.3g} GB "
        f"of weights a token = {number(light.tokens_per_second)} tok/s"
    )


def _figures(summary: Summary) -> Table:
    recording = summary.recording
    two = len(recording.endpoints) == 2
    table = Table(caption=f"median over {repeats_text(summary)} (least..largest)")
    table.add_column("")
    table.add_column("")
    for endpoint in recording.endpoints:
        table.add_column(Text(endpoint.name), justify="right")
    if two:
        table.add_column("times better", justify="right")
        table.add_column("verdict")
    before = None
    for row in summary.rows:
        if before not in (None, row.kind):
            table.add_section()
        table.add_row(*_cells(row, row.kind if row.kind != before else "", two))
        before = row.kind
    return table


def _cells(row: Row, kind: str, two: bool) -> list[str | Text]:
    cells: list[str | Text] = [Text(kind), Text(row.figure.title)]
    cells += [Text(spread_text(spread, row.figure.unit)) for spread in row.spreads]
    if two:
        verdict = row.ratio.verdict if row.ratio else None
        cells += [Text(ratio_text(row.ratio)), Text(verdict or "–", style=STYLES.get(verdict or "", ""))]
    return cells


@contextlib.asynccontextmanager
async def live(tally: Tally, console: Console) -> AsyncIterator[None]:
    """Show the tally while the block runs: a moving line in a terminal, else a line for each turn."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
    )
    if not console.is_terminal:
        tally.announce = lambda turn: console.print(Text(turn))
        yield
        return
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", told="")
        tally.announce = lambda turn: progress.reset(task, description=turn, total=tally.total)

        async def look() -> None:
            while True:
                told = f"{tally.sent - tally.done} running, {tally.chunks} chunks, {tally.failed} errors"
                progress.update(task, completed=tally.done, told=told)
                progress.refresh()
                await asyncio.sleep(1 / LOOKS_A_SECOND)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
