"""From pages of a file to the device: through pinned buffers, so that reading and sending overlap."""

from __future__ import annotations

import torch
from torch import Tensor

BUFFER_BYTES = 64 << 20
BUFFERS = 4


class PinnedCopier:
    """Copies tensors of the CPU, of any float dtype, into tensors of a device; of the CPU too, plainly."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._next = 0
        self._buffers: list[Tensor] = []
        self._free: list[torch.cuda.Event] = []
        if device.type == "cuda":
            self._buffers = [
                torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(BUFFERS)
            ]
            self._free = [torch.cuda.Event() for _ in range(BUFFERS)]  # type: ignore[no-untyped-call]

    def copy(self, target: Tensor, source: Tensor) -> None:
        """target, contiguous, = source, of the same shape. Returns before the last of it has arrived."""
        if not self._buffers:
            target.copy_(source)
            return
        flat, read = target.view(-1), source.contiguous().view(-1)
        step = BUFFER_BYTES // read.dtype.itemsize
        for first in range(0, read.numel(), step):
            part = read[first : first + step]
            self._send(flat[first : first + part.numel()], part)

    def finish(self) -> None:
        """Wait until everything has arrived."""
        if self._buffers:
            torch.cuda.synchronize(self._device)

    def _send(self, target: Tensor, source: Tensor) -> None:
        turn, self._next = self._next, (self._next + 1) % BUFFERS
        self._free[turn].synchronize()
        buffer = self._buffers[turn][: source.nbytes].view(source.dtype)
        buffer.copy_(source)
        # Sent as it is; where dtypes differ the device converts.
        sent = buffer if buffer.dtype == target.dtype else buffer.to(self._device, non_blocking=True)
        target.copy_(sent, non_blocking=True)
        self._free[turn].record(torch.cuda.current_stream(self._device))
