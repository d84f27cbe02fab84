"""Compiled sources as files in the user's cache, so that only the first start on a machine compiles.

Importing this needs no GPU and no compiler.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Protocol

from gpu.source import Constants, Source, compiler_options

Capability = tuple[int, int]


class UnsupportedDeviceError(RuntimeError):
    """A source has no machine code for this device."""


class Compiler(Protocol):
    """Turns CUDA C++ into machine code."""

    @property
    def version(self) -> str:
        """Machine code may differ where this does."""
        ...

    def compile(self, text: str, name: str, options: tuple[str, ...]) -> bytes:
        """A cubin of the text; an error names it `name`."""
        ...


def architecture(source: Source, capability: Capability) -> str:
    """What to compile for on a device: its very capability, "a" where the source asks for all of that one.

    Raises `UnsupportedDeviceError` where the source is for later devices, or for others.
    """
    own = f"sm_{capability[0]}{capability[1]}"
    if f"{own}a" in source.architectures:
        return f"{own}a"
    portable = [int(name[3:]) for name in source.architectures if not name.endswith("a")]
    if not portable or int(own[3:]) < min(portable):
        needed = " or ".join(source.architectures)
        raise UnsupportedDeviceError(
            f"gpu/{source.path.parent.name} is for {needed}, and this device is {own}: choose another kernel"
        )
    return own


def cubin(source: Source, constants: Constants, capability: Capability, compiler: Compiler) -> Path:
    """The file of the compiled source; compiled if it is not there yet. Threads and processes may race."""
    text = source.text()
    options = (*compiler_options(constants), f"-arch={architecture(source, capability)}")
    key = hashlib.sha256("\0".join((compiler.version, *options, text)).encode()).hexdigest()
    path = _folder() / f"{source.path.parent.name}-{key[:32]}.cubin"
    if not path.exists():
        _write(path, compiler.compile(text, str(source.path), options))
    return path


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tokenspeed" / "cubins"


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing: others may look for the file at the same time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    except OSError as error:
        raise RuntimeError(
            f"cannot keep compiled kernels in {path.parent}: {error.strerror};"
            " set XDG_CACHE_HOME to a folder that can be written"
        ) from error
