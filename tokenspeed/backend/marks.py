"""Moments on a device's own clock: when it reached a point of the work that was enqueued."""

from __future__ import annotations

import time
from typing import Protocol

import torch


class Mark(Protocol):
    """A point that the device reaches; it may be set again once it was reached."""

    def set(self) -> None:
        """Enqueue the point, behind what was enqueued before."""
        ...

    def wait(self) -> None:
        """Block until the device has reached it. Raises what went wrong on the device before."""
        ...

    def since(self, earlier: Mark) -> float:
        """Seconds from another mark to this one; both were reached."""
        ...


class CudaMark:
    """On the stream that was torch's current one when the mark was made: asking each time takes longer than
    the rest."""

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._stream = torch.cuda.current_stream(device)

    def set(self) -> None:
        self.event.record(self._stream)

    def wait(self) -> None:
        self.event.synchronize()  # lets other threads run

    def since(self, earlier: Mark) -> float:
        assert isinstance(earlier, CudaMark)
        return float(earlier.event.elapsed_time(self.event)) * 1e-3


class HostMark:
    """Where work is done when it is enqueued."""

    def __init__(self) -> None:
        self.at = 0.0

    def set(self) -> None:
        self.at = time.perf_counter()

    def wait(self) -> None:
        """It was reached when it was set."""

    def since(self, earlier: Mark) -> float:
        assert isinstance(earlier, HostMark)
        return self.at - earlier.at


def mark_on(device: torch.device) -> Mark:
    return CudaMark(device) if device.type == "cuda" else HostMark()
