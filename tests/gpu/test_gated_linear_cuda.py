"""gated_linear in CUDA against its definition in float64, and that a row never minds the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

pytest.importorskip("cupy")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
if torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("needs a Hopper device", allow_module_level=True)

from gpu.gated_linear.cupy_kernel import GatedLinear, Product
from gpu.gated_linear.source import PLANS, Plan

pytestmark = pytest.mark.gpu

BF16, FP16 = torch.bfloat16, torch.float16
TOLERANCE = {BF16: 4e-3, FP16: 5e-4}  # of the norm: outputs are rounded once
SHAPES = [(3072, 1024), (1024, 3072), (8, 8), (264, 72), (1000, 1544), (4104, 56)]  # outputs, inputs


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


class Case:
    def __init__(self, dtype: torch.dtype, rows: int, outputs: int, inputs: int, biased: bool) -> None:
        self.x, self.weight = drawn(rows, inputs, dtype=dtype), drawn(2 * outputs, inputs, dtype=dtype)
        self.weight *= inputs**-0.5
        self.bias = drawn(2 * outputs, dtype=dtype) if biased else None

    def expected(self) -> Tensor:
        sums = self.x.double() @ self.weight.double().T
        if self.bias is not None:
            sums += self.bias.double()
        gate, up = sums.chunk(2, dim=-1)
        return silu(gate) * up

    def run(self, op: GatedLinear | Product) -> Tensor:
        """Into poisoned rows between others, which must stay as they are."""
        rows, outputs = len(self.x), len(self.weight) // 2
        guarded = torch.full((rows + 2, outputs), 7.0, device="cuda", dtype=self.x.dtype)
        out = guarded[1:-1].fill_(torch.nan)
        op(self.x, self.weight, self.bias, out)
        assert (guarded[[0, -1]] == 7).all()
        return out


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert float((found.double() - expected).norm() / expected.norm()) < TOLERANCE[found.dtype]


@pytest.fixture(scope="module", params=[BF16, FP16], ids=str)
def linear(request: pytest.FixtureRequest) -> GatedLinear:
    return GatedLinear(request.param)


@pytest.mark.parametrize("rows", [17, 128, 129, 256, 513, 3000])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_right(linear: GatedLinear, shape: tuple[int, int], rows: int, biased: bool) -> None:
    case = Case(linear.dtype, rows, *shape, biased)
    assert_near(case.run(linear), case.expected())


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_plan_serves_every_shape_and_no_row_minds_the_others(plan: Plan) -> None:
    product = Product(plan, BF16)
    for rows, outputs, inputs in ((1, 16, 4096), (700, 1032, 264), (2500, 4096, 512), (300, 20000, 128)):
        case = Case(BF16, rows, outputs, inputs, biased=False)
        out = case.run(product)
        assert_near(out, case.expected())
        case.x = case.x[: rows // 2 + 1]
        assert torch.equal(case.run(product), out[: rows // 2 + 1])


def test_a_nan_stays_in_its_row() -> None:
    case = Case(BF16, 300, 512, 256, biased=False)
    case.x[130, 7] = torch.nan
    out = case.run(GatedLinear(BF16))
    assert out[130].isnan().all()
    case.x[130, 7] = 0
    kept = torch.arange(300, device="cuda") != 130
    assert_near(out[kept], case.expected()[kept])


def test_products_in_a_row_follow_each_other_in_a_captured_graph() -> None:
    """Each reads what the one before wrote, though it may have started before that ended."""
    linear = GatedLinear(BF16)
    x, other = drawn(600, 512, dtype=BF16), torch.empty(600, 512, device="cuda", dtype=BF16)
    weights = [drawn(1024, 512, dtype=BF16) * (2 / 512**0.5) for _ in range(2)]
    linear(x, weights[0], None, other)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            linear.enqueue(x, weights[0], None, other)
            linear.enqueue(other, weights[1], None, x)
    x.copy_(drawn(600, 512, dtype=BF16))
    expected = x.clone()
    for _ in range(3):
        for weight in weights:
            gate, up = (expected.double() @ weight.double().T).chunk(2, dim=-1)
            expected = (silu(gate) * up).to(BF16)
    graph.replay()
    # Six products, each rounded, of rounded numbers.
    assert float((x.double() - expected.double()).norm() / expected.double().norm()) < 6 * TOLERANCE[BF16]


def test_what_it_cannot_do_is_told_in_a_line() -> None:
    linear = GatedLinear(BF16)
    weight, out = drawn(128, 64, dtype=BF16), drawn(32, 64, dtype=BF16)
    for x, w, o in (
        (drawn(32, 64, dtype=FP16), weight, out),
        (drawn(32, 72, dtype=BF16), weight, out),
        (drawn(32, 65, dtype=BF16), drawn(128, 65, dtype=BF16), out),
        (drawn(64, 32, dtype=BF16).T, weight, out),
        (drawn(32, 64, dtype=BF16), weight, out.float()),
    ):
        with pytest.raises(ValueError, match=r"^gated_linear [^\n]*$"):
            linear(x, w, None, o)
    with pytest.raises(ValueError, match=r"^gated_linear [^\n]*$"):
        GatedLinear(torch.float32)
