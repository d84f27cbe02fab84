"""`generation_config.json`: how a checkpoint wants to be sampled where a request does not say."""

from __future__ import annotations

from dataclasses import dataclass

from tokenspeed.model.fields import Fields


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The ids that end a choice, and the checkpoint's own sampling; None where it states nothing."""

    eos_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def generation_defaults(config: Fields, generation: Fields | None, vocab_size: int) -> GenerationDefaults:
    """Read `generation`, with the ids that end a choice taken from `config` where it names none.

    Raises `ModelError` for a value of another type or out of its range, and for an id beyond `vocab_size`.
    """
    if generation is None:
        return GenerationDefaults(eos_ids=_eos_ids(config, vocab_size))
    return GenerationDefaults(
        eos_ids=_eos_ids(generation, vocab_size) or _eos_ids(config, vocab_size),
        temperature=_bounded(generation, "temperature", at_most=float("inf")),
        top_p=_bounded(generation, "top_p", at_most=1.0),
        top_k=generation.integer("top_k", at_least=0) if generation.has("top_k") else None,
        min_p=_bounded(generation, "min_p", at_most=1.0),
        repetition_penalty=_repetition_penalty(generation),
    )


def _eos_ids(fields: Fields, vocab_size: int) -> tuple[int, ...]:
    ids = fields.ids("eos_token_id")
    if any(token >= vocab_size for token in ids):
        raise fields.error("eos_token_id", f"is beyond the vocabulary of {vocab_size}: {max(ids)}")
    return ids


def _bounded(fields: Fields, key: str, *, at_most: float) -> float | None:
    if not fields.has(key):
        return None
    value = fields.number(key)
    if not 0.0 <= value <= at_most:
        raise fields.error(key, f"must be from 0 to {at_most:g}, not {value:g}")
    return value


def _repetition_penalty(fields: Fields) -> float | None:
    key = "repetition_penalty"
    return fields.number(key, above=0.0) if fields.has(key) else None
