"""The tables, in Markdown that is as readable in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from bench.simulation.figures import KIND_COLUMNS, RUN_COLUMNS, Column, Figures, Run, Spread, spread

Runs = Mapping[str, Sequence[Run]]  # by policy, one for each seed
SHARES = {"of_bound", "busy", "prediction_p50", "prediction_p90", "mixed_p50"}  # told in percent
COUNTS = {"requests", "steps", "preemptions", "refused"}


def tables(runs: Runs, baseline: str | None) -> str:
    """The figures of each kind, then those of whole runs: medians over seeds, the least and the largest."""
    kinds = list(
        dict.fromkeys(kind for of_policy in runs.values() for run in of_policy for kind in run.kinds)
    )
    ratio = [] if baseline is None else [f"p50 ÷ {baseline}'s"]
    rows = [["", "policy", *map(_title, KIND_COLUMNS), *ratio]]
    for kind in kinds:
        for name, of_policy in runs.items():
            figures = [run.kinds.get(kind, {}) for run in of_policy]
            cells = [_cell(column.key, figures) for column in KIND_COLUMNS]
            if baseline is not None:
                cells.append(_ratio(figures, [run.kinds.get(kind, {}) for run in runs[baseline]]))
            rows.append([kind, name, *cells])
    whole = [["policy", *map(_title, RUN_COLUMNS)]]
    for name, of_policy in runs.items():
        whole.append([name, *[_cell(column.key, [run.whole for run in of_policy]) for column in RUN_COLUMNS]])
    return "\n".join([*markdown(rows, left=2), "", *markdown(whole, left=1)])


def markdown(rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Lines of a table; the first `left` columns are text, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            yield (
                "|"
                + "|".join(
                    "-" * (width + 2) if index < left else "-" * (width + 1) + ":"
                    for index, width in enumerate(widths)
                )
                + "|"
            )


def number(value: float) -> str:
    """Three digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 3)}f}"


def told(key: str, found: Spread | None) -> str:
    """`12.3 (11.9..13.0)`; without the spread where there is none."""
    if found is None:
        return "–"
    if key in SHARES:
        middle, least, largest = (f"{value:.0%}" for value in found)
    elif key in COUNTS:
        middle, least, largest = (f"{value:,.0f}" for value in found)
    else:
        middle, least, largest = map(number, found)
    return middle if least == largest else f"{middle} ({least}..{largest})"


def _title(column: Column) -> str:
    return f"{column.title}, {column.unit}" if column.unit else column.title


def _cell(key: str, figures: Sequence[Figures]) -> str:
    return told(key, spread(of_seed.get(key) for of_seed in figures))


def _ratio(figures: Sequence[Figures], baseline: Sequence[Figures]) -> str:
    """Of the median times to first token, seed by seed."""
    ratios = []
    for ours, theirs in zip(figures, baseline, strict=True):
        mine, other = ours.get("ttft_p50"), theirs.get("ttft_p50")
        ratios.append(mine / other if mine and other else None)
    return told("ratio", spread(ratios))
