"""Which device serves: a GPU that can, or what keeps it from that."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import NamedTuple

import torch

from tokenspeed.errors import ModelError

LEAST_CAPABILITY = (8, 0)  # bfloat16 on the tensor cores, and copies to shared memory that do not wait
INSTALL = "pip install 'tokenspeed[gpu]'"


class Found(NamedTuple):
    """The device to serve on, and a line that says why it is that one."""

    device: torch.device
    told: str


def find_device(name: str) -> Found:
    """The device that `[device] name` asks for; auto is the first GPU if it can serve, else the CPU.

    Raises `ModelError` where a GPU is asked for and cannot be had.
    """
    if name == "cpu":
        return Found(torch.device("cpu"), "device: the CPU, as [device] name says")
    number = int(name.partition(":")[2] or 0)
    obstacle = obstacle_of(number)
    if not obstacle:
        device = torch.device("cuda", number)
        return Found(device, f"device: {device}, {torch.cuda.get_device_name(device)}")
    if name == "auto":
        return Found(torch.device("cpu"), f"device: the CPU; no GPU: {obstacle}")
    raise ModelError(f"[device] name = {name!r} cannot be had: {obstacle}")


def obstacle_of(number: int) -> str:
    """What keeps GPU `number` from serving, with the mend; empty where nothing does."""
    if torch.version.cuda is None:
        return "this build of PyTorch knows no CUDA; install one that does"
    if not torch.cuda.is_available():
        return (
            "CUDA finds no usable GPU; check that nvidia-smi lists one and that its driver is recent enough"
        )
    if number >= torch.cuda.device_count():
        return f"there are {torch.cuda.device_count()} GPUs, numbered from 0"
    capability = torch.cuda.get_device_capability(number)
    if capability < LEAST_CAPABILITY:
        had, least = (".".join(map(str, c)) for c in (capability, LEAST_CAPABILITY))
        return f"its compute capability is {had}, and the kernels need {least}; use [device] name = 'cpu'"
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is missing, which launches the kernels; {INSTALL}"
    return ""


def versions() -> dict[str, str]:
    """What is installed of all that computing on a GPU needs; a dash where it is not."""
    found = {}
    for package in ("torch", "cupy-cuda13x", "numba", "numba-cuda", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "-"
    return found
