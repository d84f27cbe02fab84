"""What a reader must know beside the figures, in sentences."""

from __future__ import annotations

import numpy as np

from bench.serve.recording import Recording
from bench.serve.statistics import WORTH_SWITCHING
from bench.serve.summary import Summary

LATE_MS = 10.0  # of the 99th percentile of the client's lateness: more is worth a word
BUSY = 0.7  # of a core: the client may be what is measured
SEVERAL_TOKENS = 1.05  # a piece
OFF = 0.1  # of the wanted length of prompts


def notes(summary: Summary) -> list[str]:
    """All of them, the gravest first."""
    recording = summary.recording
    told = [f"The run ended early: {recording.ended_early}."] if recording.ended_early else []
    for index in range(len(recording.endpoints)):
        told += _of_errors(summary, index)
    for index in range(len(recording.endpoints)):
        told += _of_endpoint(recording, index)
        told += _of_answers(summary, index)
        told += _of_client(summary, index)
    return told + _of_method(summary)


def _of_errors(summary: Summary, index: int) -> list[str]:
    name = summary.recording.endpoints[index].name
    told = [f"{name}: {count} × {said}" for said, count in summary.error_counts(index)]
    not_sent = sum(repeat.not_sent for repeat in summary.recording.repeats if repeat.endpoint == index)
    if not_sent:
        told.append(f"{name}: {not_sent} requests of the schedule were not sent, or not waited for.")
    return told


def _of_endpoint(recording: Recording, index: int) -> list[str]:
    endpoint = recording.endpoints[index]
    told = []
    if not endpoint.usage:
        told.append(
            f"{endpoint.name} does not tell usage: its tokens are counted as the chunks they came in."
        )
    told += [f"{endpoint.name} refuses {field!r}: it was left out." for field in endpoint.left_out]
    if not endpoint.sizing.measured and recording.prompt_tokens:
        told.append(f"{endpoint.name} does not count prompts: their lengths are a guess, 1.3 tokens a word.")
    return told


def _of_answers(summary: Summary, index: int) -> list[str]:
    name = summary.recording.endpoints[index].name
    answered = [outcome for outcome in summary.outcomes(index) if outcome.error is None and outcome.chunks]
    if not answered:
        return [f"{name} answered nothing."]
    told = []
    short = sum(outcome.tokens < outcome.max_tokens for outcome in answered)
    if short:
        told.append(f"{name}: {short} of {len(answered)} answers have fewer tokens than were asked for.")
    tokens = sum(outcome.tokens for outcome in answered) / sum(len(outcome.chunks) for outcome in answered)
    if tokens > SEVERAL_TOKENS:
        told.append(f"{name} sends {tokens:.1f} tokens a chunk; a gap is the pause between two chunks.")
    for kind, wanted in summary.recording.prompt_tokens.items():
        counted = [o.prompt_tokens for o in answered if o.kind == kind and o.prompt_tokens is not None]
        if counted and abs(float(np.mean(counted)) - wanted) > OFF * wanted:
            mean = float(np.mean(counted))
            told.append(f"{name}: {kind} prompts have {mean:,.0f} tokens instead of {wanted:,.0f}.")
    return told


def _of_client(summary: Summary, index: int) -> list[str]:
    name = summary.recording.endpoints[index].name
    told = []
    late = summary.lateness(index)[1]
    if late > LATE_MS:
        told.append(
            f"The client sent 1% of the requests to {name} more than {late:.0f} ms late; TTFT holds that."
        )
    share = max((r.cpu_share for r in summary.recording.repeats if r.endpoint == index), default=0.0)
    if share > BUSY:
        told.append(f"The client used {share:.0%} of a core for {name}: it may be what was measured.")
    return told


def _of_method(summary: Summary) -> list[str]:
    told = ["TTFT counts from the scheduled arrival, not from when the request could be sent."]
    ratios = [row.ratio for row in summary.rows if row.ratio is not None]
    if not ratios:
        return told
    if summary.recording.repeats_wanted == 1:
        told.append(
            "With one repeat, intervals know the differences between requests only, not between runs."
        )
    unsure = sum(ratio.unsure for ratio in ratios)
    if unsure:
        told.append(
            f"{unsure} of {len(ratios)} ratios are beyond {WORTH_SWITCHING}, but their intervals hold 1: the "
            "repeats scatter too much to tell. More of them (--repeats), or a quieter machine, may."
        )
    return [
        *told,
        "Ratios: how many times better the first is, with a 95% interval. "
        f"Less than {WORTH_SWITCHING - 1:.0%}, or an interval that holds 1, is no difference.",
    ]
