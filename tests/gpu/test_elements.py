"""Which tensors the element-wise CUDA kernels take."""

from __future__ import annotations

import pytest
import torch

from gpu.elements import check_rows


def test_rows_may_lie_apart() -> None:
    both = torch.zeros(3, 32)
    check_rows("gate", both[:, :16], torch.float32, (3, 16))
    check_rows("up", both[:, 16:], torch.float32, (3, 16))
    check_rows("none", both[:0], torch.float32, (0, 32))


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (torch.zeros(3, 16, dtype=torch.float16), "x is torch.float16; make it torch.float32"),
        (torch.zeros(2, 16), r"x is \[2, 16\]; make it \[3, 16\]"),
        (torch.zeros(16, 3).T, "x has gaps within a row"),
        (torch.zeros(3, 17)[:, :16], "rows of x do not start at multiples of 16 bytes"),
        (torch.zeros(3, 20)[:, 1:17], "rows of x do not start at multiples of 16 bytes"),
    ],
)
def test_others_are_refused_in_words(tensor: torch.Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_rows("x", tensor, torch.float32, (3, 16))
