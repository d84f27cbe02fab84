"""What is measured: the fixed workloads, each with what its table rows show. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.serve.figures import (
    DECODE_50,
    GAP_99,
    OUTPUT_RATE,
    TTFT_50,
    TTFT_95,
    TTFT_99,
    Figure,
)
from bench.serve.workloads import Arrival, Scale, mixed, prefill, streams, throughput, up_to

START = "start"  # the one that is no requests: two starts from weights on the disk
WARM_PROMPT = 128  # tokens, of all warm-up requests but the largest of each kind
WARM_OUTPUT = 16
LEAST = 4  # tokens of a prompt or an answer, however small the scale


@dataclass(frozen=True, slots=True)
class Plan:
    """One workload. `shows` are the figures of the table, of every kind or of those that it names."""

    key: str  # what --only calls it
    title: str
    arrivals: tuple[Arrival, ...]
    shows: tuple[Figure, ...]
    timeout: float  # seconds, for all of it
    warm: int  # requests at once before it
    temperature: float = 0.0

    def kinds(self) -> list[str]:
        return list(dict.fromkeys(arrival.kind for arrival in self.arrivals))

    def phases(self) -> list[list[Arrival]]:
        """Each begins when the one before has ended."""
        found: dict[int, list[Arrival]] = {}
        for arrival in self.arrivals:
            found.setdefault(arrival.phase, []).append(arrival)
        return list(found.values())

    def warm_up(self) -> list[Arrival]:
        """As many at once as will be measured, for what is done once for a number of rows.

        Most are short; the largest of each kind is whole, for what is done once for a length.
        """
        largest: dict[str, Arrival] = {}
        for arrival in self.arrivals:
            if arrival.prompt_tokens >= largest.setdefault(arrival.kind, arrival).prompt_tokens:
                largest[arrival.kind] = arrival
        whole = list(largest.values())
        short = [
            replace(arrival, prompt_tokens=min(arrival.prompt_tokens, WARM_PROMPT))
            for arrival in self.arrivals[: max(0, self.warm - len(whole))]
        ]
        return [
            replace(arrival, at=0.0, phase=0, max_tokens=min(arrival.max_tokens, WARM_OUTPUT))
            for arrival in whole + short
        ]


def _one(scale: float) -> Plan:
    prompt, output = _tokens(128, scale), _tokens(256, scale)
    arrivals = tuple(Arrival(0.0, "1 stream", output, prompt, phase) for phase in range(5))
    return Plan("one", f"1 stream, {prompt}/{output}", arrivals, (DECODE_50, TTFT_50), 60.0, 1)


def _streams(count: int) -> Callable[[float], Plan]:
    def make(scale: float) -> Plan:
        prompt, output, many = _tokens(512, scale), _tokens(256, scale), max(2, round(count * scale))
        drawn = streams(Scale(streams=(many,), prompt=up_to(prompt, prompt), output=up_to(output, output)))
        title = f"{many} streams, {prompt}/{output}"
        shows = (OUTPUT_RATE, TTFT_50, TTFT_99, GAP_99)
        return Plan(f"s{count}", title, tuple(drawn), shows, 120.0, many)

    return make


def _prompts(scale: float) -> Plan:
    ladder = tuple(dict.fromkeys(_tokens(tokens, scale) for tokens in (128, 2048, 8192, 30_000)))
    drawn = prefill(Scale(ladder=ladder, requests=3, output=up_to(1, 1)))
    return Plan("prompts", "1 prompt", tuple(drawn), (TTFT_50,), 60.0, 1)


def _uniform(scale: float) -> Plan:
    lengths = up_to(_tokens(100, scale), _tokens(1024, scale))
    many = max(2, round(256 * scale))
    drawn = throughput(Scale(requests=many, prompt=lengths, output=lengths))
    title = f"{many} at once, in and out {lengths[0]}..{lengths[-1]}"
    shows = (OUTPUT_RATE, TTFT_50, GAP_99)
    return Plan("uniform", title, tuple(drawn), shows, 120.0, many, temperature=0.6)


def _mixed(scale: float) -> Plan:
    drawn = mixed(
        Scale(
            rate=16.0,
            duration=max(2.0, 24.0 * scale),
            prompt=up_to(_tokens(64, scale), _tokens(400, scale)),
            output=up_to(_tokens(96, scale), _tokens(96, scale)),
            long_prompt=_tokens(30_000, scale),
            long_output=_tokens(64, scale),
            long_every=3.0,
            long_count=2,
        )
    )
    shows = (TTFT_50, TTFT_95, TTFT_99, GAP_99)
    return Plan("mixed", "mixed", tuple(drawn), shows, 120.0, 16)


MAKERS: dict[str, Callable[[float], Plan]] = {
    "one": _one,
    "prompts": _prompts,
    "s8": _streams(8),
    "s64": _streams(64),
    "s256": _streams(256),
    "uniform": _uniform,
    "mixed": _mixed,
}
NAMES = (*MAKERS, START)


def plans(names: tuple[str, ...], scale: float) -> list[Plan]:
    """Those named, in the order in which they are measured. `scale` shrinks tokens, requests and seconds."""
    return [make(scale) for name, make in MAKERS.items() if name in names]


def _tokens(count: int, scale: float) -> int:
    return max(LEAST, round(count * scale))
