"""Numba's decorators with types: the one place that knows numba is untyped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import extending
from numba.core import cgutils as numba_cgutils
from numba.core import types as numba_types
from numba.core.typing import templates as numba_templates

cgutils: Any = numba_cgutils
types: Any = numba_types
signature: Any = numba_templates.signature
templates: Any = numba_templates
models: Any = extending.models
overload: Any = extending.overload
register_model: Any = extending.register_model
lower_builtin: Any = extending.lower_builtin

Function = TypeVar("Function", bound=Callable[..., Any])


def njit(function: Function) -> Function:
    """Compile on first use and release the interpreter lock while running.

    Floating-point arithmetic stays strict (no fast-math): what a function computes does not depend on
    where it was inlined, so a token's bits do not depend on its neighbours in a batch.
    """
    compiled: Any = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(Function, compiled)


def inlined(function: Function) -> Function:
    """As `njit`, but copied into its caller before compilation.

    Numba optimises a function again with each caller up the chain: the outer levels are cheaper as one.
    """
    compiled: Any = numba.njit(nogil=True, error_model="numpy", inline="always")(function)
    return cast(Function, compiled)


def cached(function: Function) -> Function:
    """As `njit`, and keep the machine code on disk for the next process where some folder is writable."""
    try:
        compiled: Any = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # numba found no folder to keep it in
        compiled = njit(function)
    return cast(Function, compiled)


def source_digest() -> str:
    """A fingerprint of all kernels' sources."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that emits LLVM; arguments that are literals in the caller arrive as literal types."""
    emitted: Callable[..., Any] = extending.intrinsic(prefer_literal=True)(function)
    return emitted
