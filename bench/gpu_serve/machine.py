"""What a figure was measured on and with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess

PACKAGES = ("torch", "numpy", "cupy-cuda13x", "numba", "uvicorn", "uvloop", "aiohttp", "vllm")
QUERY = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
SMI_SECONDS = 20.0


def machine() -> dict[str, str]:
    """Device, versions, cores."""
    return {
        "device": device(),
        "tokenspeed": _version("tokenspeed"),
        **{package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }


def device() -> str:
    """The GPUs as their driver names them, or that there is none."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return "CPU"
    try:
        done = subprocess.run([smi, *QUERY], capture_output=True, timeout=SMI_SECONDS, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "a GPU that nvidia-smi cannot name"
    return "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "–"
