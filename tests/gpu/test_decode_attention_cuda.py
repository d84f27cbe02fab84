"""decode_attention in CUDA C++ against float64: what it stores, what it attends, and a replayed graph."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

pytest.importorskip("cupy")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from gpu.decode_attention.cupy_kernel import DecodeAttention
from gpu.paged_attention.source import Heads
from gpu.rope_write_kv.norms import HeadNorms
from tests.gpu.paged_cases import BF16, FP16, LLAMA, QWEN

pytestmark = pytest.mark.gpu
TOLERANCE = {BF16: 6e-3, FP16: 1.2e-3}
EPS = 1e-5

SHAPES = (
    (LLAMA, 64),
    (QWEN, 64),
    (Heads(14, 2, 64, BF16), 32),
    (Heads(16, 1, 128, FP16), 32),
    (Heads(8, 8, 64, FP16), 16),
)


class Case:
    """Random rows; blocks that no row owns, and entries from each row's newest on, are NaN."""

    def __init__(
        self, shape: Heads, pairs: int, contexts: Sequence[int], *, block_size: int = 16, normed: bool = False
    ) -> None:
        rows = len(contexts)
        self.shape, self.pairs, self.lengths, self.block_size = shape, pairs, contexts, block_size
        needed = [-(-length // block_size) for length in contexts]
        blocks = sum(needed) + 2
        self.order = torch.randperm(blocks, device="cuda").int()
        pools = torch.randn(2, blocks, block_size, shape.kv_heads, shape.head_dim, device="cuda").to(
            shape.dtype
        )
        self.tables = torch.full(
            (rows, max(needed) + 1), int(self.order[-1]), dtype=torch.int32, device="cuda"
        )
        pools[:, self.order[-2:].long()] = float("nan")
        at = 0
        for row, (count, length) in enumerate(zip(needed, contexts, strict=True)):
            self.tables[row, :count] = self.order[at : at + count]
            at += count
            if length:
                pools[:, int(self.order[at - 1]), (length - 1) % block_size :] = float("nan")
        self.keys, self.values = pools
        heads = shape.heads + 2 * shape.kv_heads
        together = torch.randn(rows, heads, shape.head_dim, device="cuda").to(shape.dtype)
        split = (shape.heads, shape.heads + shape.kv_heads)
        self.query, self.key, self.value = together.tensor_split(split, dim=1)
        self.angles = 1000 * torch.rand(rows, pairs, device="cuda")
        self.cos, self.sin = self.angles.cos(), self.angles.sin()
        weights = torch.randn(2, shape.head_dim, device="cuda").to(shape.dtype)
        self.norms = HeadNorms(weights[0], weights[1], EPS) if normed else None
        self.contexts = torch.tensor(contexts, dtype=torch.int32, device="cuda")
        self.scale = shape.head_dim**-0.5
        torch.cuda.synchronize()

    def run(self, op: DecodeAttention, window: int | None = None) -> Tensor:
        out = torch.full(self.query.shape, float("nan"), device="cuda", dtype=self.shape.dtype)
        torch.cuda.synchronize()
        op(*self.arguments(window, out), self.norms)
        return out

    def arguments(self, window: int | None, out: Tensor) -> tuple[object, ...]:
        rows = (self.query, self.key, self.value, self.cos, self.sin)
        return (*rows, self.keys, self.values, self.tables, self.contexts, self.scale, window, out)

    def turned(self, heads: Tensor, norm: Tensor | None) -> Tensor:
        """In float64, as complex numbers."""
        wide = heads.double()
        if norm is not None:
            wide = norm.double() * wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt()
        numbers = torch.complex(wide[..., : self.pairs], wide[..., self.pairs : 2 * self.pairs])
        wheel = torch.complex(self.cos.double(), self.sin.double())
        turned = numbers * wheel[:, None]
        return torch.cat([turned.real, turned.imag, wide[..., 2 * self.pairs :]], dim=-1)

    def expected(self, window: int | None = None) -> Tensor:
        """In float64; NaN for rows without a context."""
        query = self.turned(self.query, self.norms and self.norms.query)
        key = self.turned(self.key, self.norms and self.norms.key)
        found = torch.full(query.shape, float("nan"), device="cuda", dtype=torch.float64)
        for row, length in enumerate(self.lengths):
            if length:
                blocks = self.tables[row, : -(-length // self.block_size)].long()
                keys, values = (p[blocks].flatten(0, 1)[:length].double() for p in (self.keys, self.values))
                keys[-1], values[-1] = key[row], self.value[row].double()
                first = max(0, length - window) if window else 0
                keys, values = (x[first:].repeat_interleave(self.shape.group, 1) for x in (keys, values))
                weights = (torch.einsum("hd,phd->hp", query[row], keys) * self.scale).softmax(-1)
                found[row] = torch.einsum("hp,phd->hd", weights, values)
        return found


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert torch.equal(found.isnan(), expected.isnan())
    error = (found.double() - expected).nan_to_num().norm() / expected.nan_to_num().norm()
    assert float(error) < TOLERANCE[found.dtype]


@pytest.mark.parametrize("settled", [False, True], ids=["waiting", "settled"])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(("shape", "pairs"), SHAPES, ids=str)
def test_rows_of_many_lengths(shape: Heads, pairs: int, normed: bool, settled: bool) -> None:
    op = DecodeAttention(shape, pairs, normed=normed, settled=settled)
    for contexts in (
        [1],
        [256],
        [257],
        [0, 16, 17, 300, 1, 0, 1025, 33, 2, 5000, 4096, 4097, 513, 0, 48, 31],
        [9000] * 3,
    ):
        case = Case(shape, pairs, contexts, normed=normed)
        pools = case.keys.clone(), case.values.clone()
        expected = case.expected()
        assert_near(case.run(op), expected)
        self_key = case.turned(case.key, case.norms and case.norms.key)
        for row, length in enumerate(contexts):  # the newest entry, and nothing else, is stored
            if length:
                place = int(case.tables[row, (length - 1) // 16]), (length - 1) % 16
                assert_near(case.keys[place], self_key[row])
                assert torch.equal(case.values[place], case.value[row])
                for pool, before in zip((case.keys, case.values), pools, strict=True):
                    before[place] = pool[place]
        for pool, before in zip((case.keys, case.values), pools, strict=True):
            assert torch.equal(pool.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize("window", [1, 5, 200, 4096])
@pytest.mark.parametrize("block_size", [16, 48])
def test_a_window_hides_what_is_older(window: int, block_size: int) -> None:
    case = Case(LLAMA, 64, [1, 16, 5, 300, 1025, 9000], block_size=block_size)
    expected = case.expected(window)
    assert_near(case.run(DecodeAttention(LLAMA, 64), window), expected)


def test_a_row_does_not_depend_on_the_others_while_contexts_are_short() -> None:
    op, case = DecodeAttention(QWEN, 64), Case(QWEN, 64, [700, 3, 256, 1500, 0, 12, 40, 501])
    together = case.run(op)
    for row in range(len(case.lengths)):
        alone = torch.full_like(together[:1], float("nan"))
        rows = slice(row, row + 1)
        parts = (case.query[rows], case.key[rows], case.value[rows], case.cos[rows], case.sin[rows])
        where = (case.tables[rows], case.contexts[rows], case.scale, None, alone)
        op(*parts, case.keys, case.values, *where)
        assert torch.equal(alone.nan_to_num(7.0), together[rows].nan_to_num(7.0))


def test_a_replayed_graph_sees_new_contexts() -> None:
    """Also that tickets are as they were after each replay: the same graph runs many times."""
    op = DecodeAttention(QWEN, 64, settled=True)
    cases = [Case(QWEN, 64, lengths) for lengths in ([20, 600], [3000, 470], [1, 8000])]
    most = max(len(case.keys) for case in cases)
    first = cases[0]
    keys, values = (torch.empty(most, *first.keys.shape[1:], device="cuda", dtype=BF16) for _ in range(2))
    tables, contexts = torch.zeros(2, 600, dtype=torch.int32, device="cuda"), torch.ones_like(first.contexts)
    together = torch.zeros(2, 32, 128, device="cuda", dtype=BF16)
    query, key, value = together.tensor_split((16, 24), dim=1)
    cos, sin = torch.zeros_like(first.cos), torch.zeros_like(first.sin)
    out = torch.empty(2, 16, 128, device="cuda", dtype=BF16)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op(query, key, value, cos, sin, keys, values, tables, contexts, 128**-0.5, None, out)
    for _ in range(3):
        for case in cases:
            for mine, its in (
                (query, case.query),
                (key, case.key),
                (value, case.value),
                (cos, case.cos),
                (sin, case.sin),
            ):
                mine.copy_(its)
            keys[: len(case.keys)], values[: len(case.values)] = case.keys, case.values
            tables[:, : case.tables.shape[1]] = case.tables
            contexts.copy_(case.contexts)
            out.fill_(float("nan"))
            graph.replay()
            assert_near(out, case.expected())


def test_what_does_not_fit_is_refused_before_a_launch() -> None:
    for shape, pairs in (
        (Heads(8, 8, 96, BF16), 48),
        (Heads(34, 2, 64, BF16), 32),
        (Heads(8, 8, 128, BF16), 65),
    ):
        with pytest.raises(ValueError, match="decode_attention"):
            DecodeAttention(shape, pairs)
    case = Case(QWEN, 64, [5] * 33)
    with pytest.raises(ValueError, match="33 rows exceed 32"):
        case.run(DecodeAttention(QWEN, 64))
    with pytest.raises(ValueError, match="normed=True"):
        Case(QWEN, 64, [5]).run(DecodeAttention(QWEN, 64, normed=True))
