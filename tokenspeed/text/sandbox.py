"""Where a checkpoint's chat template runs: Jinja as `transformers` sets it up, fenced in.

A template is code that somebody else wrote and that sees what any client sends, so it can reach nothing
but its arguments, and it cannot multiply them beyond measure.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_CHARS = 64 * 1024 * 1024  # of one rendered prompt, or of one product inside a template


class _GenerationTag(Extension):
    """`{% generation %}` marks what an assistant said; that matters in training, and the text is the same."""

    tags = {"generation"}  # noqa: RUF012  (the name and type that jinja2 reads)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The immutable sandbox, which also refuses `"x" * 10**9` and `9**9**9`."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _size(operator, left, right) > MOST_CHARS:
            raise SecurityError(f"the result of {operator} would be too large")
        return super().call_binop(context, operator, left, right)


def _size(operator: str, left: Any, right: Any) -> float:
    """A bound on the elements of a product, or on the bits of a power."""
    if operator == "**":
        return left.bit_length() * right if isinstance(left, int) and isinstance(right, int) else 0
    for many, times in ((left, right), (right, left)):
        if isinstance(many, (str, list, tuple)) and isinstance(times, int):
            return len(many) * times
    return 0


def environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    """The filters, functions and whitespace rules that published chat templates are written for."""

    def strftime_now(form: str) -> str:
        return now().strftime(form)

    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as a model was trained to see it: Jinja's own filter escapes HTML and sorts keys."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRuntimeError(message)
