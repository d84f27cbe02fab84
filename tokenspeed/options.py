"""How a layer declares what can be tuned: a frozen dataclass whose fields state their bounds."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with the bounds that `config.py` checks (both inclusive) and tells in its errors."""
    bounds = {"at_least": at_least, "at_most": at_most, "choices": choices}
    metadata = {name: bound for name, bound in bounds.items() if bound is not None}
    if isinstance(default, (dict, list)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
