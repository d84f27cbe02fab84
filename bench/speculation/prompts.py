"""What the model is asked to go on with: this project's own code, which it has never read, and noise."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import tokenspeed

SEED = 1
FILE_LINES, AGAIN_LINES = 60, 30  # of a file, and of its beginning behind it
BODY_LINES = 4  # that a function has at least, so that there is something to write
RANDOM_TOKENS = range(64, 129)  # of a hostile prompt
RANDOM_IDS = range(256, 8192)  # every vocabulary has them, and none of them is special
TOP = re.compile(r"(class|def|async def|@)\b")


def sources() -> list[str]:
    """The text of every module of the server, in an order that depends on the seed alone."""
    root = Path(tokenspeed.__file__).parent
    paths = [path for path in sorted(root.rglob("*.py")) if "builtin" not in path.parts]
    random.Random(SEED).shuffle(paths)
    return [path.read_text(encoding="utf-8") for path in paths]


def edits(texts: Sequence[str], count: int) -> list[str]:
    """Code behind the imports of a file, then its first half again, as somebody has it who writes a changed
    copy: up to `count`, each of another file."""
    found = []
    for text in texts:
        lines = text.splitlines(keepends=True)
        start = next((n for n, line in enumerate(lines) if TOP.match(line)), len(lines))
        file = lines[start : start + FILE_LINES]
        if len(file) == FILE_LINES:
            found.append("".join([*file, "\n\n", *file[:AGAIN_LINES]]))
    return found[:count]


def beginnings(texts: Sequence[str], count: int) -> list[str]:
    """The first lines of functions, down to the end of the docstring: up to `count`, each of another file."""
    found = []
    for text in texts:
        first = next(_begun(text), None)
        if first is not None and first not in found:
            found.append(first)
    return found[:count]


def noise(count: int) -> list[tuple[int, ...]]:
    """Token ids drawn at random, which nothing foretells."""
    chance = random.Random(SEED)
    return [tuple(chance.choices(RANDOM_IDS, k=chance.choice(RANDOM_TOKENS))) for _ in range(count)]


def repeated(prompt: str, answer: str) -> float:
    """The part of an answer's lines that stand in the prompt, in the same order."""
    lines = answer.splitlines()
    matcher = SequenceMatcher(None, lines, prompt.splitlines(), autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / max(len(lines), 1)


def _begun(text: str) -> Iterator[str]:
    """The functions of a module that have a docstring and enough behind it, without what they do."""
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and node.end_lineno:
            documented = node.body[0].end_lineno or node.lineno
            if node.end_lineno - documented >= BODY_LINES:
                yield "".join(lines[node.lineno - 1 : documented])
