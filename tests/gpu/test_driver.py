"""Calls into the CUDA driver, to a library that only notes them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

from gpu.driver import INVALID_CONTEXT, Driver

STREAM, CONTEXT = 0x77, 0x55


class Function:
    """Notes its arguments and gives what it is told to."""

    def __init__(self, statuses: list[int]) -> None:
        self.statuses, self.calls = statuses, list[tuple[object, ...]]()

    def __call__(self, *arguments: object) -> int:
        self.calls.append(arguments)
        return self.statuses.pop(0) if self.statuses else 0


class Library:
    """What of the driver is called."""

    def __init__(self, statuses: list[int]) -> None:
        self.cuMemcpyAsync, self.cuGraphLaunch = Function(statuses), Function(statuses)
        self.cuCtxSetCurrent = Function([])

    def cuCtxGetCurrent(self, context: ctypes.c_void_p) -> int:  # noqa: N802 (the driver's name)
        ctypes.cast(context, ctypes.POINTER(ctypes.c_void_p))[0] = CONTEXT
        return 0


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], tuple[Driver, Library]]:
    """A driver whose calls give these statuses."""

    def make(statuses: list[int]) -> tuple[Driver, Library]:
        library = Library(statuses)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", {3: STREAM}.get, raising=False)
        return Driver(torch.device("cuda", 3)), library

    return make


Made = Callable[[list[int]], tuple[Driver, Library]]


def test_copies_and_graphs_are_enqueued_on_the_current_stream(made: Made) -> None:
    driver, library = made([])
    driver.copy(0x1000, 0x2000, 12)
    driver.launch_graph(0x99)
    assert library.cuMemcpyAsync.calls == [(0x1000, 0x2000, 12, STREAM)]
    assert library.cuGraphLaunch.calls == [(0x99, STREAM)]
    assert not library.cuCtxSetCurrent.calls


def test_a_thread_that_has_not_used_the_device_enters_its_context(made: Made) -> None:
    driver, library = made([INVALID_CONTEXT])
    driver.launch_graph(0x99)
    assert [context.value for (context,) in library.cuCtxSetCurrent.calls] == [CONTEXT]  # type: ignore[attr-defined]
    assert library.cuGraphLaunch.calls == [(0x99, STREAM)] * 2


def test_what_the_driver_refuses_is_an_error(made: Made) -> None:
    driver, _ = made([700, 1])
    with pytest.raises(RuntimeError, match="refused to copy: error 700"):
        driver.copy(0x1000, 0x2000, 12)
    with pytest.raises(RuntimeError, match="refused to launch a graph: error 1"):
        driver.launch_graph(0x99)
