"""What `bench.cpu_serve` found, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tokenspeed

TITLES = {
    "decode_1": "1 stream, decode, tok/s",
    "decode_8": "8 streams, decode, tok/s",
    "ttft_128": "first token of 128, ms",
    "prefill_512": "prefill of 512, tok/s",
    "prefill_2048": "prefill of 2,048, tok/s",
}
TIMES = frozenset({"ttft_128"})  # less is better
BARS = {"decode_1": 1.1, "decode_8": 1.8, "ttft_128": 1.0, "prefill_512": 1.0, "prefill_2048": 1.0}


@dataclass(slots=True)
class Results:
    """Figures by server and measure, one for each round."""

    machine: dict[str, Any]
    shape: str
    tokens: int
    weight_bytes: int  # that a step reads
    cold_start_seconds: float = 0.0  # ours, with nothing compiled yet
    start_seconds: dict[str, float] = field(default_factory=dict)  # to the first token
    peak_megabytes: dict[str, float] = field(default_factory=dict)
    same_first_tokens: dict[str, str] = field(default_factory=dict)
    bandwidth: list[float] = field(default_factory=list)  # GB/s, around each decode of one stream
    light: dict[str, list[float]] = field(default_factory=dict)  # of one stream: part of the memory's speed
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    others: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # part of the cores, meanwhile


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = named[0].partition(":")[2].strip() if named else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "tokenspeed": tokenspeed.__version__,
    }


def ratios(results: Results, ours: str, peer: str, measure: str) -> list[float]:
    """How many times better ours is, round by round; the last round may have one of them only."""
    pairs = zip(results.values[ours][measure], results.values[peer][measure], strict=False)
    return [theirs / mine if measure in TIMES else mine / theirs for mine, theirs in pairs]


def report(results: Results, ours: str) -> None:
    """Print the tables."""
    print(f"\n{results.shape}: {results.machine}")
    print(f"medians over rounds (least..largest); {results.weight_bytes / 1e6:.0f} MB of weights a step")
    if results.bandwidth:
        print(f"memory read, GB/s: {spread(results.bandwidth, 1)}")
    if ours not in results.values:
        return
    shares = [share for measured in results.others.values() for found in measured.values() for share in found]
    print(
        f"others used {max(shares):.0%} of the cores at most, {statistics.median(shares):.0%} in the median"
    )
    servers = list(results.values)
    _row("", servers)
    for measure, title in TITLES.items():
        if measure in results.values[ours]:
            measured = [results.values[server].get(measure, []) for server in servers]
            _row(title, [spread(values, 1) for values in measured])
    _row("1 stream, part of light", [spread(results.light.get(server, []), 2) for server in servers])
    _row("start to first token, s", [f"{results.start_seconds[server]:.1f}" for server in servers])
    _row("peak memory, MB", [f"{results.peak_megabytes[server]:.0f}" for server in servers])
    _row("same first tokens", [results.same_first_tokens[server] for server in servers])
    print(f"start of {ours} with nothing compiled yet: {results.cold_start_seconds:.1f} s")
    _report_ratios(results, ours, [server for server in servers if server != ours])


def _report_ratios(results: Results, ours: str, peers: list[str]) -> None:
    if not peers:
        return
    print(f"\ntimes better than the peer, paired within a round: median (least..largest) of {ours} / peer")
    _row("", [*peers, "bar", ""])
    for measure, title in TITLES.items():
        found = {
            peer: ratios(results, ours, peer, measure)
            for peer in peers
            if measure in results.values[peer] and measure in results.values[ours]
        }
        if found:
            worst = min(statistics.median(values) for values in found.values())
            met = "met" if worst >= BARS[measure] else "MISSED"
            cells = [spread(found.get(peer, []), 2) for peer in peers]
            _row(title.rpartition(",")[0], [*cells, f"{BARS[measure]:.1f}", met])


def spread(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    least, middle, largest = (f"{f(values):.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle} ({least}..{largest})"


def _row(title: str, cells: list[str]) -> None:
    print(f"{title:<26}" + "".join(f"{cell:>24}" for cell in cells).rstrip())


def write_json(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(asdict(results)), indent=1) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """Figures to four digits behind the point: more are noise."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value
