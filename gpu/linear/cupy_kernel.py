"""linear for 1..16 rows, in CUDA C++: as fast as the matrix can be read. See the package for the contract."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from gpu.launch import Kernels
from gpu.linear.checks import require
from gpu.linear.source import LONE, SOURCE, Form, Into, Plan, planned

ROWS = 16  # the most
STATIC_BYTES = 22 * 1024  # of a block's shared memory, at most, besides the ring and x
SHARED_ALONE = 104 * 1024  # of it, besides what is static: with so much no two blocks share a multiprocessor
REGISTERS = 65536  # of a multiprocessor
DTYPES = (torch.bfloat16, torch.float16)


class Product:
    """Rows through a matrix by one plan, in one form; checks nothing."""

    def __init__(
        self, plan: Plan, dtype: torch.dtype, form: Form | None = None, *, early: bool = True
    ) -> None:
        """Compiles for the current device."""
        self.plan, self.form = plan, form or Form()
        constants = {**plan.constants(dtype == torch.float16), **self.form.constants}
        shared = dict.fromkeys(SOURCE.functions, room())
        self.kernels = Kernels(SOURCE, constants, shared_bytes=shared, shared_percent=100)
        self._launch = self.kernels.launch_early if early else self.kernels.launch
        self._multiprocessors = torch.cuda.get_device_properties().multi_processor_count
        registers = {name: self.kernels.attributes(name)["num_regs"] for name in SOURCE.functions}
        self._alone = {name: max(_warps_alone(count), plan.warps) for name, count in registers.items()}

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor | None, eps: float, out: Tensor
    ) -> None:
        rows, inputs = x.shape
        outputs, plan = out.shape[1], self.plan
        name = "linear_8" if rows <= 8 else "linear_16"
        shared = plan.ring_bytes + self.form.held_bytes(rows, inputs)
        crowded = plan.blocks == 1 and shared < SHARED_ALONE
        self._launch(
            name,
            (plan.grid(self.form.tiles(outputs), self._multiprocessors),),
            (32 * (self._alone[name] if crowded else plan.warps),),
            *(x, weight, bias, norm, out, eps, rows, inputs, outputs),
            shared_bytes=shared,
        )


class FusedLinear:
    """Products of one form and dtype. All that it may run is compiled when it is made."""

    def __init__(self, dtype: torch.dtype, form: Form, *, early: bool = True) -> None:
        """For bfloat16 or float16; `ValueError` for a form that there is no kernel for.

        From sm_90 on, an `early` one starts to read the matrix while the kernels ahead of it in the stream
        still run, which hides about a microsecond. They must not write the matrix or the norm.
        """
        if dtype not in DTYPES:
            raise ValueError(
                f"linear in CUDA multiplies bfloat16 and float16, not {dtype}: use the reference"
            )
        if form.wide_x and not form.normed:
            raise ValueError(
                "linear in CUDA takes float32 rows only where it normalises them: do both or none"
            )
        self.dtype, self.form = dtype, form
        self._multiprocessors = torch.cuda.get_device_properties().multi_processor_count
        self._room = room()
        fitting = {plan if plan.ring_bytes <= self._room else LONE for plan in form.plans}
        self._products = {plan: Product(plan, dtype, form, early=early) for plan in fitting}
        self._chosen: dict[tuple[int, ...], Product] = {}

    def supports(self, rows: int, inputs: int) -> bool:
        """Whether so many rows of so many inputs can be multiplied here."""
        return self._refused_size(rows, inputs) is None

    def most_rows(self, inputs: int) -> int:
        """Of so many inputs, for which there is room."""
        each = self.form.held_bytes(1, inputs)
        return min(ROWS, (self._room - LONE.ring_bytes) // each) if each else ROWS

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        out: Tensor,
        *,
        bias: Tensor | None = None,
        norm: Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        """See the package."""
        self._check(x, weight, out, bias, norm)
        self.enqueue(x, weight, out, bias=bias, norm=norm, eps=eps)

    def enqueue(
        self,
        x: Tensor,
        weight: Tensor,
        out: Tensor,
        *,
        bias: Tensor | None = None,
        norm: Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        """The call, unchecked."""
        key = (*x.shape, out.shape[1])
        product = self._chosen.get(key)
        if product is None:
            product = self._chosen[key] = self._choose(*key)
        product(x, weight, bias, norm, eps, out)

    def _check(
        self, x: Tensor, weight: Tensor, out: Tensor, bias: Tensor | None, norm: Tensor | None
    ) -> None:
        form = self.form
        if refused := self._refused_size(*x.shape):
            raise ValueError(refused)
        gated = form.into is Into.GATED
        outputs = weight.shape[0] // 2 if gated else weight.shape[0]
        sums = 2 * outputs if gated else outputs
        wide, own = torch.float32, self.dtype
        require("linear", "x", x, (x.shape[0], weight.shape[1]), wide if form.wide_x else own)
        require("linear", "weight", weight, (sums, x.shape[1]), own)
        require("linear", "out", out, (x.shape[0], outputs), wide if form.wide_out else own)
        if (norm is not None) != form.normed:
            raise ValueError(
                f"linear was made for normed={form.normed}: pass a norm only to one that normalises"
            )
        if norm is not None:
            require("linear", "norm", norm, (x.shape[1],), own)
        if bias is not None:
            require("linear", "bias", bias, (sums,), own)

    def _choose(self, rows: int, inputs: int, outputs: int) -> Product:
        plan = planned(self.form, rows, inputs, outputs, self._multiprocessors)
        needed = plan.ring_bytes + self.form.held_bytes(rows, inputs)
        return self._products[plan if needed <= self._room else LONE]

    def _refused_size(self, rows: int, inputs: int) -> str | None:
        if not 1 <= rows <= ROWS:
            return f"linear in CUDA takes 1..{ROWS} rows, not {rows}: use the reference for more"
        if inputs % 8:
            return f"linear in CUDA reads 8 inputs at once, and {inputs} is no multiple: use the reference"
        if rows > self.most_rows(inputs):
            return f"linear in CUDA has no room for {rows} rows of {inputs}: use rms_norm and linear"
        return None


class FewRowsLinear:
    """The op, for one dtype: `FusedLinear` in its plain form."""

    def __init__(self, dtype: torch.dtype, *, early: bool = True) -> None:
        self.dtype = dtype
        self._plain = FusedLinear(dtype, Form(), early=early)

    def supports(self, x: Tensor, weight: Tensor) -> bool:
        """Whether these can be multiplied here."""
        try:
            self._plain._check(x, weight, x.new_empty(x.shape[0], weight.shape[0]), None, None)
        except ValueError:
            return False
        return True

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """See the package."""
        self._plain(x, weight, out, bias=bias)

    def enqueue(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """The call, unchecked."""
        self._plain.enqueue(x, weight, out, bias=bias)


class FewRowsProducts:
    """All products of a decoder for up to 16 rows, with what stands next to them; nothing is checked."""

    def __init__(self, dtype: torch.dtype, eps: float, *, wide: bool = False) -> None:
        """`eps` is that of the norms; `wide`: the rows that are normalised and added to are float32.

        Compiles all of its forms at once.
        """
        self._eps = eps
        device = torch.cuda.current_device()

        def made(form: Form) -> FusedLinear:
            with torch.cuda.device(device):
                return FusedLinear(dtype, form)

        forms = (
            Form(normed=True, wide_x=wide),
            Form(normed=True, wide_x=wide, wide_out=True),
            Form(normed=True, wide_x=wide, into=Into.GATED),
            Form(into=Into.ADDED, wide_out=wide),
        )
        with ThreadPoolExecutor(len(forms)) as pool:
            self._normed, self._wide, self._gated, self._adding = pool.map(made, forms)

    def norm_linear(self, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out = rms_norm(x, norm) @ weight.T + bias; out may be float32."""
        self._by_room(self._normed if out.dtype == norm.dtype else self._wide, x, norm, weight, bias, out)

    def norm_gated(self, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out = silu(gate) * up, of rms_norm(x, norm) @ weight.T + bias = [gate, up]."""
        self._by_room(self._gated, x, norm, weight, bias, out)

    def add_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out += x @ weight.T + bias."""
        self._adding.enqueue(x, weight, out, bias=bias)

    def _by_room(
        self, op: FusedLinear, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor
    ) -> None:
        """All rows at once, but for inputs so many that these do not fit in shared memory."""
        rows, most = x.shape[0], op.most_rows(x.shape[1])
        for first in range(0, rows, most):
            some = slice(first, first + most)
            op.enqueue(x[some], weight, out[some], bias=bias, norm=norm, eps=self._eps)


def room() -> int:
    """Bytes of shared memory that a block may ask for on the current device."""
    properties = torch.cuda.get_device_properties()
    return int(properties.shared_memory_per_block_optin) - STATIC_BYTES  # type: ignore[attr-defined]


def _warps_alone(registers: int) -> int:
    """Of a block that takes more than half of a multiprocessor's registers, however few of its warps work.

    While blocks of the kernel ahead are still there, two blocks of a grid would else meet on a multiprocessor
    that is free already, and both take twice as long.
    """
    warp = 32 * (-(-registers // 8) * 8)
    return REGISTERS // 2 // warp + 1
