"""The policies that are compared, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from bench.client import BenchError
from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import Capacity
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.sim.device import DEVICES, Device


@dataclass(frozen=True, slots=True)
class Preset:
    """What a policy changes of the scheduler's options, and of the priorities of kinds of requests."""

    told: str
    options: Mapping[str, Any]
    priorities: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy with its options, as it is run."""

    name: str
    options: SchedulerOptions
    priorities: Mapping[str, int]


PRESETS: Mapping[str, Preset] = {
    "ours": Preset("the default", {"policy": "short-first"}),
    "first-come": Preset(
        "first come, first served, 8,192 tokens a step",
        {"policy": "first-come", "target_step_ms": 0.0, "step_tokens": 8192},
    ),
    "priority": Preset(
        "strict priority: short before long, first come within", {"policy": "priority"}, {"long": 1}
    ),
    "shortest-first": Preset("the shortest prompt, however long others wait", {"policy": "shortest-first"}),
}
BASELINE = "first-come"


def variant(given: str, base: SchedulerOptions) -> Variant:
    """`ours` or `ours,target_step_ms=20`. Raises BenchError."""
    name, _, rest = given.partition(",")
    preset = PRESETS.get(name)
    if preset is None:
        raise BenchError(f"--policy: no {name!r}; give one of {', '.join(PRESETS)}")
    changes = dict(preset.options)
    for key, value in _pairs(f"--policy {name}", rest):
        changes[key] = _option(f"--policy {name}", key, value)
    return Variant(given, replace(base, **changes), preset.priorities)


def device_of(given: str) -> Device:
    """`h200-8b`, `h200-8b,token=2e-5`, or all coefficients: `base=..,row=..,token=..,attended=..,read=..`."""
    name, _, rest = given.partition(",")
    known = DEVICES.get(name)
    if known is None and "=" not in name:
        raise BenchError(f"--device: no {name!r}; give one of {', '.join(DEVICES)}, or coefficients")
    values = _device_values(given if known is None else rest)
    costs = {key: values.pop(key) for key in Costs.__dataclass_fields__ if key in values}
    if known is None:
        needed = [key for key, field in Costs.__dataclass_fields__.items() if field.default is MISSING]
        missing = [key for key in needed if key not in costs]
        if missing:
            raise BenchError(
                f"--device {given}: {missing[0]} is missing; or begin with a device, like cpu,..."
            )
        known = Device(given, Costs(**costs), DEVICES["h200-8b"].capacity)
    sizes = {key: int(value) for key, value in values.items()}
    return Device(given, replace(known.costs, **costs), replace(known.capacity, **sizes))


def _device_values(given: str) -> dict[str, float]:
    sizes = [option.name for option in fields(Capacity)]
    keys = [*Costs.__dataclass_fields__, *sizes]
    values: dict[str, float] = {}
    for key, value in _pairs("--device", given):
        if key not in keys:
            raise BenchError(f"--device: no {key!r}; {_nearest(key, keys)}")
        values[key] = _number("--device", key, value)
        least = 1 if key in sizes else 0
        if not least <= values[key] < float("inf") or (key in sizes and values[key] % 1):
            raise BenchError(
                f"--device: {key}={value}: must be {'a whole number' if least else 'a number'} ≥ {least}"
            )
    if values.get("base") == 0:
        raise BenchError("--device: base=0: a step takes some time")
    return values


def _option(where: str, key: str, text: str) -> Any:
    """One option of the scheduler, within its bounds."""
    known = {option.name: option for option in fields(SchedulerOptions)}
    if key not in known:
        raise BenchError(f"{where}: no {key!r}; {_nearest(key, list(known))}")
    if key == "policy":
        raise BenchError(f"{where}: policy is what comes first: --policy NAME,option=value")
    value: float = _number(where, key, text)
    bounds = known[key].metadata
    if isinstance(known[key].default, int):
        if value % 1:
            raise BenchError(f"{where}: {key}={text}: must be a whole number")
        value = int(value)
    if not bounds["at_least"] <= value <= bounds["at_most"]:
        raise BenchError(f"{where}: {key}={text}: must be {bounds['at_least']:g} to {bounds['at_most']:g}")
    return value


def _pairs(where: str, given: str) -> list[tuple[str, str]]:
    pairs = []
    for part in given.split(",") if given else []:
        key, equals, value = part.partition("=")
        if not equals:
            raise BenchError(f"{where}: {part!r} is not option=value")
        pairs.append((key.strip(), value.strip()))
    return pairs


def _number(where: str, key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BenchError(f"{where}: {key}={text}: is not a number") from None
    if value != value:
        raise BenchError(f"{where}: {key}={text}: is not a number")
    return value


def _nearest(key: str, known: list[str]) -> str:
    near = get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
