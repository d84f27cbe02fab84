"""linear for 1..16 rows, in CUDA C++: as fast as the matrix can be read. See the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.launch import Kernels
from gpu.linear.source import PLANS, SOURCE, Plan, planned

ROWS = 16  # the most
ALIGNED = 16  # bytes that are read at once


class Product:
    """Rows through a matrix by one plan; checks nothing."""

    def __init__(self, plan: Plan, dtype: torch.dtype, *, early: bool = False) -> None:
        """Compiles for the current device."""
        self.plan = plan
        shared = dict.fromkeys(SOURCE.functions, plan.shared_bytes)
        self._kernels = Kernels(SOURCE, plan.constants(dtype == torch.float16), shared_bytes=shared)
        early = early and torch.cuda.get_device_capability() >= (9, 0)
        self._launch = self._kernels.launch_early if early else self._kernels.launch
        self._multiprocessors = torch.cuda.get_device_properties().multi_processor_count

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        outputs, inputs = weight.shape
        rows, grid = x.shape[0], self.plan.grid(outputs, self._multiprocessors)
        name = "linear_8" if rows <= 8 else "linear_16"
        arguments = (x, weight, bias, out, rows, inputs, outputs)
        threads = 32 * self.plan.warps
        self._launch(name, (grid,), (threads,), *arguments, shared_bytes=self.plan.shared_bytes)


class FewRowsLinear:
    """The op, for one dtype. All that it may run is compiled when it is made."""

    def __init__(self, dtype: torch.dtype, *, early: bool = False) -> None:
        """For bfloat16 or float16.

        From sm_90 on, an `early` one starts to read the matrix while the kernel ahead of it in the stream
        still runs, which hides about a microsecond. That kernel must not write the matrix.
        """
        if dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"linear in CUDA multiplies bfloat16 and float16, not {dtype}: use the reference"
            )
        self.dtype = dtype
        self._multiprocessors = torch.cuda.get_device_properties().multi_processor_count
        self._products = {plan: Product(plan, dtype, early=early) for plan in PLANS}

    def supports(self, x: Tensor, weight: Tensor) -> bool:
        """Whether these can be multiplied here."""
        return _refused(x, weight, self.dtype) is None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """See the package."""
        if refused := _refused(x, weight, self.dtype):
            raise ValueError(refused)
        outputs = weight.shape[0]
        if out.shape != (x.shape[0], outputs) or out.dtype != self.dtype or not out.is_contiguous():
            raise ValueError(f"linear writes a contiguous [{x.shape[0]}, {outputs}] of {self.dtype}")
        if bias is not None and (
            bias.shape != (outputs,) or bias.dtype != self.dtype or not bias.is_contiguous()
        ):
            raise ValueError(f"linear adds a contiguous bias of {outputs} in {self.dtype}")
        self._products[planned(x.shape[0], outputs, self._multiprocessors)](x, weight, bias, out)


def _refused(x: Tensor, weight: Tensor, dtype: torch.dtype) -> str | None:
    if not 1 <= x.shape[0] <= ROWS:
        return f"linear in CUDA takes 1..{ROWS} rows, not {x.shape[0]}: use the reference for more"
    if x.dtype != dtype or weight.dtype != dtype:
        return f"linear was compiled for {dtype}, not {x.dtype} by {weight.dtype}: make one for that"
    if x.shape[1] != weight.shape[1]:
        return f"linear got rows of {x.shape[1]} for a matrix of {weight.shape[1]} inputs: they must be equal"
    if weight.shape[1] % 8:
        return (
            f"linear in CUDA reads 8 inputs at once, and {weight.shape[1]} is no multiple: use the reference"
        )
    if not (x.is_contiguous() and weight.is_contiguous()):
        return "linear in CUDA reads contiguous tensors: copy them first"
    if x.data_ptr() % ALIGNED or weight.data_ptr() % ALIGNED:
        return f"linear in CUDA reads tensors that begin at a multiple of {ALIGNED} bytes: copy them first"
    return None
