"""Holds the architecture: a module imports only lower ranks, at its top, and keeps no state of its own."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RANKS = {  # the longest matching prefix counts
    "tokenspeed": 0,  # the version
    "tokenspeed.errors": 0,
    "tokenspeed.options": 0,
    "tokenspeed.builtin": 0,
    "tokenspeed.core": 1,
    "gpu": 1,
    "tokenspeed.text": 2,
    "tokenspeed.model": 2,
    "tokenspeed.engine": 3,
    "tokenspeed.backend": 3,
    "tokenspeed.generation": 4,
    "tokenspeed.sim": 4,
    "tokenspeed.api": 5,
    "tokenspeed.config": 6,
    "tokenspeed.build": 7,
    "tokenspeed.environment": 8,
    "tokenspeed.serving": 8,
    "tokenspeed.console": 8,
    "tokenspeed.cli": 9,
    "tokenspeed.__main__": 10,
}
# What a package may import from outside the project, or (with "not") what it must not.
ALLOWED = {
    "tokenspeed.core": {"numpy"},
    "tokenspeed.errors": set(),
    "tokenspeed.options": set(),
    "gpu": {"torch", "numpy", "numba", "cupy"},
}
# Which modules of `gpu` alone may import what is there only with a GPU.
GPU_LIBRARIES = {
    "cupy": ("launch", "cupy_kernel"),
    "numba": ("numba_launch", "numba_device", "numba_parts", "numba_read", "numba_join", "numba_kernel"),
}
FORBIDDEN = {
    "tokenspeed.core": {"asyncio", "time", "logging", "pathlib", "os", "random"},
    "gpu": {"asyncio", "tokenspeed"},
    "tokenspeed.text": {"asyncio", "torch", "transformers"},
    "tokenspeed.model": {"asyncio", "starlette"},
    "tokenspeed.engine": {"torch", "starlette", "tokenspeed.text", "tokenspeed.model", "tokenspeed.backend"},
    "tokenspeed.backend": {"starlette", "tokenspeed.engine"},
    "tokenspeed.generation": {"torch", "starlette"},
    "tokenspeed.sim": {"torch", "starlette"},
    "tokenspeed.api": {"torch", "tokenspeed.core.scheduler", "tokenspeed.backend", "tokenspeed.model"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in ("tokenspeed", "gpu"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def match(name: str, table: dict[str, object] | dict[str, int] | dict[str, set[str]]) -> str | None:
    prefixes = [key for key in table if name == key or name.startswith((f"{key}.", f"{key}_"))]
    return max(prefixes, key=len, default=None)


def served(name: str) -> bool:
    """The scripts that train the built-in model are no part of the server."""
    return not name.startswith("tokenspeed.builtin.train")


MODULES = {name: tree for name, tree in modules() if served(name)}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_lower_ranks(name: str) -> None:
    own = match(name, RANKS)
    assert own is not None, f"{name} has no rank"
    for imported in imports(MODULES[name]):
        if not imported.startswith(("tokenspeed", "gpu.")) and imported != "gpu":
            continue
        theirs = match(imported, RANKS)
        assert theirs is not None
        assert RANKS[theirs] < RANKS[own] or theirs == own, f"{name} imports {imported}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_keeps_out_of_what_its_layer_must_not_know(name: str) -> None:
    imported = set(imports(MODULES[name]))
    forbidden = FORBIDDEN.get(match(name, FORBIDDEN) or "", set())
    assert not {i for i in imported for f in forbidden if i == f or i.startswith(f"{f}.")}
    layer = match(name, ALLOWED)
    if layer is not None:
        tops = {i.partition(".")[0] for i in imported}
        assert tops - set(sys.stdlib_module_names) - {layer.partition(".")[0]} <= ALLOWED[layer]


@pytest.mark.parametrize("name", MODULES)
def test_imports_stand_at_the_top_and_hide_nothing(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert not list(imports(node)), f"{name}.{node.name} imports inside"
        assert not (isinstance(node, ast.Name) and node.id == "TYPE_CHECKING"), f"{name} hides a cycle"
        assert not isinstance(node, ast.Global), f"{name} keeps state in a module global"


HOUSE = [name for name in MODULES if name == "gpu" or name.startswith("gpu.")]


def reaches_a_gpu_library(name: str) -> bool:
    return name.rpartition(".")[2] in {module for own in GPU_LIBRARIES.values() for module in own}


@pytest.mark.parametrize("name", HOUSE)
def test_gpu_libraries_are_imported_where_they_are_used_alone(name: str) -> None:
    imported = set(imports(MODULES[name]))
    for library, modules in GPU_LIBRARIES.items():
        if library in {i.partition(".")[0] for i in imported}:
            assert name.rpartition(".")[2] in modules, f"{name} imports {library}"
    if not reaches_a_gpu_library(name):
        assert not {i for i in imported & set(HOUSE) if reaches_a_gpu_library(i)}, (
            f"{name} reaches a GPU library"
        )
