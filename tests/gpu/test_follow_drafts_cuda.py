"""follow_drafts in CUDA C++ against its reference, on a device."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("cupy")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from gpu.follow_drafts.cupy_kernel import FollowDrafts
from gpu.follow_drafts.reference import follow_drafts
from tests.gpu.follow_cases import followed

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("rows", "most"), [(1, 1), (1, 7), (64, 7), (65, 3), (256, 31)])
def test_rows_go_on_as_the_reference_says(rows: int, most: int) -> None:
    op = FollowDrafts()
    for seed in range(4):
        given = followed(rows, most, seed=seed)
        on_device = [one.cuda() if isinstance(one, torch.Tensor) else one for one in given]
        follow_drafts(*given)
        op(*on_device)
        for ours, theirs in zip(on_device, given, strict=True):
            assert not isinstance(ours, torch.Tensor) or torch.equal(ours.cpu(), theirs)


def test_arrays_that_are_too_short_are_refused() -> None:
    given = [one.cuda() if isinstance(one, torch.Tensor) else one for one in followed(3, 2, seed=1)]
    given[7] = given[7][:5]
    with pytest.raises(ValueError, match="tokens has 5 places"):
        FollowDrafts()(*given)
