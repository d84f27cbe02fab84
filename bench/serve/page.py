"""The report as one HTML page that needs nothing else: no network, no files beside it."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path

import msgspec

from bench.client import BenchError
from bench.serve.notes import notes
from bench.serve.plots import Plot, plots
from bench.serve.report import client_text, light_text, objective_text, ratio_text, repeats_text, spread_text
from bench.serve.summary import Row, Summary

CLASSES = {"better": "better", "worse": "worse", "no difference": "same"}
STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --faint: #5b6570; --ground: #ffffff; --panel: #f6f8fa;
  --line: #d8dee4; --good: #1a7f37; --bad: #c62828; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #9aa5b1; --ground: #0f1419;
  --panel: #171d24; --line: #30383f; --good: #57c478; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem;
  background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; } h2 { margin: 2.5rem 0 .25rem; font-size: 1.15rem; }
p, ul { margin: .25rem 0 .75rem; } .faint, figcaption { color: var(--faint); }
ul.errors { color: var(--bad); }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem .35rem 0; text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); font-weight: 600; }
tbody th { font-weight: 600; } tbody tr.first > * { border-top: 1px solid var(--line); }
th:first-child, td:first-of-type, td.verdict, th.verdict { text-align: left; }
td small { color: var(--faint); }
.tag { border: 1px solid; border-radius: 1rem; padding: .05rem .6rem; font-size: .85em; font-weight: 600; }
.better { color: var(--good); } .worse { color: var(--bad); } .same { color: var(--faint); font-weight: 400; }
figure { margin: 1rem 0 0; padding: 1rem; background: var(--panel); border: 1px solid var(--line);
  border-radius: 8px; }
figure h2 { margin: 0; } .plot { min-height: 380px; }
"""
# Draws the plots in the page's colours, again when those change.
SCRIPT = """
const plots = JSON.parse(document.getElementById("plots").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
function coloured(layout) {
  const css = getComputedStyle(document.documentElement);
  const [ink, line] = [css.getPropertyValue("--ink").trim(), css.getPropertyValue("--line").trim()];
  const axis = {gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true};
  return {...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {color: ink, family: "system-ui, sans-serif", size: 13},
    xaxis: {...axis, ...layout.xaxis}, yaxis: {...axis, ...layout.yaxis}};
}
async function draw() {
  for (const plot of plots)
    await Plotly.react(plot.id, plot.data, coloured(plot.layout), {responsive: true, displayModeBar: false});
}
dark.addEventListener("change", draw);
draw();
"""


def write_page(summary: Summary, path: Path) -> None:
    """Raises BenchError where plotly is not installed."""
    path.write_text(page(summary, plotly_js()), encoding="utf-8")


def page(summary: Summary, script: str) -> str:
    """The whole document."""
    recording = summary.recording
    names = " and ".join(endpoint.name for endpoint in recording.endpoints)
    title = escape(f"{recording.workload}: {names}")
    drawn = plots(summary)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p class="faint">{escape(recording.made)} · {escape(recording.settings)} ·
median over {repeats_text(summary)} (least..largest) · seed {recording.seed}</p>
{_errors(summary)}
{_figures(summary)}
<p class="faint">{escape(objective_text(summary))} {escape(light_text(summary))}</p>
{"".join(_figure(plot) for plot in drawn)}
<h2>What was asked and answered</h2>
{_endpoints(summary)}
<h2>To be known</h2>
<ul>{"".join(f"<li>{escape(note)}</li>" for note in notes(summary))}</ul>
<script>{script}</script>
<script type="application/json" id="plots">{_json(drawn)}</script>
<script>{SCRIPT}</script>
</body></html>
"""


def plotly_js() -> str:
    """The script that draws, as it stands in HTML. Raises BenchError where plotly is not installed."""
    try:
        script = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    except ModuleNotFoundError:
        raise BenchError("--html needs plotly: pip install 'tokenspeed[bench]'") from None
    return script.replace("</script", "<\\/script")


def _json(drawn: list[Plot]) -> str:
    raw = [{"id": plot.id, "data": plot.data, "layout": plot.layout} for plot in drawn]
    return msgspec.json.encode(raw).decode().replace("<", "\\u003c")


def _errors(summary: Summary) -> str:
    recording = summary.recording
    told = [f"The run ended early: {recording.ended_early}."] if recording.ended_early else []
    if summary.errors():
        told.append(f"{summary.errors()} requests failed; figures are of those that were answered.")
    return f'<ul class="errors">{"".join(f"<li>{escape(line)}</li>" for line in told)}</ul>' if told else ""


def _figures(summary: Summary) -> str:
    names = "".join(f"<th>{escape(endpoint.name)}</th>" for endpoint in summary.recording.endpoints)
    two = len(summary.recording.endpoints) == 2
    last = '<th>times better</th><th class="verdict">verdict</th>' if two else ""
    rows, before = [], None
    for row in summary.rows:
        rows.append(_row(row, first=row.kind != before, two=two))
        before = row.kind
    return (
        f'<div class="wide"><table id="figures"><thead><tr><th></th><th></th>{names}{last}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(row: Row, first: bool, two: bool) -> str:
    cells = []
    for spread in row.spreads:
        middle, _, rest = spread_text(spread, row.figure.unit).partition(" (")
        cells.append(f"<td>{escape(middle)}{f' <small>({escape(rest)}</small>' if rest else ''}</td>")
    if two:
        verdict = row.ratio.verdict if row.ratio else None
        middle, _, rest = ratio_text(row.ratio).partition(" (")
        tag = f'<span class="tag {CLASSES[verdict]}">{verdict}</span>' if verdict else "–"
        cells.append(f"<td>{escape(middle)}{f' <small>({escape(rest)}</small>' if rest else ''}</td>")
        cells.append(f'<td class="verdict">{tag}</td>')
    kind = escape(row.kind) if first else ""
    start = '<tr class="first">' if first else "<tr>"
    return f"{start}<th>{kind}</th><td>{escape(row.figure.title)}</td>{''.join(cells)}</tr>"


def _figure(plot: Plot) -> str:
    return (
        f"<figure><h2>{escape(plot.title)}</h2><figcaption>{escape(plot.caption)}</figcaption>"
        f'<div class="plot" id="{plot.id}"></div></figure>'
    )


def _endpoints(summary: Summary) -> str:
    told = []
    for index, endpoint in enumerate(summary.recording.endpoints):
        lines = [f"{kind}: {counts}" for kind, counts in summary.counts(index).items()]
        lines.append(f"client: {client_text(summary, index)}")
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        where = f"{endpoint.url}{endpoint.path}"
        told.append(
            f"<p><b>{escape(endpoint.name)}</b>: {escape(endpoint.model)} at <code>{escape(where)}</code></p>"
            f"<ul>{items}</ul>"
        )
    return "".join(told)
