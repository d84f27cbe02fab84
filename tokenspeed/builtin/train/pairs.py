"""Instruction pairs: a question in plain words and an answer, written by hand or made from docstrings."""

from __future__ import annotations

import ast
import random
import re
import textwrap
import tomllib
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

Pair = tuple[str, str]

CODE_ASKS = (
    "Write a Python function that does this: {summary}",
    "Write a Python function `{name}`: {summary}",
    "Write `{signature}`. {summary}",
    "Implement this function in Python: {summary}",
    "I need a Python function called `{name}`. {summary}",
    "{summary} Write it in Python.",
)
SUMMARY_ASKS = (
    "What does this function do?",
    "Explain this function.",
    "Describe this code in one sentence.",
    "What is this for?",
)
DOCSTRING_ASKS = ("Write a docstring for this function.", "Add a docstring.", "Write a docstring for")
MAX_FUNCTION_LINES = 45


def talk() -> list[Pair]:
    return [(question, row["answer"]) for row in _rows()["talk"] for question in row["asked"]]


def tasks() -> list[Pair]:
    rows = _rows()
    return [
        (ask.format(task), f"```python\n{row['function']}\n```")
        for row in rows["task"]
        for task, ask in product(row["does"], rows["asks"])
    ]


def _rows() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("pairs.toml").read_text())


def from_docstrings(source: str, rng: random.Random, most: int) -> list[Pair]:
    """At most `most` pairs about the documented functions of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            functions = list(_documented(ast.parse(source)))
        except (SyntaxError, ValueError, RecursionError):
            return []
    lines = source.split("\n")
    chosen = rng.sample(functions, min(most, len(functions)))
    return [pair for node in chosen if (pair := _pair(node, lines, rng))]


def _documented(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
            continue
        length = (node.end_lineno or 0) - node.lineno
        if length <= MAX_FUNCTION_LINES and ast.get_docstring(node) and not node.name.startswith("__"):
            yield node


def _pair(node: ast.FunctionDef, lines: list[str], rng: random.Random) -> Pair | None:
    docstring = ast.get_docstring(node) or ""
    summary = " ".join(docstring.split("\n\n")[0].split())
    if not 15 <= len(summary) <= 240 or not summary.isascii() or ":param" in summary:
        return None
    body_start = node.body[1].lineno
    first = node.body[0]
    head = lines[node.lineno - 1 : first.lineno - 1]
    body = lines[(first.end_lineno or first.lineno) : node.end_lineno]
    if not head or body_start <= (first.end_lineno or 0):
        return None
    bare = textwrap.dedent("\n".join(head + body)).strip("\n")
    whole = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    summary = summary if summary.endswith((".", "?", "!")) else summary + "."
    match rng.random():
        case share if share < 0.6:
            signature = re.sub(r"\s+", " ", textwrap.dedent("\n".join(head)).strip()).removesuffix(":")
            ask = rng.choice(CODE_ASKS).format(name=node.name, summary=summary, signature=signature)
            return ask, f"```python\n{bare if rng.random() < 0.7 else whole}\n```"
        case share if share < 0.85:
            return f"{rng.choice(SUMMARY_ASKS)}\n```python\n{bare}\n```", summary
        case _:
            quoted = '"""' + docstring + '"""'
            return f"{rng.choice(DOCSTRING_ASKS)}\n```python\n{bare}\n```", f"```python\n{quoted}\n```"
