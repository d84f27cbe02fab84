"""gated_linear in CUDA C++; see the package for the contract, and kernel.cu for how it works."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.gated_linear.source import BLOCK_ROWS, CLUSTER, DEPTH, PLANS, SOURCE, THREADS, Plan, pays, planned
from gpu.launch import Kernels
from gpu.linear.checks import require
from gpu.tensor_maps import tensor_map

EIGHT = 8  # inputs and outputs come in eights
DTYPES = (torch.bfloat16, torch.float16)


class Product:
    """Rows through a matrix by one plan; checks nothing."""

    def __init__(self, plan: Plan, dtype: torch.dtype) -> None:
        """Compiles for the current device."""
        self.plan = plan
        constants = plan.constants(dtype == torch.float16)
        self.kernels = Kernels(SOURCE, constants, shared_bytes={"gated_linear": plan.shared_bytes})
        self._blocks = torch.cuda.get_device_properties().multi_processor_count // CLUSTER * CLUSTER

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        plan = self.plan
        (rows, inputs), outputs = x.shape, out.shape[1]
        self.kernels.launch_early(
            "gated_linear",
            (min(self._blocks, CLUSTER * plan.tiles(rows, outputs)),),
            (THREADS,),
            tensor_map(x, BLOCK_ROWS, DEPTH),
            tensor_map(weight, plan.outputs, DEPTH),
            bias,
            out,
            rows,
            inputs,
            outputs,
            shared_bytes=plan.shared_bytes,
        )


class GatedLinear:
    """The op for one dtype. All that it may run is compiled when it is made."""

    def __init__(self, dtype: torch.dtype) -> None:
        """`ValueError` for a dtype that there is no kernel for."""
        if dtype not in DTYPES:
            raise ValueError(f"gated_linear in CUDA multiplies bfloat16 and float16, not {dtype}")
        self.dtype = dtype
        self._multiprocessors = torch.cuda.get_device_properties().multi_processor_count
        self._products = {plan: Product(plan, dtype) for plan in PLANS}

    def pays(self, rows: int, inputs: int, outputs: int) -> bool:
        """Whether it serves these, and is faster than a product by torch and `silu_mul`."""
        return _served(inputs, outputs) and pays(rows, outputs, self._multiprocessors)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """See the package."""
        self._check(x, weight, bias, out)
        self.enqueue(x, weight, bias, out)

    def enqueue(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """The call, unchecked."""
        rows, outputs = out.shape
        if rows:
            self._products[planned(rows, outputs, self._multiprocessors)](x, weight, bias, out)

    def _check(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        sums, inputs = weight.shape
        if sums % 2 or not _served(inputs, sums // 2):
            raise ValueError(
                f"gated_linear in CUDA takes multiples of {EIGHT} inputs and of gates,"
                f" not {inputs} and {sums / 2:g}"
            )
        given = {"x": x, "weight": weight, "out": out} | ({} if bias is None else {"bias": bias})
        shapes = {
            "x": (x.shape[0], inputs),
            "weight": (sums, inputs),
            "out": (x.shape[0], sums // 2),
            "bias": (sums,),
        }
        for name, tensor in given.items():
            require("gated_linear", name, tensor, shapes[name], self.dtype)


def _served(inputs: int, outputs: int) -> bool:
    return inputs % EIGHT == 0 and outputs % EIGHT == 0
