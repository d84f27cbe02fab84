"""The resolver for GPUs, as far as it runs without one: what can be pinned, and what is told."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields

import pytest
import torch

from gpu.table import Ops
from tokenspeed.errors import ModelError
from tokenspeed.model.cuda import kernels
from tokenspeed.model.cuda.kernels import MAKERS, Context, pins_of
from tokenspeed.model.options import KernelOptions

GPU = torch.device("cuda", 0)


def test_every_operation_can_be_pinned_to_each_of_its_implementations() -> None:
    options = {field.name: field.metadata["choices"] for field in fields(KernelOptions)}
    del options["decoder"]  # the CPU's
    assert options == {name: ("auto", *makers) for name, makers in MAKERS.items()}
    assert pins_of(KernelOptions()) == dict.fromkeys(options, "auto")


def test_there_is_a_maker_for_every_operation_of_the_table() -> None:
    assert {field.name for field in fields(Ops)} - {"linear"} == set(MAKERS) - {"products", "batch_products"}


@pytest.fixture
def _no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choosing enters the device; there is none."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())


def broken(context: Context) -> None:
    raise RuntimeError("kernel.cu does not compile\nand more")


@pytest.mark.usefixtures("_no_device")
def test_the_fastest_that_can_be_had_serves_and_what_kept_a_faster_one_is_told() -> None:
    makers = {"cupy": broken, "torch": lambda context: "made"}
    found = kernels._resolve("sample", makers, "auto", None, GPU)  # type: ignore[arg-type]
    assert (found.name, found.operation) == ("torch", "made")
    assert found.obstacles == ("[kernels] sample = 'cupy' cannot be had: kernel.cu does not compile",)


@pytest.mark.usefixtures("_no_device")
@pytest.mark.parametrize("pin", ["cupy", "auto"])
def test_a_pin_that_cannot_be_had_is_an_error(pin: str) -> None:
    with pytest.raises(ModelError, match=r"sample = 'cupy' cannot be had: .* compile; use 'auto'$"):
        kernels._resolve("sample", {"cupy": broken}, pin, None, GPU)  # type: ignore[arg-type]
