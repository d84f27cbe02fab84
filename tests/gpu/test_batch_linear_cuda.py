"""linear for up to 128 rows in CUDA against its definition in float64; a row never minds the others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

pytest.importorskip("cupy")
if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("needs a CUDA device of capability 9.0", allow_module_level=True)

from gpu.batch_linear.cupy_kernel import BatchLinear, BatchMatrices, Product
from gpu.batch_linear.source import FORMS, PLANS, Plan, planned
from gpu.linear.source import Form, Into
from gpu.rms_norm.cupy_kernel import RmsNorm
from tokenspeed.model.cuda.products import AfterNorm

pytestmark = pytest.mark.gpu

TOLERANCE = {
    torch.bfloat16: 4e-3,
    torch.float16: 5e-4,
    torch.float32: 1e-5,
}  # of the norm, by the dtype of out
DTYPES = (torch.bfloat16, torch.float16)
MODELS = [(6144, 4096), (4096, 4096), (14336, 4096), (4096, 14336), (4096, 1024), (1024, 3072)]
UGLY = [(1, 8), (257, 1544), (1000, 2056), (2113, 136), (6, 24)]  # outputs, inputs
ROWS = (17, 32, 33, 64, 65, 100, 128)
EPS = 1e-5


def products_of(hidden: int, *, wide: bool) -> AfterNorm:
    norm, workspace = RmsNorm(torch.bfloat16), torch.empty(128, hidden, device="cuda", dtype=torch.bfloat16)
    return AfterNorm(BatchMatrices(torch.bfloat16, wide=wide), norm.enqueue, EPS, workspace)


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


class Case:
    """Random tensors of one form; out is NaN where it is not added to, and lies between numbers."""

    def __init__(self, form: Form, dtype: torch.dtype, rows: int, shape: tuple[int, int]) -> None:
        outputs, inputs = shape
        sums = 2 * outputs if form.into is Into.GATED else outputs
        self.form = form
        self.x = drawn(rows, inputs, dtype=dtype)
        self.weight = drawn(sums, inputs, dtype=dtype) / inputs**0.5
        self.bias = drawn(sums, dtype=dtype)
        stream = torch.float32 if form.wide_out else dtype
        self.guarded = torch.full((rows * outputs + 64,), 7.0, device="cuda", dtype=stream)
        self.out = self.guarded[: rows * outputs].view(rows, outputs)
        added = form.into is Into.ADDED
        self.out.copy_(drawn(rows, outputs, dtype=stream) if added else torch.full_like(self.out, torch.nan))
        torch.cuda.synchronize()  # a kernel may read a matrix before the kernel ahead ends

    def expected(self, bias: Tensor | None) -> Tensor:
        """In float64, from what `out` holds now."""
        sums: Tensor = self.x.double() @ self.weight.double().T
        if bias is not None:
            sums += bias.double()
        match self.form.into:
            case Into.ADDED:
                sums += self.out.double()
            case Into.GATED:
                gate, up = sums.chunk(2, dim=-1)
                sums = gate / (1 + (-gate).exp()) * up
        return sums

    def run(self, op: BatchLinear, rows: slice = slice(None)) -> Tensor:
        out = self.out[rows].clone()
        op(self.x[rows].clone(), self.weight, self.bias, out)
        return out


def assert_close(out: Tensor, expected: Tensor) -> None:
    assert float((out.double() - expected).norm() / expected.norm()) < TOLERANCE[out.dtype]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """All at once, into the cache of compiled sources."""
    device = torch.cuda.current_device()
    count = torch.cuda.get_device_properties().multi_processor_count
    wanted = {(plan, torch.bfloat16, Form(into=into)) for plan in PLANS for into in Into}
    for form in FORMS:
        plans = {planned(form, inputs, outputs, count) for outputs, inputs in MODELS + UGLY}
        wanted |= {(plan, dtype, form) for plan in plans for dtype in DTYPES}

    def compile_one(one: tuple[Plan, torch.dtype, Form]) -> None:
        with torch.cuda.device(device):
            Product(*one)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(compile_one, wanted))


@pytest.fixture(scope="module", params=[(form, dtype) for form in FORMS for dtype in DTYPES], ids=str)
def op(request: pytest.FixtureRequest) -> BatchLinear:
    form, dtype = request.param
    return BatchLinear(dtype, form)


@pytest.mark.parametrize("shape", MODELS + UGLY, ids=str)
def test_products_are_right(op: BatchLinear, shape: tuple[int, int]) -> None:
    for rows in ROWS if shape in UGLY else (17, 64, 128):
        for biased in (False, True):
            case = Case(op.form, op.dtype, rows, shape)
            bias = case.bias if biased else None
            expected = case.expected(bias)
            op(case.x, case.weight, bias, case.out)
            assert_close(case.out, expected)
            assert (case.guarded[case.out.numel() :] == 7.0).all()


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("into", Into, ids=str)
def test_every_plan_is_right_for_every_matrix(plan: Plan, into: Into) -> None:
    product = Product(plan, torch.bfloat16, Form(into=into))
    for shape in ((2113, 1032), (16, 32), (4096, 4096)):
        for rows in (33, 64, 100):
            case = Case(product.form, torch.bfloat16, rows, shape)
            expected = case.expected(case.bias)
            product(case.x, case.weight, case.bias, case.out)
            assert_close(case.out, expected)


@pytest.mark.parametrize("shape", [(4096, 4096), (1024, 3072), (1000, 2056), (257, 1544)], ids=str)
def test_a_row_does_not_depend_on_the_others(op: BatchLinear, shape: tuple[int, int]) -> None:
    case = Case(op.form, op.dtype, 128, shape)
    together = case.run(op)
    for first, last in ((0, 1), (3, 20), (60, 124), (63, 128), (17, 128)):
        assert torch.equal(case.run(op, slice(first, last)), together[first:last])


def test_one_call_after_the_other_gives_the_same_bits(op: BatchLinear) -> None:
    case = Case(op.form, op.dtype, 64, (4096, 4096))
    first = case.run(op)
    assert all(torch.equal(case.run(op), first) for _ in range(20))


def test_a_captured_product_reads_its_inputs_at_each_replay() -> None:
    op = BatchLinear(torch.bfloat16)
    case = Case(op.form, op.dtype, 40, (4096, 1024))
    op.prepare(1024, 4096)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op(case.x, case.weight, None, case.out)
    case.x.copy_(drawn(40, 1024, dtype=op.dtype))
    case.out.fill_(torch.nan)
    graph.replay()
    assert_close(case.out, case.expected(None))


@pytest.mark.parametrize("rows", [17, 64, 128])
def test_layers_of_early_products_read_what_the_one_before_wrote(rows: int) -> None:
    """Normalised, gated and added to, many times over, as a decoder does."""
    dim, inner = 1024, 3072
    products = products_of(dim, wide=True)
    norm = drawn(dim, dtype=torch.bfloat16)
    layers = [
        (drawn(2 * inner, dim, dtype=torch.bfloat16) / 32, drawn(dim, inner, dtype=torch.bfloat16) / 55)
        for _ in range(12)
    ]
    start, stream = drawn(rows, dim, dtype=torch.float32), drawn(rows, dim, dtype=torch.float32)
    inside = drawn(rows, inner, dtype=torch.bfloat16)
    stream.copy_(start)
    for up, down in layers:  # one at a time
        products.norm_gated(stream, norm, up, None, inside)
        torch.cuda.synchronize()
        products.add_linear(inside, down, None, stream)
        torch.cuda.synchronize()
    expected = stream.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for up, down in layers:
            products.norm_gated(stream, norm, up, None, inside)
            products.add_linear(inside, down, None, stream)
    for _ in range(50):
        stream.copy_(start)
        inside.fill_(torch.nan)
        graph.replay()
        assert torch.equal(stream, expected)


@pytest.mark.parametrize("wide", [False, True])
def test_all_products_of_a_decoder(wide: bool) -> None:
    products = products_of(1024, wide=wide)
    stream = torch.float32 if wide else torch.bfloat16
    norm = drawn(1024, dtype=torch.bfloat16)
    for rows in (17, 100):
        x = drawn(rows, 1024, dtype=stream)
        normed = norm.double() * x.double() / (x.double().square().mean(-1, keepdim=True) + EPS).sqrt()
        for form in (Form(), Form(wide_out=True), Form(into=Into.GATED)):
            case = Case(form, torch.bfloat16, rows, (264, 1024))
            case.x = normed
            expected = case.expected(case.bias)
            call = products.norm_gated if form.into is Into.GATED else products.norm_linear
            call(x, norm, case.weight, case.bias, case.out)
            assert float((case.out.double() - expected).norm() / expected.norm()) < 8e-3
        case = Case(Form(into=Into.ADDED, wide_out=wide), torch.bfloat16, rows, (1024, 264))
        expected = case.expected(case.bias)
        products.add_linear(case.x, case.weight, case.bias, case.out)
        assert_close(case.out, expected)


def test_what_cannot_be_read_is_refused() -> None:
    op, dtype = BatchLinear(torch.bfloat16), torch.bfloat16
    weight, out = drawn(32, 64, dtype=dtype), drawn(32, 32, dtype=dtype)
    assert op.supports(128, 64)
    assert not op.supports(129, 64)
    assert not op.supports(64, 63)
    refused = {
        "rows": (drawn(129, 64, dtype=dtype), weight),
        "compiled for": (drawn(32, 64, dtype=torch.float16), weight),
        "is no multiple": (drawn(32, 63, dtype=dtype), drawn(32, 63, dtype=dtype)),
        "make it": (drawn(32, 56, dtype=dtype), weight),
        "contiguous": (drawn(32, 64, dtype=dtype), drawn(64, 32, dtype=dtype).T),
        "at a multiple": (drawn(32 * 64 + 1, dtype=dtype)[1:].view(32, 64), weight),
    }
    for word, (x, matrix) in refused.items():
        with pytest.raises(ValueError, match=word):
            op(x, matrix, None, out)
    with pytest.raises(ValueError, match="float32"):
        BatchLinear(torch.float32)
    with pytest.raises(ValueError, match="has no"):
        BatchLinear(dtype, Form(normed=True))
