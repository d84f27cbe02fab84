"""Rotary position embedding as a checkpoint's configuration states it, in both of its forms.

The frequencies are computed in float32 by the arithmetic that checkpoints were trained with, operation for
operation: a last bit of a frequency is a visible angle at position 100 000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from tokenspeed.errors import ModelError
from tokenspeed.model.fields import Fields
from tokenspeed.model.spec import RopeSpec

DEFAULT_BASE = 10_000.0


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """What a configuration says of its positions, whichever form it is written in.

    `trained` is `max_position_embeddings`. `context` is the longest sequence to serve in tokens, None where
    the operator leaves it to the checkpoint.
    """

    kind: str
    scaling: Fields
    base: float
    dim: int  # elements of a head, all of which rotate
    trained: int
    context: int | None


@dataclass(frozen=True, slots=True)
class Scaled:
    """The frequencies [dim / 2] of a scaling, and how far they reach.

    `context` is the longest sequence served unless the operator asks for another, `limit` the longest that
    may be asked for; both in tokens.
    """

    frequencies: Tensor
    context: int
    limit: int
    attention_scaling: float = 1.0


def rope(config: Fields, dim: int, context: int | None) -> tuple[RopeSpec, int]:
    """The rotation of `config` and the longest sequence it can serve, in tokens.

    `context` asks for another length than the checkpoint's own; more than its scaling reaches is an error.
    """
    parsed = _parse(config, dim, context)
    scale = SCALINGS.get(parsed.kind)
    if scale is None:
        known = ", ".join(sorted(SCALINGS))
        raise parsed.scaling.error("rope_type", f"is {parsed.kind!r}; supported are {known}")
    try:
        scaled = scale(parsed)
    except (ArithmeticError, ValueError):  # a logarithm of 0, say
        scaled = None
    if (
        scaled is None
        or not scaled.frequencies.isfinite().all()
        or not math.isfinite(scaled.attention_scaling)
    ):
        raise parsed.scaling.error(
            "rope_theta", f"and the values of a '{parsed.kind}' scaling give no frequencies"
        )
    if context is not None and context > scaled.limit:
        raise ModelError(
            f"{config.where}: positions reach {scaled.limit} tokens; ask for a max_context of at most that, "
            f"not {context}"
        )
    spec = RopeSpec(tuple(scaled.frequencies.tolist()), scaled.attention_scaling)
    return spec, scaled.context if context is None else context


def _parse(config: Fields, dim: int, context: int | None) -> RopeConfig:
    """Read `rope_parameters`, or `rope_theta` and `rope_scaling` of the older form."""
    trained = config.integer("max_position_embeddings")
    if dim % 2:
        raise config.error("head_dim", f"must be even for rotary embedding, not {dim}")
    key = "rope_parameters" if config.has("rope_parameters") else "rope_scaling"
    scaling = config.part(key) if config.has(key) else Fields({}, config.where)
    if any(isinstance(value, dict) for value in scaling.values.values()):
        raise config.error(
            key, "differs from layer to layer, which is not supported; it must be the same for all"
        )
    for fields in (config, scaling):
        if fields.number("partial_rotary_factor", 1.0) != 1.0:
            raise fields.error(
                "partial_rotary_factor", "must be 1; heads that rotate in part are not supported"
            )
    base = config.number("rope_theta", DEFAULT_BASE, above=0.0)
    base = scaling.number("rope_theta", base, above=0.0)
    if config.has("original_max_position_embeddings"):
        # The older form may state it beside the scaling; there it has the last word.
        original = {"original_max_position_embeddings": config.integer("original_max_position_embeddings")}
        scaling = Fields({**scaling.values, **original}, scaling.where)
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    return RopeConfig(kind, scaling, base, dim, trained, context)


def _frequencies(base: float, dim: int) -> Tensor:
    """Float32 [dim / 2]: base ** (-2i / dim) for pair i."""
    powers: Tensor = base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return 1.0 / powers


def _default(rope: RopeConfig) -> Scaled:
    return Scaled(_frequencies(rope.base, rope.dim), rope.trained, rope.trained)


def _linear(rope: RopeConfig) -> Scaled:
    """Positions divided by `factor`. Checkpoints differ in whether `max_position_embeddings` is already the
    longer length, so the factor is only reached for when the operator asks."""
    factor = rope.scaling.number("factor", above=0.0)
    frequencies = _frequencies(rope.base, rope.dim) / factor
    return Scaled(frequencies, rope.trained, max(rope.trained, int(rope.trained * factor)))


def _dynamic(rope: RopeConfig) -> Scaled:
    """NTK scaling, its frequencies fixed at load for the context that is served.

    Rescaling as a sequence grows, as the training code does, would turn keys that are already stored; so a
    server chooses one length. Up to the original length that is exactly the unscaled embedding.
    """
    if rope.dim < 4:
        raise rope.scaling.error("rope_type", f"'dynamic' needs heads of at least 4 elements, not {rope.dim}")
    factor = rope.scaling.number("factor", above=0.0)
    context = max(rope.trained, rope.context or rope.trained)
    stretch = (factor * context / rope.trained) - (factor - 1)
    if stretch <= 0:
        raise rope.scaling.error("factor", f"must be at least 1, not {factor:g}")
    base = rope.base * stretch ** (rope.dim / (rope.dim - 2))
    return Scaled(_frequencies(base, rope.dim), rope.trained, max(rope.trained, int(rope.trained * factor)))


def _llama3(rope: RopeConfig) -> Scaled:
    """Long wavelengths divided by `factor`, short ones kept, those between blended."""
    scaling = rope.scaling
    factor = scaling.number("factor", above=0.0)
    low, high = scaling.number("low_freq_factor", above=0.0), scaling.number("high_freq_factor", above=0.0)
    if high <= low:
        raise scaling.error("high_freq_factor", f"must be more than low_freq_factor {low:g}, not {high:g}")
    original = scaling.integer("original_max_position_embeddings", rope.trained)
    frequencies = _frequencies(rope.base, rope.dim)
    wavelengths = 2 * math.pi / frequencies  # tokens a turn
    is_long, is_short = wavelengths > original / low, wavelengths < original / high
    scaled = torch.where(is_long, frequencies / factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    scaled = torch.where(~is_long & ~is_short, blended, scaled)
    return Scaled(scaled, rope.trained, rope.trained)


def _yarn(rope: RopeConfig) -> Scaled:
    """Each pair blended between kept and divided by `factor`, by its turns over the original length."""
    scaling = rope.scaling
    original = scaling.integer("original_max_position_embeddings", rope.trained)
    factor = scaling.number("factor", rope.trained / original, above=0.0)
    powers: Tensor = rope.base ** (torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim)
    kept, divided = 1.0 / powers, 1.0 / (factor * powers)
    low, high = _yarn_range(rope, original)
    ramp = (torch.arange(rope.dim // 2, dtype=torch.float32) - low) / (high - low)
    keep = 1 - torch.clamp(ramp, 0, 1)
    frequencies = divided * (1 - keep) + kept * keep
    reach = max(rope.trained, int(original * factor))
    return Scaled(frequencies, reach, reach, _yarn_attention_scaling(scaling, factor))


def _yarn_range(rope: RopeConfig, original: int) -> tuple[float, float]:
    """The pairs between which the blend ramps: those that turn `beta_fast` and `beta_slow` times."""
    # A 0 stands for the default here, as in the training code.
    fast = rope.scaling.number("beta_fast", 32.0) or 32.0
    slow = rope.scaling.number("beta_slow", 1.0) or 1.0

    def pair_that_turns(times: float) -> float:
        return (rope.dim * math.log(original / (times * 2 * math.pi))) / (2 * math.log(rope.base))

    low, high = pair_that_turns(fast), pair_that_turns(slow)
    if rope.scaling.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    return low, high + 0.001 if low == high else high


def _yarn_attention_scaling(scaling: Fields, factor: float) -> float:
    """What cos and sin are multiplied by, so that attention stays as sharp over the longer context."""
    if scaling.has("attention_factor"):
        return scaling.number("attention_factor", above=0.0)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    weight, weight_all = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    return scale(weight) / scale(weight_all) if weight and weight_all else scale(1.0)


SCALINGS: Mapping[str, Callable[[RopeConfig], Scaled]] = MappingProxyType(
    {"default": _default, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn}
)
