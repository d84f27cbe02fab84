"""Every kernel once or a few times, in the least shapes that reach all of its code, against its reference.

    compute-sanitizer --tool racecheck --error-exitcode 9 python -m tests.gpu.tour linear

Kernels that are watched take 10 to 100 times as long, so these are few launches of little. It ends with an
error where something is wrong. Without names: all ops but `ASKED`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from gpu.batch_linear.reference import batch_linear
from gpu.batch_linear.source import FORMS as BATCH_FORMS
from gpu.batch_linear.source import Plan as Batch
from gpu.copy_blocks.reference import copy_blocks
from gpu.decode_attention.reference import decode_attention
from gpu.gated_linear.reference import gated_linear
from gpu.gated_linear.source import BROAD, CLUSTER, NARROW
from gpu.gather_ids.reference import gather_ids
from gpu.linear.reference import fused_linear
from gpu.linear.source import LONE, Form, Into
from gpu.paged_attention.source import Heads
from gpu.rope_write_kv.norms import HeadNorms
from gpu.table import REFERENCE
from gpu.verify.reference import verify
from tests.gpu import agreement
from tests.gpu.agreement import apart, drawn, integers, poisoned
from tests.gpu.follow_cases import followed
from tests.gpu.logit_cases import adjustments
from tests.gpu.paged_cases import Case

DEVICE = "cuda"  # a test of this tour has references on the CPU in the place of kernels
F32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
EPS = 1e-5


def kernels(op: str, kind: str = "cupy") -> Any:
    """The module of an implementation: to be imported only where it can be."""
    return import_module(f"gpu.{op}.{kind}_kernel")


def agree(op: Callable[..., object], reference: Callable[..., object], *arguments: Any) -> None:
    agreement.agree(op, reference, *arguments, device=DEVICE)


def on_hopper(op: str) -> bool:
    if DEVICE == "cpu" or torch.cuda.get_device_capability() == (9, 0):
        return True
    print(f"{op} is for compute capability 9.0: left out")
    return False


def tour_adjust_logits() -> None:
    op = kernels("adjust_logits").AdjustLogits()
    for rows, vocab, most in ((1, 1, 1), (3, 8200, 700)):  # two runs of a mask, entries for several blocks
        for masked in (False, True):
            given = adjustments(rows, vocab, most, masked=masked, device="cpu")
            logits, kept = apart(drawn(rows, vocab, scale=4), 3), poisoned(len(given.tokens))
            agree(op, REFERENCE.adjust_logits, logits, *given, kept)


def tour_batch_linear() -> None:
    if not on_hopper("batch_linear"):
        return
    module = kernels("batch_linear")
    made = [(plan, BF16, form) for plan in (Batch(48, 1), Batch(64, 2)) for form in BATCH_FORMS]
    made += [(Batch(128, 1), FP16, Form(into=Into.GATED)), (Batch(96, 2), FP16, Form())]
    for (_, dtype, form), product in zip(made, compiled(module.Product, made), strict=True):
        product._multiprocessors = 2  # so that a block walks over tiles
        for rows, inputs, outputs in ((1, 24, 6), (60, 2200, 100), (100, 2200, 100)):  # more than a ring has
            x, weight, bias, out = operands(form, dtype, rows, inputs, outputs)
            agree(product, partial(batch_linear, form), x, weight, bias, out)


def compiled(make: Callable[..., Any], made: Sequence[tuple[Any, ...]]) -> list[Any]:
    """One of each, at once."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda arguments: make(*arguments), made))


def operands(form: Form, dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> tuple[Tensor, ...]:
    """x, weight, bias, out."""
    sums, stream = outputs * (2 if form.into is Into.GATED else 1), F32 if form.wide_out else dtype
    out = poisoned(rows, outputs, dtype=stream)
    return (
        drawn(rows, inputs, dtype=F32 if form.wide_x else dtype),
        drawn(sums, inputs, dtype=dtype, scale=inputs**-0.5),
        drawn(sums, dtype=dtype),
        drawn(rows, outputs, dtype=stream) if form.into is Into.ADDED else out,
    )


def tour_copy_blocks() -> None:
    op = kernels("copy_blocks", "numba").copy_blocks
    pool = torch.randint(-(2**62), 2**62, (3, 5, 1100))  # more words than a block copies
    agree(op, copy_blocks, pool, integers([1, -1, 3]), integers([0, 0, 4]))


def tour_decode_attention() -> None:
    module = kernels("decode_attention")
    contexts = [
        0,
        1,
        16,
        17,
        300,
        700,
        256,
    ]  # the longest in several parts, and its warps more tiles than rings
    for shape, pairs, normed in (
        (Heads(8, 2, 128, BF16), 64, False),
        (Heads(4, 2, 128, BF16), 64, True),
        (Heads(14, 2, 64, BF16), 16, True),  # some of a head does not turn
        (Heads(16, 1, 64, FP16), 32, False),
    ):
        for settled, window, block_size in ((False, None, 16), (True, 40, 48)):
            op = module.DecodeAttention(shape, pairs, normed=normed, settled=settled)
            for few in (False, True):
                if few:
                    op._multiprocessors = 2  # blocks, which so take one item after the other
                arguments = decoding(shape, pairs, contexts, block_size, window, normed=normed)
                agree(op, decode_attention, *arguments)


def decoding(
    shape: Heads, pairs: int, contexts: Sequence[int], block_size: int, window: int | None, *, normed: bool
) -> tuple[Any, ...]:
    """Query, key and value lie in one tensor, as a product leaves them."""
    rows = len(contexts)
    case = Case(shape, [1] * rows, contexts, block_size, device="cpu")
    together = drawn(rows, shape.heads + 2 * shape.kv_heads, shape.head_dim, dtype=shape.dtype)
    heads = together.tensor_split((shape.heads, shape.heads + shape.kv_heads), dim=1)
    angles, weights = 100 * torch.rand(rows, pairs), drawn(2, shape.head_dim, dtype=shape.dtype)
    norms = HeadNorms(weights[0], weights[1], EPS) if normed else None
    out = poisoned(rows, shape.heads, shape.head_dim, dtype=shape.dtype)
    pools, where = (case.keys, case.values), (case.tables, case.contexts)
    return (*heads, angles.cos(), angles.sin(), *pools, *where, case.scale, window, out, norms)


def tour_embed() -> None:
    module, count, pairs, vocab = kernels("embed"), 5, 300, 7  # more pairs than threads
    sampled, sources = integers([5, 4]), integers([-1, 0, 1, -1, 0])
    positions = integers([0, 1, 77, 100_000, 1_000_000])
    frequencies = 500_000.0 ** -(torch.arange(pairs) / pairs)
    for dtype, hidden in ((F32, F32), (BF16, BF16), (BF16, F32), (FP16, F32)):
        op = module.Embed(dtype, hidden)
        for dim in (8, 4112):  # with a tail that is not read ahead
            ids = (integers([6, 0, 3, 1, 2]), sources, sampled, positions)
            embedding, out = drawn(vocab, dim, dtype=dtype), apart(poisoned(count, dim, dtype=hidden), 8)
            angles = poisoned(count, pairs), poisoned(count, pairs)
            agree(op, REFERENCE.embed, *ids, embedding, frequencies, 1.25, out, *angles)


def tour_follow_drafts() -> None:
    op = kernels("follow_drafts").FollowDrafts()
    for count, most in ((1, 1), (70, 3)):  # more rows than threads
        given = followed(count, most, seed=count)
        agree(op, REFERENCE.follow_drafts, *given)


def tour_gated_linear() -> None:
    if not on_hopper("gated_linear"):
        return
    module = kernels("gated_linear")
    for plan, dtype in ((BROAD, BF16), (NARROW, BF16), (NARROW, FP16)):
        product = module.Product(plan, dtype)
        for blocks in (product._blocks, CLUSTER):  # that take all tiles, in turn
            product._blocks = blocks
            for rows, inputs, outputs in ((1, 8, 8), (300, 456, 136)):  # more inputs than a ring has
                agree(product, gated_linear, *operands(Form(into=Into.GATED), dtype, rows, inputs, outputs))


def tour_gather_ids() -> None:
    op = kernels("gather_ids", "numba").gather_ids
    sources = torch.randint(-2, 5, (130,), dtype=torch.int32)  # for two blocks
    agree(op, gather_ids, integers([9, 8, 7, 6, 5]), sources, torch.arange(130, dtype=torch.int32))


def tour_linear() -> None:
    """All forms by one plan; those of 16 bits alone by all that may be planned for them."""
    module = kernels("linear")
    forms = [
        Form(normed, into, wide_x, wide_out)
        for normed, wide_x in ((False, False), (True, False), (True, True))
        for into in Into
        for wide_out in (False, True)
    ]
    made = [(LONE, BF16, form) for form in forms]
    narrow = [form for form in forms if not (form.wide_x or form.wide_out)]
    made += [(plan, BF16, form) for form in narrow for plan in form.plans if plan != LONE]
    made += [(LONE, FP16, Form()), (LONE, FP16, Form(normed=True, into=Into.GATED))]
    for (_, dtype, form), product in zip(made, compiled(module.Product, made), strict=True):
        product._multiprocessors = 2  # so that a block walks over tiles
        for rows, inputs, outputs in ((1, 24, 8), (8, 1096, 5), (3, 1096, 100), (13, 1096, 100)):
            x, weight, bias, out = operands(form, dtype, rows, inputs, outputs)
            norm = drawn(inputs, dtype=dtype) if form.normed else None
            given = (x, weight, None if rows == 8 else bias, norm, EPS, out)
            agree(product, partial(normalise_and_multiply_by_torch, form), *given)


def normalise_and_multiply_by_torch(
    form: Form, x: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor | None, eps: float, out: Tensor
) -> None:
    """x * norm is rounded, as the contract has it: where terms cancel out, that is seen."""
    wide = x.float()
    if norm is not None:
        scales = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
        wide = (wide * norm.float()).to(norm.dtype).float() * scales
    fused_linear(Form(into=form.into), wide, weight, out, bias=bias)


def tour_paged_attention() -> None:
    module = kernels("paged_attention")
    for shape, most_tokens in (
        (Heads(8, 2, 128, BF16), 1),
        (Heads(8, 2, 64, FP16), 8),  # two tiles of queries
        (Heads(8, 1, 96, BF16), 8),  # four
        (Heads(16, 1, 128, FP16), 8),  # eight
        (Heads(2, 1, 256, BF16), 1),
    ):
        op = module.PagedAttention(shape, most_tokens=most_tokens)
        for streams in (op._streams, 3):  # few, so that each has many tiles, of several rows
            op._streams = streams
            attend(op, shape, most_tokens)
    alone = Case(Heads(8, 2, 128, BF16), [1], [16], device="cpu")  # nothing to join
    out = poisoned(*alone.query.shape, dtype=BF16)
    agree(module.PagedAttention(alone.shape), REFERENCE.paged_attention, *alone.arguments(None, out))


def attend(op: Any, shape: Heads, most_tokens: int) -> None:
    """With rows that begin a prompt, and without tokens; contexts of one tile, of part of one, of many."""
    counts = [min(count, most_tokens) for count in (8, 1, 0, 3, 8, 2)]
    for window, block_size in ((None, 48), (40, 16)):
        case = Case(shape, counts, [8, 300, 0, 17, 130, 70], block_size, device="cpu")
        out = poisoned(*case.query.shape, dtype=shape.dtype)
        agree(op, REFERENCE.paged_attention, *case.arguments(window, out))


def tour_paged_attention_numba() -> None:
    module = kernels("paged_attention", "numba")
    for shape, most_tokens in ((Heads(8, 2, 128, BF16), 1), (Heads(6, 2, 40, F32), 8)):
        attend(module.PagedAttention(shape, most_tokens=most_tokens), shape, most_tokens)


def tour_prefill_attention() -> None:
    if not on_hopper("prefill_attention"):
        return
    module = kernels("prefill_attention")
    for shape in (
        Heads(14, 2, 64, BF16),  # tiles begin within tokens
        Heads(2, 2, 96, FP16),
        Heads(8, 2, 128, BF16),
        Heads(4, 2, 256, BF16),
    ):
        op = module.PrefillAttention(shape)
        for blocks in (op._blocks, 1):  # one takes all tiles, in turn
            op._blocks = blocks
            for window, block_size in ((None, 16), (50, 48)):
                counts, contexts = (
                    [70, 1, 0, 100, 16],
                    [400, 33, 5, 100, 150],
                )  # more blocks of keys than a ring has
                case = Case(shape, counts, contexts, block_size, padding=1 << 30, device="cpu")
                out = poisoned(*case.query.shape, dtype=shape.dtype)
                agree(op, REFERENCE.prefill_attention, *case.arguments(window, out))


def tour_rms_norm() -> None:
    module = kernels("rms_norm")
    for dtype in (F32, BF16, FP16):
        op = module.RmsNorm(dtype)
        for dim in (8, 264, 8208 if dtype.itemsize == 2 else 4104):  # one warp; a few; two chunks a thread
            weight = drawn(dim, dtype=dtype)
            for x_dtype in dict.fromkeys((dtype, F32)):
                x, out = apart(drawn(3, dim, dtype=x_dtype), 8), apart(poisoned(3, dim, dtype=dtype), 8)
                agree(op, REFERENCE.rms_norm, x, weight, EPS, out)
            stream, delta = drawn(3, dim, dtype=dtype), drawn(3, dim, dtype=dtype)
            agree(op, REFERENCE.rms_norm, stream, weight, EPS, delta, delta)


def tour_rope_write_kv() -> None:
    module = kernels("rope_write_kv")
    for dtype, head_dim, pairs in (
        (BF16, 128, 64),
        (BF16, 96, 48),
        (FP16, 80, 10),  # most of a head does not turn, in narrow accesses
        (FP16, 128, 32),
        (F32, 256, 128),
    ):
        op = module.RopeWriteKv(dtype, head_dim, pairs)
        for heads, kv_heads in ((4, 2), (5, 1)):
            weights = drawn(2, head_dim, dtype=dtype)
            for norms in (None, HeadNorms(weights[0], weights[1], EPS)):
                together = drawn(3, heads + 2 * kv_heads, head_dim, dtype=dtype)
                parts = together.tensor_split((heads, heads + kv_heads), dim=1)
                angles = 100 * torch.rand(3, pairs)
                pools = poisoned(2, 5, 2, kv_heads, head_dim, dtype=dtype)
                rest = (angles.cos(), angles.sin(), integers([7, 0, 9]), pools[0], pools[1], norms)
                agree(op, REFERENCE.rope_write_kv, *parts, *rest)


def tour_sample() -> None:
    op = kernels("sample").Sample(20, 13_000)
    for few in (False, True):
        if few:
            op._multiprocessors = 4  # which so take several parts each, and larger ones
        for rows, vocab, padding in ((20, 13_000, 0), (20, 13_000, 1), (3, 33, 3), (1, 5000, 0)):
            logits = drawn(rows, vocab, scale=8.0)  # few tokens matter: roundings decide nothing
            logits[::4] = logits[::4].round()  # where many are equal
            if rows > 4:
                logits[1, 7], logits[2, vocab - 1], logits[3] = torch.nan, torch.inf, -torch.inf
            agree(op, REFERENCE.sample, apart(logits, padding) if padding else logits, *settings(rows, vocab))


def settings(rows: int, vocab: int) -> tuple[Tensor, ...]:
    """Each row drawn in some way of its own; then what is written."""

    def one_of(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (rows,))]

    return (
        one_of(0.0, 1.0, 0.3, 2.0),
        one_of(0, 0, 1, 3, 50, vocab // 2, vocab + 5).int(),
        one_of(1.0, 1.0, 0.95, 0.3, 0.0),
        one_of(0.0, 0.0, 0.1),
        torch.randint(-(2**63), 2**63 - 1, (rows,)),
        torch.randint(2**31 - 1, (rows,)).int(),
        torch.full((rows,), -7, dtype=torch.int32),
        torch.full((rows,), -7, dtype=torch.int32),
    )


def tour_silu_mul() -> None:
    module = kernels("silu_mul")
    for dtype in (F32, BF16, FP16):
        op = module.SiluMul(dtype)
        for dim in (8, 2056):  # more than one block
            gate, up = drawn(3, 2 * dim, dtype=dtype, scale=5).chunk(2, dim=1)
            agree(op, REFERENCE.silu_mul, gate, up, apart(poisoned(3, dim, dtype=dtype), 8))


def tour_verify() -> None:
    op = kernels("verify", "numba").verify
    starts = torch.cat([torch.zeros(1), torch.randint(5, (130,)).cumsum(0)]).int()  # rows for two blocks
    sampled = torch.randint(3, (int(starts[-1]),), dtype=torch.int32)
    drafts = torch.where(torch.rand(len(sampled)) < 0.7, sampled, -1)
    agree(op, verify, sampled, starts, drafts, torch.full((130,), -7, dtype=torch.int32))


TOURS: dict[str, Callable[[], None]] = {
    "adjust_logits": tour_adjust_logits,
    "batch_linear": tour_batch_linear,
    "copy_blocks": tour_copy_blocks,
    "decode_attention": tour_decode_attention,
    "embed": tour_embed,
    "follow_drafts": tour_follow_drafts,
    "gated_linear": tour_gated_linear,
    "gather_ids": tour_gather_ids,
    "linear": tour_linear,
    "paged_attention": tour_paged_attention,
    "paged_attention_numba": tour_paged_attention_numba,
    "prefill_attention": tour_prefill_attention,
    "rms_norm": tour_rms_norm,
    "rope_write_kv": tour_rope_write_kv,
    "sample": tour_sample,
    "silu_mul": tour_silu_mul,
    "verify": tour_verify,
}
ASKED = ("paged_attention_numba",)  # only if named: seconds to compile


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="op", help=f"of {', '.join(TOURS)}")
    ops = parser.parse_args(arguments).ops
    if unknown := sorted(set(ops) - set(TOURS)):
        parser.error(f"no such op: {', '.join(unknown)}")
    for op in ops or [name for name in TOURS if name not in ASKED]:
        print(op, flush=True)
        torch.manual_seed(0)
        TOURS[op]()


if __name__ == "__main__":
    main()
