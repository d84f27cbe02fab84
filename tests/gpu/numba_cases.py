"""Cases of the Numba CUDA kernels; a script, since NUMBA_ENABLE_CUDASIM counts when Numba is first imported.

With that variable set the kernels run in the simulator on tensors of the CPU, else on the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from gpu.copy_blocks.numba_kernel import copy_blocks
from gpu.copy_blocks.reference import copy_blocks as copied_by_torch
from gpu.gather_ids.numba_kernel import gather_ids
from gpu.gather_ids.reference import gather_ids as gathered_by_torch
from gpu.verify.numba_kernel import verify
from gpu.verify.reference import verify as verified_by_torch

DEVICE = "cpu" if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else "cuda"


def refused(call: Callable[[], object]) -> bool:
    """With an error of one line."""
    try:
        call()
    except ValueError as error:
        return "\n" not in str(error)
    return False


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def check_copies(planes: int, blocks: int, size: int, sources: Tensor, targets: Tensor) -> None:
    pool = torch.randint(-(2**62), 2**62, (planes, blocks, size), device=DEVICE)
    expected = pool.clone()
    copied_by_torch(expected, sources, targets)
    copy_blocks(pool, sources, targets)
    assert torch.equal(pool, expected)


def check_gathering(rows: int, tokens: int) -> None:
    sampled = torch.randint(0, 1 << 20, (rows,), dtype=torch.int32, device=DEVICE)
    sources = torch.randint(-2, rows, (tokens,), dtype=torch.int32, device=DEVICE)
    found = torch.randint(0, 1 << 20, (tokens,), dtype=torch.int32, device=DEVICE)
    expected = found.clone()
    gathered_by_torch(sampled, sources, expected)
    gather_ids(sampled, sources, found)
    assert torch.equal(found, expected)


def check_verifying(rows: int, most: int) -> None:
    """Rows of 0 to `most` places, whose drafts are mostly right."""
    starts = torch.cat([torch.zeros(1), torch.randint(most + 1, (rows,)).cumsum(0)]).int().to(DEVICE)
    places = int(starts[-1])
    sampled = torch.randint(0, 1 << 20, (places,), dtype=torch.int32, device=DEVICE)
    drafts = torch.where(torch.rand(places, device=DEVICE) < 0.8, sampled, -1)
    found, expected = integers(*[-7] * rows), integers(*[-7] * rows)
    verified_by_torch(sampled, starts, drafts, expected)
    verify(sampled, starts, drafts, found)
    assert torch.equal(found, expected)


def check_replays() -> None:
    """Captured in a graph on torch's stream, each gives the same again."""
    pool, tokens = torch.randint(0, 99, (4, 6, 1025), device=DEVICE), integers(1, 2, 3)
    sources, targets, rows, sampled = integers(1, 2), integers(4, 0), integers(1, -1, 0), integers(70, 71)
    starts, drafts, accepted = integers(0, 1, 3), integers(-1, 8, -1), integers(-7, -7)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        copy_blocks(pool, sources, targets)
        gather_ids(sampled, rows, tokens)
        verify(tokens, starts, drafts, accepted)
    pool.random_()
    sampled.add_(10)
    tokens[1] = 8
    expected = pool.clone()
    copied_by_torch(expected, sources, targets)
    graph.replay()
    assert torch.equal(pool, expected)
    assert tokens.tolist() == [81, 8, 80]
    assert accepted.tolist() == [1, 2]


def main() -> None:
    torch.manual_seed(0)
    check_copies(3, 5, 37, integers(1, -1, 3), integers(0, 0, 4))
    check_copies(1, 2, 1025, integers(1), integers(0))
    check_copies(2, 3, 8, integers(), integers())
    for rows, tokens in ((1, 1), (3, 17), (257, 257), (5, 0)):
        check_gathering(rows, tokens)
    for rows, most in ((1, 1), (3, 4), (130, 9), (2, 0), (0, 1)):
        check_verifying(rows, most)
    one = integers(0)
    assert refused(lambda: copy_blocks(torch.zeros(1, 2, 4, device=DEVICE), one, one))
    assert refused(lambda: copy_blocks(torch.zeros(1, 2, 4, device=DEVICE).long(), one, integers(1, 1)))
    assert refused(lambda: gather_ids(one.long(), one, one))
    assert refused(lambda: verify(one.long(), integers(0, 1), one, one))
    assert refused(lambda: verify(one, one, one, one))
    if DEVICE == "cuda":
        check_verifying(5000, 9)
        check_copies(64, 33, 4096, torch.arange(16).int().to(DEVICE), torch.arange(16, 32).int().to(DEVICE))
        check_copies(2, 3, 4097, integers(2), integers(0))
        check_gathering(32_769, 32_769)
        check_replays()


if __name__ == "__main__":
    main()
