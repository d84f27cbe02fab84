"""linear for up to 128 rows, in CUDA C++; see the package for the contract, kernel.cu for how it works."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from gpu.batch_linear.source import BOX_INPUTS, FORMS, ROWS, SOURCE, Layout, Plan, planned
from gpu.launch import Kernels
from gpu.linear.checks import require
from gpu.linear.source import Form, Into
from gpu.tensor_maps import tensor_map

STATIC_BYTES = 512  # of a block's shared memory, at most, besides the ring and the sums
PROMOTED = 128  # bytes that the L2 fetches at once: two boxes side by side are asked for anyway
MORE = 4  # stages that are brought to the L2 while a kernel waits
MORE_TURNS = 2  # of its blocks, at most: blocks that end long before others would take memory from these
DTYPES = (torch.bfloat16, torch.float16)


class Product:
    """Rows through a matrix by one plan, in one form; checks nothing."""

    def __init__(self, plan: Plan, dtype: torch.dtype, form: Form) -> None:
        """Compiles for the current device."""
        self.plan, self.form = plan, form
        properties = torch.cuda.get_device_properties()
        self._room = int(properties.shared_memory_per_block_optin) - STATIC_BYTES  # type: ignore[attr-defined]
        self._multiprocessors = properties.multi_processor_count
        shared = dict.fromkeys(SOURCE.functions, self._room)
        constants = plan.constants(form, dtype == torch.float16)
        self.kernels = Kernels(SOURCE, constants, shared_bytes=shared, shared_percent=100)
        self._layouts: dict[int, tuple[Layout, int]] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        rows, inputs = x.shape
        outputs, plan = out.shape[1], self.plan
        layout, stages = self._layouts.get(rows) or self._laid_out(rows)
        tiles = plan.tiles(self.form, outputs)
        # A cluster has one tile; a block alone walks over tiles.
        blocks = min(tiles, self._multiprocessors) if plan.split == 1 else tiles * plan.split
        more = MORE if tiles <= MORE_TURNS * blocks else 0
        self.kernels.launch_early(
            layout.function,
            (blocks,),
            (layout.threads,),
            tensor_map(x, layout.box_rows, BOX_INPUTS, promoted=PROMOTED),
            tensor_map(weight, plan.own(self.form), BOX_INPUTS, promoted=PROMOTED),
            bias,
            out,
            rows,
            inputs,
            outputs,
            stages,
            more,
            shared_bytes=layout.shared_bytes(stages),
        )

    def _laid_out(self, rows: int) -> tuple[Layout, int]:
        layout = Layout(self.plan, rows)
        self._layouts[rows] = layout, layout.stages(self._room)
        return self._layouts[rows]


class BatchLinear:
    """Products of one form and dtype, compiled when the shape of a matrix is prepared or first seen."""

    def __init__(self, dtype: torch.dtype, form: Form | None = None) -> None:
        """`ValueError` for a dtype or a form that there is no kernel for."""
        self.dtype, self.form = dtype, form or Form()
        if dtype not in DTYPES:
            raise ValueError(f"batch_linear multiplies bfloat16 and float16, not {dtype}: use the reference")
        if self.form not in FORMS:
            raise ValueError(f"batch_linear has no {self.form}: use linear, or rms_norm before it")
        self._device = torch.cuda.current_device()
        self._multiprocessors = torch.cuda.get_device_properties().multi_processor_count
        self._products: dict[Plan, Product] = {}
        self._chosen: dict[tuple[int, int], Product] = {}

    @staticmethod
    def supports(rows: int, inputs: int) -> bool:
        """Whether so many rows of so many inputs can be multiplied here."""
        return _refused_size(rows, inputs) is None

    def prepare(self, inputs: int, outputs: int) -> Product:
        """Compile what multiplies a matrix of this shape. Threads may race: one of them is in vain."""
        plan = planned(self.form, inputs, outputs, self._multiprocessors)
        product = self._products.get(plan)
        if product is None:
            with torch.cuda.device(self._device):
                product = self._products.setdefault(plan, Product(plan, self.dtype, self.form))
        self._chosen[inputs, outputs] = product
        return product

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """See the package."""
        self._check(x, weight, bias, out)
        self.enqueue(x, weight, bias, out)

    def enqueue(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """The call, unchecked."""
        shape = x.shape[1], out.shape[1]
        product = self._chosen.get(shape) or self.prepare(*shape)
        product(x, weight, bias, out)

    def _check(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        rows, (sums, inputs) = x.shape[0], weight.shape
        if refused := _refused_size(rows, inputs):
            raise ValueError(refused)
        outputs = sums // 2 if self.form.into is Into.GATED else sums
        wide = torch.float32 if self.form.wide_out else self.dtype
        require("batch_linear", "x", x, (rows, inputs), self.dtype)
        require("batch_linear", "weight", weight, (sums, inputs), self.dtype)
        require("batch_linear", "out", out, (rows, outputs), wide)
        if bias is not None:
            require("batch_linear", "bias", bias, (sums,), self.dtype)


class BatchMatrices:
    """Up to 128 rows through all matrices of a decoder; nothing is checked."""

    def __init__(self, dtype: torch.dtype, *, wide: bool = False) -> None:
        """`wide`: the rows that are added to are float32."""
        self._plain, self._wide = BatchLinear(dtype), BatchLinear(dtype, Form(wide_out=True))
        self._gated = BatchLinear(dtype, Form(into=Into.GATED))
        self._adding = BatchLinear(dtype, Form(into=Into.ADDED, wide_out=wide))

    def prepare(self, *, hidden: int, queries: int, qkv: int, inner: int, vocab: int) -> None:
        """Compile, several at once, what multiplies matrices with so many outputs of each.

        `ValueError` where one of them cannot be multiplied here.
        """
        wanted = (
            (self._plain, hidden, qkv),
            (self._adding, queries, hidden),
            (self._gated, hidden, inner),
            (self._adding, inner, hidden),
            (self._wide, hidden, vocab),
        )
        for _, inputs, _ in wanted:
            if refused := _refused_size(ROWS, inputs):
                raise ValueError(refused)
        with ThreadPoolExecutor(len(wanted)) as pool:
            for done in [pool.submit(op.prepare, *shape) for op, *shape in wanted]:
                done.result()

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out = x @ weight.T + bias; out may be float32."""
        (self._plain if out.dtype == x.dtype else self._wide).enqueue(x, weight, bias, out)

    def gate(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out = silu(gate) * up, of x @ weight.T + bias = [gate, up]."""
        self._gated.enqueue(x, weight, bias, out)

    def add(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out += x @ weight.T + bias."""
        self._adding.enqueue(x, weight, bias, out)


def _refused_size(rows: int, inputs: int) -> str | None:
    if not 1 <= rows <= ROWS:
        return f"batch_linear takes 1..{ROWS} rows, not {rows}: use the reference for more"
    if inputs % 8:
        return f"batch_linear reads 8 inputs at once, and {inputs} is no multiple: use the reference"
    return None
