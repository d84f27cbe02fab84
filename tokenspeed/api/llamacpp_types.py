"""llama.cpp's requests as msgspec reads them. Unknown fields are ignored, explicit null is absence.

Accepted and without effect here: `cache_prompt` (prefixes are always remembered, and answers are the same
either way), `id_slot` (any request may run anywhere), `n_keep` (nothing is ever shifted out of the context)
and `t_max_prompt_ms` (as in llama.cpp itself).
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenspeed.api.llama_options import LlamaOptions


class LlamaRequest(LlamaOptions, kw_only=True):
    """What `/completion` and `/infill` have in common; the last row is not supported."""

    model: str | None = None
    stream: bool | None = None
    n_predict: int | None = None
    max_tokens: int | None = None  # the same, where `n_predict` is absent
    n_cmpl: int | None = None
    n: int | None = None  # the same, where `n_cmpl` is absent
    n_indent: int | None = None
    t_max_predict_ms: float | None = None
    samplers: str | list[str] | None = None
    logit_bias: Any = None
    ignore_eos: bool | None = None
    n_probs: int | None = None
    grammar: str | None = None
    json_schema: Any = None
    response_fields: list[str] | None = None
    timings_per_token: bool | None = None

    lora: Any = None
    return_tokens: Any = None
    return_progress: Any = None
    post_sampling_probs: Any = None
    grammar_lazy: Any = None


class CompletionBody(LlamaRequest, kw_only=True):
    """`POST /completion`."""

    prompt: Any = None


class Extra(msgspec.Struct, kw_only=True):
    """A file, or a part of one, that may help."""

    text: str
    filename: str | None = None


class InfillBody(LlamaRequest, kw_only=True):
    """`POST /infill`. `prompt` is the text of the cursor's line that stands before it."""

    input_prefix: str | None = None
    input_suffix: str | None = None
    input_extra: list[Extra] | None = None
    prompt: str | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """`POST /tokenize`."""

    content: str | list[str | int] | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """`POST /detokenize`."""

    tokens: list[int] | None = None
