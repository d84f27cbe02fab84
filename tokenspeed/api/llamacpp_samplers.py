"""llama.cpp's `samplers`: which steps of sampling there are. Their order is always this server's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from tokenspeed.api.tools import wrong
from tokenspeed.generation.request import SamplingFields

# Each sampler by the names that it goes by, with the fields that it reads, switched off. Those without fields
# have options of their own, which are refused unless they are off; `infill` is told below.
OFF: Mapping[str, Mapping[str, Any]] = {
    "temperature": {"temperature": 1.0},
    "top_k": {"top_k": 0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "penalties": {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    "infill": {},
    "dry": {},
    "typ_p": {},
    "xtc": {},
    "top_n_sigma": {},
    "adaptive_p": {},
}
ALIASES = {
    "temp": "temperature",
    "top-k": "top_k",
    "top-p": "top_p",
    "min-p": "min_p",
    "nucleus": "top_p",
    "typical": "typ_p",
    "typical_p": "typ_p",
    "typical-p": "typ_p",
    "typ-p": "typ_p",
    "top-n-sigma": "top_n_sigma",
    "adaptive-p": "adaptive_p",
}
LETTERS = {
    "d": "dry",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "s": "top_n_sigma",
    "m": "min_p",
    "t": "temperature",
    "x": "xtc",
    "i": "infill",
    "e": "penalties",
    "a": "adaptive_p",
}
# The sampler `infill` leaves only tokens that are likely by themselves, so that a gap is not filled with
# guesses. This share of the likeliest token's probability does so as well.
INFILL_MIN_P = 0.2


def only_samplers(sampling: SamplingFields, samplers: str | list[str] | None) -> SamplingFields:
    """The fields with those of samplers that are not listed switched off; no list leaves them as they are."""
    if not samplers:
        return sampling
    names = _names(samplers)
    fields: dict[str, Any] = {}
    for name, off in OFF.items():
        if name not in names:
            fields |= off
    if "infill" in names:
        fields["min_p"] = max(INFILL_MIN_P, fields.get("min_p", sampling.min_p) or 0.0)
    return replace(sampling, **fields)


def _names(samplers: str | list[str]) -> Collection[str]:
    if isinstance(samplers, str):
        names = {LETTERS.get(letter, letter) for letter in samplers}
    else:
        names = {ALIASES.get(name, name) for name in samplers}
    if unknown := sorted(names - OFF.keys()):
        raise wrong("samplers", f"has {unknown[0][:40]!r}; known are {', '.join(OFF)}")
    return names
