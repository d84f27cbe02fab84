"""Which device serves, and what is said where none of the kind asked for can."""

from __future__ import annotations

import pytest
import torch

from tokenspeed.errors import ModelError
from tokenspeed.model.cuda.device import find_device, versions

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_the_cpu_can_be_asked_for() -> None:
    found = find_device("cpu")
    assert found.device == torch.device("cpu")
    assert "as [device] name says" in found.told


@without_gpu
def test_auto_says_what_keeps_a_gpu_from_serving() -> None:
    found = find_device("auto")
    assert found.device == torch.device("cpu")
    assert found.told.startswith("device: the CPU; no GPU: ")
    assert found.told.endswith(("install one that does", "driver is recent enough"))


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_cannot_be_had_is_an_error_that_says_why(name: str) -> None:
    with pytest.raises(ModelError, match=rf"\[device\] name = '{name}' cannot be had: "):
        find_device(name)


def test_versions_name_what_is_there() -> None:
    found = versions()
    assert found["torch"].startswith(torch.__version__.partition("+")[0])
    assert set(found) == {"torch", "cupy-cuda13x", "numba", "numba-cuda", "numpy"}
