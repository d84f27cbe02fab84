"""Fields that would change the answer, and that this server cannot honour yet.

To ignore one of these would be a lie, so anything but a value that switches it off is an error that names
it. Bookkeeping that changes nothing (`user`, `metadata`, `store`, `service_tier`, ...) is ignored, as every
unknown field is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tokenspeed.api.body import parse
from tokenspeed.errors import RequestError

# Values beside null and the empty ones that ask for nothing.
OFF: Mapping[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "text": ({"format": {"type": "text"}},),
    "grammar": (),
    "json_schema": (),
    "use_beam_search": (),
    "length_penalty": (1,),
    "allowed_token_ids": (),
    "bad_words": (),
    "logits_processors": (),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "return_tokens_as_token_ids": (),
    "return_token_ids": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "chat_template": (),
    "documents": (),
    "typical_p": (1,),
    "tfs_z": (1,),
    "top_a": (),
    "mirostat": (),
    "dry_multiplier": (),
    "xtc_probability": (),
    "dynatemp_range": (),
}

# What only a conversation can have.
OFF_IN_TEXT: Mapping[str, tuple[Any, ...]] = {
    **OFF,
    "tools": (),
    "tool_choice": ("none", "auto"),
    "functions": (),
    "function_call": ("none", "auto"),
}

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder()


def refuse_unsupported(body: bytes, off: Mapping[str, tuple[Any, ...]] = OFF) -> None:
    """Raise for the first field that asks for what is not supported. `body` has been parsed already."""
    fields = parse(body, _FIELDS)
    for name in fields.keys() & off.keys():
        value = parse(body, _ANY, part=bytes(fields[name]))
        # An empty value or zero asks for nothing; a switch that is on by default is off when false.
        idle = not value and True not in off[name]
        if value is not None and not idle and value not in off[name]:
            raise RequestError(
                f"{name} is not supported yet; leave it out", param=name, code="unsupported_parameter"
            )
