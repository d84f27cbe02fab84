"""Cases of paged_attention in Numba CUDA; a script, as numba_cases.py, and for the same reason.

With NUMBA_ENABLE_CUDASIM=1 the kernels run in the simulator on tensors of the CPU, else on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn.functional import pad

from gpu.paged_attention.numba_kernel import PagedAttention
from gpu.paged_attention.source import Heads
from tests.gpu.numba_cases import DEVICE, refused
from tests.gpu.paged_cases import BF16, F32, FP16, LLAMA, Case, assert_near, check_replays


def drawn(shape: Heads, counts: Sequence[int], contexts: Sequence[int], block_size: int = 16) -> Case:
    """With tables wider than rows need, and keys and values in one tensor, of which the pools are views."""
    case = Case(shape, counts, contexts, block_size, device=DEVICE)
    case.scale = 0.2
    case.tables = pad(case.tables, (0, 2), value=1 << 30)
    case.keys, case.values = torch.stack([case.keys, case.values], dim=1).unbind(1)
    return case


def check(
    shape: Heads,
    counts: Sequence[int],
    contexts: Sequence[int],
    block_size: int = 16,
    window: int | None = None,
    *,
    most_tokens: int = 1,
) -> None:
    case = drawn(shape, counts, contexts, block_size)
    assert_near(case.run(PagedAttention(shape, most_tokens=most_tokens), window), case.expected(window))


def check_that_an_invalid_row_is_that_rows_own(shape: Heads) -> None:
    """NaN in a row's own context comes out of that row, of the tokens and heads that see it."""
    case = drawn(shape, [1, 1], [17, 20])
    expected = case.expected()
    case.keys[int(case.tables[0, 0]), 3] = float("nan")
    out = case.run(PagedAttention(shape))
    assert out[0].isnan().all()
    assert_near(out[1], expected[1])


def check_large_scores(shape: Heads) -> None:
    case = drawn(shape, [1], [20])
    case.query.fill_(1e4)
    case.keys.fill_(1e4)
    assert case.run(PagedAttention(shape)).isfinite().all()


def check_refusals() -> None:
    for shape in (
        Heads(4, 2, 12, F32),
        Heads(4, 2, 264, F32),
        Heads(5, 2, 8, F32),
        Heads(4, 2, 8, torch.float64),
    ):
        assert refused(partial(PagedAttention, shape))
    shape = Heads(4, 2, 8, F32)
    assert refused(lambda: PagedAttention(shape, most_tokens=0))
    attention, case = PagedAttention(shape, most_rows=2), drawn(shape, [1, 1], [3, 5], 4)
    query, keys, values, tables, starts, contexts, scale, window, out = case.arguments(
        None, torch.empty_like(case.query)
    )
    rest = (tables, starts, contexts, scale, window, out)
    assert refused(lambda: attention(query.half(), keys, values, *rest))
    assert refused(lambda: attention(query, keys[..., :1, :], values[..., :1, :], *rest))
    assert refused(lambda: attention(query, keys.contiguous(), values, *rest))
    assert refused(
        lambda: attention(query, keys, values, tables, starts, contexts.long(), scale, window, out)
    )
    assert refused(lambda: attention(query, keys, values, tables, starts[:2], contexts, scale, window, out))
    assert refused(lambda: attention(query, keys, values, tables, starts, contexts, scale, 0, out))
    assert refused(
        lambda: attention(query, keys, values, tables, starts, contexts, scale, window, out.half())
    )
    many = drawn(shape, [2], [3], 4)
    assert refused(lambda: many.run(attention))


def check_small() -> None:
    check(Heads(4, 1, 16, F32), [1, 1, 1], [1, 40, 15])
    check(Heads(4, 2, 8, BF16), [1, 2, 0, 3, 1], [16, 17, 0, 40, 1], most_tokens=3)
    check(Heads(1, 1, 24, FP16), [1, 1, 1], [16, 17, 40], 5, 7)
    check(Heads(4, 1, 8, BF16), [3, 1], [40, 17], 7, 16, most_tokens=3)  # 12 queries: two blocks share them
    check(Heads(2, 2, 40, F32), [1], [33], 3)
    check_that_an_invalid_row_is_that_rows_own(Heads(2, 1, 8, F32))
    check_large_scores(Heads(4, 2, 16, BF16))


# With the most tokens of a row. Each is compiled, which takes seconds: all that follows is for one of these.
VARIANTS = {
    LLAMA: (1, 8),  # 4 queries in a block; 32 in four
    Heads(32, 8, 128, F32): (3,),  # 12 in two
    Heads(14, 2, 64, BF16): (3,),  # 7 heads share a kv head: blocks begin within tokens
    Heads(8, 8, 80, FP16): (8,),
    Heads(32, 8, 96, FP16): (1,),
    Heads(8, 4, 256, BF16): (8,),
    Heads(8, 1, 256, F32): (1,),
    Heads(12, 4, 72, F32): (1,),
    Heads(4, 4, 8, FP16): (1,),  # one query, and few words to share among threads
}


def check_large() -> None:
    for shape, most_tokens in ((shape, most) for shape, each in VARIANTS.items() for most in each):
        for block_size in (16, 5):
            check(shape, [1] * 7, [1, 16, 17, 300, 1025, 33, 2], block_size, most_tokens=most_tokens)
        counts = [min(count, most_tokens) for count in (8, 1, 3, 8, 2, 0, 5)]
        for window in (None, 5, 200):
            check(shape, counts, [8, 40, 700, 1030, 2, 0, 129], 16, window, most_tokens=most_tokens)
    for window in (None, 1, 100, 4096):
        check(LLAMA, [1], [32_769], 16, window)
    check(Heads(32, 8, 128, F32), [1, 1], [32_769, 3], most_tokens=3)
    check(LLAMA, [1] * 257, torch.randint(1, 514, (257,)).tolist())
    check(LLAMA, [1] * 500, torch.randint(1, 200, (500,)).tolist())
    check(LLAMA, [1, 4, 1, 2], [3, 9000, 64, 65], most_tokens=8)
    check_that_an_invalid_row_is_that_rows_own(LLAMA)
    check_large_scores(LLAMA)
    check_replays(PagedAttention(LLAMA), [drawn(LLAMA, [1, 1], [20, 600]), drawn(LLAMA, [1, 1], [3000, 470])])


if __name__ == "__main__":
    torch.manual_seed(0)
    check_refusals()
    if DEVICE == "cuda":
        check_large()
    else:
        check_small()
