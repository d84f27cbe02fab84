"""The plots of the page, as the plain dictionaries that plotly.js draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from bench.serve.figures import TOGETHER
from bench.serve.recording import Outcome, Repeat
from bench.serve.summary import Summary

PARTS = 400  # of a time axis
POINTS = 400  # of a distribution at most
LEAST = 1e-3  # of a logarithmic axis
LONG = "long"  # the kind whose arrivals are marked
# One hue an endpoint, one shade a kind; readable on light and on dark ground (Okabe and Ito's palette).
COLOURS = (("#0072b2", "#56b4e9", "#004d80"), ("#d55e00", "#e69f00", "#8f3f00"))
SYMBOLS = ("circle", "diamond", "square", "cross", "triangle-up")
Trace = dict[str, Any]
Points = list[tuple[float, float]]


class Plot(NamedTuple):
    """One drawing: what plotly calls data and layout, and what it shows in a sentence."""

    id: str
    title: str
    caption: str
    data: list[Trace]
    layout: dict[str, Any]


def plots(summary: Summary) -> list[Plot]:
    """Those that the workload has something to show in."""
    found = [ttft_distribution(summary)]
    if summary.recording.workload in TOGETHER:
        found += [gaps_over_time(summary), ttft_over_time(summary)]
    else:
        found += [gap_distribution(summary), figures_by_kind(summary)]
    return [plot for plot in found if plot.data]


def ttft_distribution(summary: Summary) -> Plot:
    """The share of requests that had their first token by then."""
    data = [
        _steps([outcome.chunks[0] - outcome.scheduled for outcome in outcomes], style)
        for outcomes, style in _groups(summary)
    ]
    return Plot(
        "ttft",
        "Time to first token",
        "The share of requests that had their first token by then, all repeats together. Left is better.",
        data,
        _layout(
            "seconds since the scheduled arrival", "share of requests", {"type": "log"}, {"tickformat": ".0%"}
        ),
    )


def gap_distribution(summary: Summary) -> Plot:
    """The share of gaps that were no longer than that."""
    data = []
    for outcomes, style in _groups(summary):
        gaps = [gap for outcome in outcomes for gap in np.diff(outcome.chunks).tolist()]
        if gaps:
            data.append(_steps([gap * 1e3 for gap in gaps], style))
    return Plot(
        "gap-distribution",
        "Gaps",
        "The share of gaps between two pieces of an answer that were no longer, all repeats together.",
        data,
        _layout("gap, ms", "share of gaps", {"type": "log"}, {"tickformat": ".0%"}),
    )


def gaps_over_time(summary: Summary) -> Plot:
    """The longest gap of every moment, with the arrivals of long prompts marked."""

    def gaps(outcome: Outcome) -> Points:
        return [(at, (at - before) * 1e3) for before, at in pairwise(outcome.chunks)]

    return _over_time(summary, Plot("gaps", "Gaps over time", "The longest gap", [], {}), "gap, ms", gaps)


def ttft_over_time(summary: Summary) -> Plot:
    """The longest wait of the requests that arrive at every moment."""

    def wait(outcome: Outcome) -> Points:
        answered = outcome.chunks and outcome.error is None
        return [(outcome.scheduled, outcome.chunks[0] - outcome.scheduled)] if answered else []

    plot = Plot("ttft-over-time", "Time to first token over time", "The longest wait of the arrivals", [], {})
    return _over_time(summary, plot, "TTFT, seconds", wait)


def _over_time(summary: Summary, plot: Plot, axis: str, points: Callable[[Outcome], Points]) -> Plot:
    """The largest of the points in each part of the first repeat."""
    marks, end = set(), 0.0
    for index, repeat in _first_repeats(summary):
        end = max(end, repeat.seconds)
        for number, kind in enumerate(summary.kinds):
            outcomes = [outcome for outcome in repeat.outcomes if outcome.kind == kind]
            if kind == LONG:
                marks |= {round(outcome.scheduled, 2) for outcome in outcomes}
            largest = _largest([point for outcome in outcomes for point in points(outcome)], repeat.seconds)
            if largest:
                plot.data.append(_dots(largest, _style(summary, index, number)))
    layout = _layout("seconds since the start of the repeat", axis, {"range": [0, end]}, {"type": "log"})
    layout["shapes"] = [_mark(at) for at in sorted(marks)]
    caption = f"{plot.caption} in each {PARTS}th of the first repeat."
    return plot._replace(
        caption=caption + (" Dotted lines: long prompts arrive." if marks else ""), layout=layout
    )


def figures_by_kind(summary: Summary) -> Plot:
    """The rate of the workload by its phases, with its spread."""
    key = "prompt_rate" if summary.recording.workload == "prefill" else "output_rate"
    data = []
    title = ""
    for index, endpoint in enumerate(summary.recording.endpoints):
        rows = [(row, row.spreads[index]) for row in summary.rows if row.figure.key == key]
        known = [(row, spread) for row, spread in rows if spread is not None]
        if known:
            title = f"{known[0][0].figure.title}, {known[0][0].figure.unit}"
            data.append(
                {
                    "type": "bar",
                    "name": endpoint.name,
                    "x": [row.kind for row, _ in known],
                    "y": [spread.median for _, spread in known],
                    "error_y": {
                        "type": "data",
                        "symmetric": False,
                        "array": [spread.largest - spread.median for _, spread in known],
                        "arrayminus": [spread.median - spread.least for _, spread in known],
                    },
                    "marker": {"color": COLOURS[index][0]},
                }
            )
    layout = _layout("", title, {"type": "category"}, {"rangemode": "tozero"})
    return Plot(
        "rates",
        "Rates",
        "Median over the repeats, with the least and the largest. Higher is better.",
        data,
        layout,
    )


def _groups(summary: Summary) -> Iterator[tuple[list[Outcome], Trace]]:
    """Answered requests of each endpoint and kind, and how they are drawn."""
    for index in range(len(summary.recording.endpoints)):
        for number, kind in enumerate(summary.kinds):
            of_kind = [
                outcome
                for repeat in summary.repeats(index)
                for outcome in repeat.outcomes
                if outcome.kind == kind and outcome.chunks and outcome.error is None
            ]
            if of_kind:
                yield of_kind, _style(summary, index, number)


def _first_repeats(summary: Summary) -> list[tuple[int, Repeat]]:
    found = [(index, summary.repeats(index)) for index in range(len(summary.recording.endpoints))]
    return [(index, repeats[0]) for index, repeats in found if repeats]


def _style(summary: Summary, endpoint: int, kind: int) -> Trace:
    shades = COLOURS[endpoint]
    name = summary.recording.endpoints[endpoint].name
    told = f"{name}: {summary.kinds[kind]}" if len(summary.kinds) > 1 else name
    dash = ("solid", "dash", "dot", "dashdot")[kind % 4]
    colour = shades[kind % len(shades)]
    return {
        "name": told,
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"color": colour, "symbol": SYMBOLS[kind % len(SYMBOLS)], "size": 5, "opacity": 0.75},
    }


def _steps(values: list[float], style: Trace) -> Trace:
    """An empirical distribution; of many values, evenly spaced ones."""
    ordered = np.sort(np.asarray(values))
    ranks = np.arange(1, len(ordered) + 1)
    if len(ordered) > POINTS:
        picked = np.unique(np.linspace(0, len(ordered) - 1, POINTS).astype(int))
        ordered, ranks = ordered[picked], ranks[picked]
    xs, ys = np.round(ordered, 6).tolist(), np.round(ranks / len(values), 5).tolist()
    line = {**style["line"], "shape": "hv"}
    return {"type": "scatter", "mode": "lines", "name": style["name"], "line": line, "x": xs, "y": ys}


def _dots(points: Points, style: Trace) -> Trace:
    xs, ys = np.round([at for at, _ in points], 4).tolist(), np.round([y for _, y in points], 5).tolist()
    marker = style["marker"]
    return {"type": "scatter", "mode": "markers", "name": style["name"], "marker": marker, "x": xs, "y": ys}


def _largest(points: Points, seconds: float) -> Points:
    """In each part of so many seconds, the largest; however much was measured, a page stays small."""
    largest: dict[int, tuple[float, float]] = {}
    for at, value in points:
        part = int(at / seconds * PARTS)
        if part not in largest or value > largest[part][1]:
            largest[part] = (at, max(value, LEAST))
    return [largest[part] for part in sorted(largest)]


def _mark(at: float) -> dict[str, Any]:
    line = {"color": "#888888", "width": 1, "dash": "dot"}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1, "line": line}


def _layout(x: str, y: str, xaxis: dict[str, Any], yaxis: dict[str, Any]) -> dict[str, Any]:
    return {
        "xaxis": {"title": {"text": x}, **_ticks(xaxis)},
        "yaxis": {"title": {"text": y}, **_ticks(yaxis)},
        "margin": {"l": 70, "r": 16, "t": 8, "b": 56},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "height": 380,
        "showlegend": True,
    }


def _ticks(axis: dict[str, Any]) -> dict[str, Any]:
    """A logarithmic axis has ticks at 1, 2 and 5: plotly would write a lonely 2 and 5 between powers."""
    return {**axis, "dtick": "D2"} if axis.get("type") == "log" else axis
