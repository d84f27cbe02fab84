"""Plots as small SVG files that need no library: lines and marks over linear or logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

Point = tuple[float, float]
WIDTH, HEIGHT = 460, 380  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 46, 52  # around the drawing in it
INK, FAINT, GRID = "#0f172a", "#475569", "#e2e8f0"
FONT = "ui-sans-serif, system-ui, sans-serif"
LEGEND_ROW = 20
LETTER = 6.6  # about the width of one in a legend


class Line(NamedTuple):
    """Points joined by a line, in data units; `labels` beside points, marks unless `mark` is 0."""

    name: str
    points: Sequence[Point]
    colour: str
    dashed: bool = False
    mark: float = 3.0
    labels: Sequence[str] = ()
    label_above: bool = True


class Goal(NamedTuple):
    """A dotted line at a value of one axis."""

    name: str
    axis: str  # "x" or "y"
    value: float


@dataclass(frozen=True, slots=True)
class Axis:
    """Where values are drawn. `low` and `high` are its ends, in data units."""

    title: str
    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high."""
        if self.log:
            return math.log(max(value, 1e-12) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values between the ends."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1, 2, 5) if self.high > 5 * self.low else (1, 1.5, 2, 3, 4, 5, 7)
            found = [digit * 10.0**decade for decade in decades for digit in digits]
        else:
            step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
            step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (m * step) <= 7)
            first = math.ceil(self.low / step - 1e-9)
            found = [round((first + i) * step, 10) for i in range(int((self.high - self.low) / step) + 2)]
        return [value for value in found if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing of a figure."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    goals: Sequence[Goal] = ()


def axis(title: str, values: Sequence[float], *, log: bool = False, low: float | None = None) -> Axis:
    """An axis that holds all `values`, with some room."""
    least, most = (min(values), max(values)) if values else (1.0, 10.0)
    if log:
        return Axis(title, 0.8 * least if low is None else low, 1.25 * most, log=True)
    room = 0.06 * (most - least) or 0.1 * abs(most) or 1.0
    return Axis(title, least - room if low is None else low, most + room)


def figure(title: str, caption: str, panels: Sequence[Panel]) -> str:
    """Panels side by side, with one legend for all of them below."""
    named = {line.name: line for panel in panels for line in panel.lines if line.name}
    width = WIDTH * len(panels)
    rows = _legend_rows(list(named.values()), width)
    height = HEIGHT + LEGEND_ROW * (len(rows) + 1) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="{FONT}" '
        f'font-size="12" role="img" aria-label="{escape(caption)}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for index, panel in enumerate(panels):
        parts += _panel(panel, index * WIDTH)
    for row, lines in enumerate(rows):
        parts += _legend(lines, HEIGHT + 12 + row * LEGEND_ROW)
    below = HEIGHT + 16 + len(rows) * LEGEND_ROW
    parts.append(f'<text x="{LEFT}" y="{below}" fill="{FAINT}">{escape(caption)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, left: float) -> Iterator[str]:
    x0, x1, y0, y1 = left + LEFT, left + WIDTH - RIGHT, HEIGHT - BOTTOM, TOP

    def x(value: float) -> float:
        return round(x0 + (x1 - x0) * panel.x.share(value), 1)

    def y(value: float) -> float:
        return round(y0 + (y1 - y0) * panel.y.share(value), 1)

    bold = f'font-size="14" font-weight="600" fill="{INK}"'
    yield f'<text x="{x0}" y="{TOP - 18}" {bold}>{escape(panel.title)}</text>'
    for value in panel.x.ticks():
        yield f'<path d="M{x(value)} {y0}V{y1}" stroke="{GRID}"/>'
        yield f'<text x="{x(value)}" y="{y0 + 16}" text-anchor="middle" fill="{FAINT}">{value:,g}</text>'
    for value in panel.y.ticks():
        yield f'<path d="M{x0} {y(value)}H{x1}" stroke="{GRID}"/>'
        yield f'<text x="{x0 - 6}" y="{y(value) + 4}" text-anchor="end" fill="{FAINT}">{value:,g}</text>'
    yield f'<path d="M{x0} {y1}V{y0}H{x1}" fill="none" stroke="{FAINT}"/>'
    middle = (x0 + x1) / 2
    yield f'<text x="{middle}" y="{y0 + 36}" text-anchor="middle" fill="{INK}">{escape(panel.x.title)}</text>'
    turned = f"translate({left + 16} {(y0 + y1) / 2}) rotate(-90)"
    yield f'<text transform="{turned}" text-anchor="middle" fill="{INK}">{escape(panel.y.title)}</text>'
    for goal in panel.goals:
        across = goal.axis == "y"
        path = f"M{x0} {y(goal.value)}H{x1}" if across else f"M{x(goal.value)} {y0}V{y1}"
        yield f'<path d="{path}" stroke="{FAINT}" stroke-dasharray="2 4"/>'
        at = f'x="{x1 - 4}" y="{y(goal.value) - 4}"' if across else f'x="{x(goal.value) - 4}" y="{y1 + 12}"'
        yield f'<text {at} text-anchor="end" font-size="11" fill="{FAINT}">{escape(goal.name)}</text>'
    for line in panel.lines:
        yield from _line(line, x, y)


def _line(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> Iterator[str]:
    places = [(x(a), y(b)) for a, b in line.points]
    dash = ' stroke-dasharray="6 4"' if line.dashed else ""
    if len(places) > 1:
        path = "M" + "L".join(f"{a} {b}" for a, b in places)
        yield f'<path d="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>'
    if line.mark:
        for a, b in places:
            yield f'<circle cx="{a}" cy="{b}" r="{line.mark}" fill="{line.colour}"/>'
    for (a, b), label in zip(places, line.labels, strict=False):
        below = -8 if line.label_above else 16
        style = f'text-anchor="middle" font-size="11" fill="{line.colour}"'
        yield f'<text x="{a}" y="{b + below}" {style}>{escape(label)}</text>'


def _legend_rows(lines: Sequence[Line], width: float) -> list[list[Line]]:
    rows: list[list[Line]] = [[]]
    used = float(LEFT)
    for line in lines:
        wide = _legend_width(line)
        if rows[-1] and used + wide > width:
            rows.append([])
            used = LEFT
        rows[-1].append(line)
        used += wide
    return rows


def _legend_width(line: Line) -> float:
    return 50 + LETTER * len(line.name)


def _legend(lines: Sequence[Line], y: float) -> Iterator[str]:
    x = float(LEFT)
    for line in lines:
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        if len(line.points) > 1:
            yield f'<path d="M{x:.0f} {y}h24" stroke="{line.colour}" stroke-width="2"{dash}/>'
        if line.mark:
            yield f'<circle cx="{x + 12:.0f}" cy="{y}" r="3" fill="{line.colour}"/>'
        yield f'<text x="{x + 30:.0f}" y="{y + 4}" fill="{INK}">{escape(line.name)}</text>'
        x += _legend_width(line)
