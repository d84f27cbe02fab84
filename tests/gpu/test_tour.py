"""The tour of the kernels, with references on the CPU in their place: it runs, and tells what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpu.batch_linear.reference import batch_linear
from gpu.copy_blocks.reference import copy_blocks
from gpu.gated_linear.reference import gated_linear
from gpu.gather_ids.reference import gather_ids
from gpu.table import REFERENCE
from gpu.verify.reference import verify
from tests.gpu import tour
from tests.gpu.agreement import agree, apart, drawn
from tests.gpu.scripts import ROOT

CLASSES = {
    "AdjustLogits": "adjust_logits",
    "DecodeAttention": "decode_attention",
    "Embed": "embed",
    "FollowDrafts": "follow_drafts",
    "PagedAttention": "paged_attention",
    "PrefillAttention": "prefill_attention",
    "RmsNorm": "rms_norm",
    "RopeWriteKv": "rope_write_kv",
    "Sample": "sample",
    "SiluMul": "silu_mul",
}


class Stand:
    """In for a kernel that was made with whatever it was made with."""

    def __init__(self, reference: Callable[..., None]) -> None:
        self.reference, self._blocks, self._streams = reference, 132, 528

    def __call__(self, *arguments: Any) -> None:
        self.reference(*arguments)


def stands(reference: Callable[..., None]) -> Callable[..., Stand]:
    return lambda *_, **__: Stand(reference)


PRODUCTS: dict[str, Callable[..., Stand]] = {
    "batch_linear": lambda _plan, _dtype, form: Stand(partial(batch_linear, form)),
    "gated_linear": stands(gated_linear),
    "linear": lambda _plan, _dtype, form: Stand(partial(tour.normalise_and_multiply_by_torch, form)),
}


@pytest.fixture(autouse=True)
def _references(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {name: stands(getattr(REFERENCE, op)) for name, op in CLASSES.items()}
    functions = {"copy_blocks": copy_blocks, "gather_ids": gather_ids, "verify": verify}
    monkeypatch.setattr(tour, "DEVICE", "cpu")
    monkeypatch.setattr(
        tour, "kernels", lambda op, *_: SimpleNamespace(**made, **functions, Product=PRODUCTS.get(op))
    )


def test_every_op_is_toured() -> None:
    assert {path.parent.name for path in (ROOT / "gpu").glob("*/__init__.py")} == set(tour.TOURS) - set(
        tour.ASKED
    )


@pytest.mark.parametrize("op", tour.TOURS)
def test_every_op_can_be_toured(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    tour.main([op])
    assert capsys.readouterr().out.splitlines() == [op]


def test_what_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tour.main(["linear", "rsm_norm"])
    assert "no such op: rsm_norm" in capsys.readouterr().err


def test_what_is_wrong_is_noticed_also_where_nothing_should_be_written() -> None:
    x, out = drawn(3, 16), apart(torch.zeros(3, 16), 8)

    def right(x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(2 * x)

    def wrong(x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(2 * x)
        out[1, 3] *= 1.01

    def beyond(x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(2 * x)
        out.as_strided((3, 17), out.stride())[0, 16] = 0.0

    def careless(x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(x.mul_(2))

    agree(right, right, x, out, device="cpu")
    for op in (wrong, beyond, careless):
        with pytest.raises(AssertionError):
            agree(op, right, x, out, device="cpu")
