"""Strict reading of a checkpoint's JSON files: every wrong value is an error that names its key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenspeed.errors import ModelError

MOST = 2**31 - 1  # of any size or count that a checkpoint states


class Fields:
    """A JSON object with typed getters; `where` names it in errors (".../config.json").

    A getter raises `ModelError` for a value of another type or out of bounds. A key that is absent or null
    gives the default, or the error that it is missing where there is no default.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def has(self, key: str) -> bool:
        """Whether the key has a value; null counts as absent."""
        return self.values.get(key) is not None

    def error(self, key: str, told: str) -> ModelError:
        return ModelError(f"{self.where}: '{key}' {told}")

    def integer(self, key: str, default: int | None = None, *, at_least: int = 1, at_most: int = MOST) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise self.error(key, f"must be an integer of at least {at_least}, not {value!r}")
        if value > at_most:
            raise self.error(key, f"must be at most {at_most}, not {value}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = -math.inf) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"must be a number, not {value!r}")
        if not above < value < math.inf:
            bound = "finite" if above == -math.inf else f"finite and more than {above:g}"
            raise self.error(key, f"must be {bound}, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"must be a string, not {value!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._value(key, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, f"must be a list of strings, not {value!r}")
        return tuple(value)

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids, written as one integer or as a list of them; none where the key is absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        listed = value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in listed):
            raise self.error(key, f"must be a token id or a list of them, not {value!r}")
        return tuple(listed)

    def part(self, key: str) -> Fields:
        """The JSON object under `key`."""
        value = self._value(key, None)
        if not isinstance(value, dict):
            raise self.error(key, f"must be an object, not {value!r}")
        return Fields(value, f"{self.where}: '{key}'")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.error(key, "is missing")
        return value


def read_json(path: Path) -> Fields:
    """The JSON object in the file; an unreadable or malformed one is a `ModelError` that names it."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is not JSON ({error}); fetch the file again") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: holds a JSON {type(values).__name__} where an object is wanted")
    return Fields(values, str(path))
