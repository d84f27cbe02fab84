"""An operation on a device beside its reference on the CPU: whatever either writes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

TOLERANCE = {
    torch.float32: 1e-5,
    torch.bfloat16: 8e-3,
    torch.float16: 1.5e-3,
}  # of the norm; both are rounded


def agree(
    op: Callable[..., object],
    reference: Callable[..., object],
    *arguments: Any,
    device: str = "cuda",
) -> None:
    """Call both with the same arguments, of the CPU: all their tensors must then be near to each other.

    Compared is all that storages hold: gaps between rows, and what is only read, must stay as they are. The
    reference runs on the CPU: a tool that watches the device sees the kernels of the operation alone.
    """
    theirs, ours = Copies(device), Copies("cpu")
    given = [theirs.of(argument) for argument in arguments]
    if device == "cuda":
        torch.cuda.synchronize()  # a kernel may read its weights before what is ahead has ended
    op(*given)
    reference(*(ours.of(argument) for argument in arguments))
    for key, expected in ours.storages.items():
        found = theirs.storages[key].cpu()
        if found.is_floating_point():
            assert_near(found, expected, TOLERANCE[found.dtype])
        else:
            assert torch.equal(found, expected)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """As a whole, and no element off by more than ten times that of the largest; NaN and inf are equal."""
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite)
    assert torch.equal(found[~finite].nan_to_num(0.0), expected[~finite].nan_to_num(0.0))
    wide = expected[finite].double()
    if not len(wide):
        return
    error = found[finite].double() - wide
    assert error.norm() <= tolerance * wide.norm(), (
        f"off by {error.norm() / wide.norm():.2e}, not {tolerance}"
    )
    assert error.abs().max() <= 10 * tolerance * wide.abs().max()


class Copies:
    """Of tensors on a device, laid out as they are: views of one storage are views of one copy."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.storages: dict[int, Tensor] = {}

    def of(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return self._tensor(argument)
        if is_dataclass(argument) and not isinstance(argument, type):
            return replace(argument, **{f.name: self.of(getattr(argument, f.name)) for f in fields(argument)})
        return argument

    def _tensor(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self.storages:
            whole = tensor.as_strided((storage.nbytes() // tensor.itemsize,), (1,), 0)
            self.storages[key] = whole.to(self.device, copy=True)
        return self.storages[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def apart(tensor: Tensor, gap: int) -> Tensor:
    """The same rows, with `gap` elements of NaN between one and the next."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + gap), torch.nan, dtype=tensor.dtype)
    wide[..., :-gap] = tensor
    return wide[..., :-gap]


def drawn(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape)).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def integers(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
