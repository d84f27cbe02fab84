"""The options of sampling that llama.cpp and Ollama have in common, under the names that these give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tokenspeed.errors import RequestError
from tokenspeed.generation.request import SamplingFields

RANDOM_SEED = 2**32 - 1  # asks for any; so does every negative seed


class LlamaOptions(msgspec.Struct, kw_only=True):
    """Explicit null is absence. The fields of the last rows change the answer and are not supported."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None  # tokens that penalties look back at

    typical_p: Any = None
    tfs_z: Any = None
    top_n_sigma: Any = None
    mirostat: Any = None
    dynatemp_range: Any = None
    dry_multiplier: Any = None
    xtc_probability: Any = None
    min_keep: Any = None
    adaptive_target: Any = None


# What else switches one of them off, beside null and what is empty or zero.
OFF: Mapping[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "tfs_z": (1,),
    "top_n_sigma": (-1,),
    "mirostat": (),
    "dynatemp_range": (),
    "dry_multiplier": (),
    "xtc_probability": (),
    "min_keep": (),
    "adaptive_target": (-1,),
}
# The neutral name of each field that has another.
NAMES: Mapping[str, str] = {"stops": "stop", "repetition_penalty": "repeat_penalty"}
SAMPLED = ("temperature", "top_k", "top_p", "min_p", "seed", "presence_penalty", "frequency_penalty")


def refuse(given: msgspec.Struct, off: Mapping[str, tuple[Any, ...]], prefix: str = "") -> None:
    """Raise for the first field of `off` that asks for something; `prefix` stands before its name."""
    for name, values in off.items():
        value = getattr(given, name)
        if value and value not in values:
            raise unsupported(prefix + name)


def unsupported(name: str, mend: str = "leave it out") -> RequestError:
    """That the field asks for what this server cannot do."""
    return RequestError(f"{name} is not supported; {mend}", param=name, code="unsupported_parameter")


def sampling_fields(options: LlamaOptions, prefix: str = "") -> SamplingFields:
    """The options in neutral words; raises for what is not supported. `prefix` stands before their names."""
    refuse(options, OFF, prefix)
    seed = options.seed
    penalised = _penalties(options, prefix)
    return SamplingFields(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=None if seed is None or seed < 0 or seed == RANDOM_SEED else seed,
        presence_penalty=0.0 if not penalised else options.presence_penalty,
        frequency_penalty=0.0 if not penalised else options.frequency_penalty,
        repetition_penalty=1.0 if not penalised else options.repeat_penalty,
    )


def _penalties(options: LlamaOptions, prefix: str) -> bool:
    """Whether penalties are wanted at all. They look back at the whole text here, so a shorter look is
    refused where there is a penalty that would notice."""
    window = options.repeat_last_n
    if window == 0:
        return False
    penalties = (options.repeat_penalty or 1.0) - 1.0, options.presence_penalty, options.frequency_penalty
    if window is not None and window > 0 and any(penalties):
        raise unsupported(
            f"{prefix}repeat_last_n", "penalties look back at the whole text, so leave it out, or send -1"
        )
    return True


def stops_of(options: LlamaOptions) -> tuple[str, ...]:
    """The stop strings."""
    stop = options.stop
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def names_of(prefix: str, **others: str) -> dict[str, str]:
    """What clients call the neutral fields, where the options stand behind `prefix`."""
    return {name: prefix + NAMES.get(name, name) for name in (*SAMPLED, *NAMES)} | others
