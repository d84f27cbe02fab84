"""Compares scheduling policies in virtual time: the real scheduler and engine over a modelled device.

See `--help` and bench/README.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from bench.client import BenchError
from bench.simulation.arguments import Options, Source, Sweep, parse
from bench.simulation.figures import Run, recorded, run_of
from bench.simulation.plots import Trial, distributions, extremes, front, long_ratio, middle
from bench.simulation.policies import BASELINE, PRESETS, Variant, variant
from bench.simulation.report import markdown, number, tables
from bench.simulation.workloads import jobs_of
from tokenspeed.core.costs import TYPICAL
from tokenspeed.sim.simulate import Traffic, simulate

FELT = "recorded"


def main() -> int:
    """The exit status."""
    try:
        options = parse(sys.argv[1:])
        print(heading(options))
        if options.sweep is None:
            compare(options)
        else:
            sweep(options, options.sweep)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def compare(options: Options) -> None:
    """Every policy on every seed."""
    runs: dict[str, list[Run]] = {}
    if options.source.recording is not None:
        runs[FELT] = [recorded(options.source.recording)]
    for one in options.variants:
        runs[one.name] = run(options, one)
    print(tables(runs, BASELINE if BASELINE in runs else None))
    if options.plot is not None:
        options.plot.write_text(distributions(options.source.name, runs), encoding="utf-8")
    keep(options, {name: [run_json(one) for one in of_policy] for name, of_policy in runs.items()})


def sweep(options: Options, wanted: Sweep) -> None:
    """The default policy with every step target and every share of the eldest."""
    baseline = run(options, variant(BASELINE, options.base))
    short, long = extremes(baseline)
    trials = []
    rows = [
        [
            *("eldest_share", "target, ms", f"{short} p50, ms", f"{short} p99, ms", f"{short} gap p99, ms"),
            *(f"{long} p50 ÷ {BASELINE}'s", f"{long} longest wait, ms", "of its bound"),
        ]
    ]
    for share in wanted.shares:
        for target in wanted.targets:
            tried = replace(options.base, policy="short-first", target_step_ms=target, eldest_share=share)
            runs = run(options, Variant("", tried, {}))
            trials.append(Trial(target, share, runs))
            row = [middle(runs, short, key) for key in ("ttft_p50", "ttft_p99", "gap_p99")]
            row += [long_ratio(runs, baseline, long), middle(runs, long, "longest_wait")]
            of_bound = max(run.kinds[kind]["of_bound"] or 0.0 for run in runs for kind in run.kinds)
            rows.append([f"{share:g}", f"{target:g}", *map(number, row), f"{of_bound:.0%}"])
    print("\n".join(markdown(rows, left=0)))
    if options.plot is not None:
        told = front(
            f"{options.source.name} on {options.device.name}", trials, baseline, goals=is_reference(options)
        )
        options.plot.write_text(told, encoding="utf-8")
    trial_json = [
        {
            "target_step_ms": t.target_step_ms,
            "eldest_share": t.eldest_share,
            "runs": list(map(run_json, t.runs)),
        }
        for t in trials
    ]
    keep(options, {BASELINE: list(map(run_json, baseline)), "front": trial_json})


def run(options: Options, one: Variant) -> list[Run]:
    """One policy on every seed."""
    prior = TYPICAL if options.cold else None
    return [
        run_of(simulate(prioritised(traffic, one.priorities), options.device, one.options, prior=prior))
        for traffic in traffics(options.source)
    ]


def traffics(source: Source) -> Iterator[Traffic]:
    """What comes, for each seed, or what came when it was recorded."""
    if source.recording is not None:
        yield source.recording.traffic
    else:
        for seed in source.seeds:
            yield Traffic(jobs_of(source.name, source.settings, seed))


def prioritised(traffic: Traffic, priorities: Mapping[str, int]) -> Traffic:
    """With the priorities that a policy gives kinds of requests; none leaves them as they are."""
    if not priorities:
        return traffic
    jobs = [
        replace(job, request=replace(job.request, priority=priorities.get(job.kind, 0)))
        for job in traffic.jobs
    ]
    return replace(traffic, jobs=jobs)


def heading(options: Options) -> str:
    """What is run, in a few lines."""
    source, device = options.source, options.device
    lines = [f"{source.name}: {settings_told(source)}" if source.settings else source.name]
    coefficients = ", ".join(f"{name} {value:.3g}" for name, value in asdict(device.costs).items())
    capacity = device.capacity
    held = capacity.blocks * capacity.block_size
    lines.append(f"device {device.name}: seconds of a step: {coefficients}")
    lines.append(f"it holds {held:,} tokens; contexts up to {capacity.max_context:,}")
    if source.recording is not None and source.recording.truncated:
        lines.append(
            "The last line of the recording was cut off, as a killed server leaves it; it is left out."
        )
    if options.sweep is None:
        lines += [f"{one.name}: {policy_told(one)}" for one in options.variants]
    if len(source.seeds) > 1:
        lines.append(f"Figures are medians over {len(source.seeds)} seeds (least..largest).")
    return "\n".join(lines) + "\n"


def settings_told(source: Source) -> str:
    """`rate 16, prompt 64-400, ...`."""
    told = []
    for name, value in source.settings.items():
        if isinstance(value, range):
            value = f"{value.start}-{value[-1]}" if len(value) > 1 else value.start
        told.append(
            f"{name.replace('_', ' ')} {value:g}"
            if isinstance(value, float)
            else f"{name.replace('_', ' ')} {value}"
        )
    return ", ".join(told)


def policy_told(one: Variant) -> str:
    """What a policy is, and the options that matter to it."""
    preset = PRESETS.get(one.name.partition(",")[0])
    options = one.options
    target = f"target {options.target_step_ms:g} ms" if options.target_step_ms else "no target"
    told = f"{preset.told}; " if preset else ""
    return f"{told}{options.policy}, {target}, at most {options.step_tokens:,} tokens a step"


def is_reference(options: Options) -> bool:
    """Whether this is the case that there are goals for."""
    return options.source.name == "mixed" and options.device.name == "h200-8b"


def keep(options: Options, content: Mapping[str, Any]) -> None:
    """Write every figure as JSON, if that is wanted."""
    if options.json is not None:
        source = options.source
        settings = {k: [v.start, v[-1]] if isinstance(v, range) else v for k, v in source.settings.items()}
        device = {
            "name": options.device.name,
            **asdict(options.device.costs),
            **asdict(options.device.capacity),
        }
        whole = {
            "source": source.name,
            "settings": settings,
            "seeds": source.seeds,
            "device": device,
            **content,
        }
        options.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def run_json(one: Run) -> dict[str, Any]:
    return {"kinds": one.kinds, "whole": one.whole}


if __name__ == "__main__":
    sys.exit(main())
