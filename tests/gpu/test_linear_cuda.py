"""linear for few rows in CUDA against its definition in float64, and that a row never minds the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("cupy")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from gpu.linear.cupy_kernel import FewRowsLinear, Product
from gpu.linear.source import PLANS, Plan

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 5e-4}  # of the norm: one output may be all of it, rounded
MODELS = [(4096, 4096), (6144, 1024), (1024, 3072), (1024, 2048), (4096, 14336)]
UGLY = [(1, 8), (257, 1544), (1000, 2056), (2113, 32), (32769, 136)]
SHAPES = MODELS + UGLY
DTYPES = list(TOLERANCE)


@pytest.fixture(
    scope="module", params=[(dtype, early) for dtype in DTYPES for early in (False, True)], ids=str
)
def linear(request: pytest.FixtureRequest) -> FewRowsLinear:
    dtype, early = request.param
    return FewRowsLinear(dtype, early=early)


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    tensor = torch.randn(*shape, device="cuda").to(dtype)
    torch.cuda.synchronize()  # early kernels may read a matrix before the kernel ahead ends
    return tensor


def poisoned(rows: int, outputs: int, dtype: torch.dtype) -> Tensor:
    return torch.full((rows, outputs), torch.nan, device="cuda", dtype=dtype)


def assert_product(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    expected = x.double() @ weight.double().T
    if bias is not None:
        expected += bias.double()
    assert float((out.double() - expected).norm() / expected.norm()) < TOLERANCE[out.dtype]


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_right(linear: FewRowsLinear, shape: tuple[int, int], rows: int, biased: bool) -> None:
    outputs, inputs = shape
    x, weight = drawn(rows, inputs, dtype=linear.dtype), drawn(outputs, inputs, dtype=linear.dtype)
    bias = drawn(outputs, dtype=linear.dtype) if biased else None
    out = poisoned(rows, outputs, linear.dtype)
    linear(x, weight, bias, out)
    assert_product(out, x, weight, bias)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("shape", [(2113, 1032), (16, 32), (4096, 4096)], ids=str)
def test_every_plan_is_right_for_every_matrix(plan: Plan, shape: tuple[int, int]) -> None:
    outputs, inputs = shape
    product = Product(plan, torch.bfloat16)
    for rows in (3, 16):
        x, weight, bias = (drawn(*size, dtype=torch.bfloat16) for size in ((rows, inputs), shape, (outputs,)))
        out = poisoned(rows, outputs, torch.bfloat16)
        product(x, weight, bias, out)
        assert_product(out, x, weight, bias)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_does_not_depend_on_the_others(linear: FewRowsLinear, shape: tuple[int, int]) -> None:
    outputs, inputs = shape
    x, weight = drawn(16, inputs, dtype=linear.dtype), drawn(outputs, inputs, dtype=linear.dtype)
    together = poisoned(16, outputs, linear.dtype)
    linear(x, weight, None, together)
    for first, last in ((0, 1), (3, 8), (7, 16), (15, 16)):
        apart = poisoned(last - first, outputs, linear.dtype)
        linear(x[first:last].clone(), weight, None, apart)
        assert torch.equal(apart, together[first:last])


def test_no_output_beyond_the_last_is_written(linear: FewRowsLinear) -> None:
    x, weight = drawn(5, 520, dtype=linear.dtype), drawn(33, 520, dtype=linear.dtype)
    room = torch.full((6 * 33,), 7.0, device="cuda", dtype=linear.dtype)
    linear(x, weight, None, room[: 5 * 33].view(5, 33))
    assert (room[5 * 33 :] == 7.0).all()


def test_a_captured_product_reads_its_inputs_at_each_replay(linear: FewRowsLinear) -> None:
    x, weight = drawn(4, 1024, dtype=linear.dtype), drawn(4096, 1024, dtype=linear.dtype)
    out = poisoned(4, 4096, linear.dtype)
    linear(x, weight, None, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        linear(x, weight, None, out)
    x.copy_(drawn(4, 1024, dtype=linear.dtype))
    out.fill_(torch.nan)
    graph.replay()
    assert_product(out, x, weight, None)


def test_a_chain_of_early_products_reads_what_the_one_before_wrote() -> None:
    linear = FewRowsLinear(torch.bfloat16, early=True)
    weights = [drawn(4096, 4096, dtype=torch.bfloat16) / 64 for _ in range(12)]
    rows = [poisoned(2, 4096, torch.bfloat16) for _ in range(13)]
    rows[0].copy_(drawn(2, 4096, dtype=torch.bfloat16))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i, weight in enumerate(weights):
            linear(rows[i], weight, None, rows[i + 1])
    for _ in range(5):
        for out in rows[1:]:
            out.fill_(torch.nan)
        graph.replay()
        for i, weight in enumerate(weights):
            assert_product(rows[i + 1], rows[i], weight, None)


def test_what_cannot_be_read_is_refused(linear: FewRowsLinear) -> None:
    weight, out = drawn(32, 64, dtype=linear.dtype), poisoned(1, 32, linear.dtype)
    assert linear.supports(drawn(16, 64, dtype=linear.dtype), weight)
    refused = {
        "rows": (drawn(17, 64, dtype=linear.dtype), weight),
        "compiled for": (drawn(1, 64, dtype=torch.float32), weight),
        "multiple": (drawn(1, 63, dtype=linear.dtype), drawn(32, 63, dtype=linear.dtype)),
        "equal": (drawn(1, 56, dtype=linear.dtype), weight),
        "contiguous": (drawn(1, 64, dtype=linear.dtype), drawn(64, 32, dtype=linear.dtype).T),
        "begin at": (drawn(1, 65, dtype=linear.dtype)[:, 1:], weight),
    }
    for word, (x, matrix) in refused.items():
        assert not linear.supports(x, matrix)
        with pytest.raises(ValueError, match=word):
            linear(x, matrix, None, out)
    with pytest.raises(ValueError, match="writes"):
        linear(drawn(2, 64, dtype=linear.dtype), weight, None, out)
    with pytest.raises(ValueError, match="float32"):
        FewRowsLinear(torch.float32)
