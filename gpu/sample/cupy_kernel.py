"""sample in CUDA C++; see the package for the contract, and kernel.cu for how it works."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.launch import Kernels
from gpu.sample.source import (
    BINS,
    BLOCKS,
    MOST_CHUNKS,
    MOST_PEAK_PARTS,
    MOST_VOCAB,
    PEAK_THREADS,
    SOURCE,
    THREADS,
    chunks,
    parts,
    peak_parts,
)

MOST_ROWS = 65_535  # of a grid's second extent


class Sample:
    """At most `most_rows` rows of at most `most_vocab` logits, on the current device, one call at a time.

    The workspace, about 44 KB for each row, is this object's own, so calls on two streams at once need two
    objects. A captured graph refers to it: keep the object as long as the graph.
    """

    def __init__(self, most_rows: int, most_vocab: int) -> None:
        """Compiles for the current device."""
        if not 1 <= most_rows <= MOST_ROWS:
            raise ValueError(f"sample: {most_rows} rows; make it for 1..{MOST_ROWS}")
        if not 1 <= most_vocab <= MOST_VOCAB:
            raise ValueError(f"sample: a vocabulary of {most_vocab}; it sums up weights of 1..{MOST_VOCAB}")
        self._multiprocessors = torch.cuda.get_device_properties().multi_processor_count
        if parts(most_vocab, MOST_CHUNKS) > self._multiprocessors:
            raise ValueError(
                f"sample: a vocabulary of {most_vocab} takes more than the {self._multiprocessors}"
                " multiprocessors there are; use the reference"
            )
        self._most_rows, self._most_vocab = most_rows, most_vocab
        self._kernels = Kernels(SOURCE, {})
        # As many parts as are drawn from at once if rows are few; see `chunks`.
        sums = max(BLOCKS * self._multiprocessors, most_rows * parts(most_vocab, MOST_CHUNKS))
        device = torch.device("cuda", torch.cuda.current_device())
        self._peaks = torch.empty(most_rows * MOST_PEAK_PARTS, dtype=torch.int64, device=device)
        self._sums = torch.empty(sums, dtype=torch.int64, device=device)
        self._ties = torch.empty(sums, dtype=torch.int32, device=device)
        # Each launch leaves these as it found them: 0.
        self._counts = torch.zeros(most_rows * BINS, dtype=torch.int32, device=device)
        self._masses = torch.zeros(most_rows * BINS, dtype=torch.int64, device=device)
        self._handed_out = torch.zeros(1, dtype=torch.int32, device=device)
        self._arrived = torch.zeros(most_rows, dtype=torch.int32, device=device)

    @property
    def workspace_bytes(self) -> int:
        """Of device memory that it keeps."""
        kept = (self._peaks, self._sums, self._ties, self._counts, self._masses, self._arrived)
        return sum(tensor.nbytes for tensor in kept)

    def __call__(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        seeds: Tensor,
        positions: Tensor,
        tokens: Tensor,
        status: Tensor,
    ) -> None:
        """See the package."""
        rows, vocab = logits.shape
        if rows > self._most_rows or not 1 <= vocab <= self._most_vocab:
            made = f"{self._most_rows} rows of {self._most_vocab}"
            raise ValueError(f"sample: {rows} rows of {vocab} logits; made for 1..{made} at most")
        if logits.dtype != torch.float32 or (vocab > 1 and logits.stride(1) != 1):
            raise ValueError(f"sample: logits are {logits.dtype}; make them torch.float32, rows contiguous")
        for name, tensor, dtype in (
            ("temperature", temperature, torch.float32),
            ("top_k", top_k, torch.int32),
            ("top_p", top_p, torch.float32),
            ("min_p", min_p, torch.float32),
            ("seeds", seeds, torch.int64),
            ("positions", positions, torch.int32),
            ("tokens", tokens, torch.int32),
            ("status", status, torch.int32),
        ):
            if tensor.dtype != dtype or tensor.shape != (rows,) or not tensor.is_contiguous():
                found = f"{tensor.dtype}{list(tensor.shape)}"
                raise ValueError(f"sample: {name} is {found}; make it a contiguous {dtype}[{rows}]")
        if rows:
            self.enqueue(logits, temperature, top_k, top_p, min_p, seeds, positions, tokens, status)

    def enqueue(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        seeds: Tensor,
        positions: Tensor,
        tokens: Tensor,
        status: Tensor,
    ) -> None:
        """The call, unchecked, for one row or more."""
        rows, vocab = logits.shape
        stride = logits.stride(0)
        peaks = peak_parts(rows, vocab, self._multiprocessors)
        size = -(-vocab // (4 * peaks)) * 4
        grid = (peaks, rows)
        self._kernels.launch_early(
            "sample_peaks",
            grid,
            (PEAK_THREADS,),
            logits,
            self._peaks,
            self._handed_out,
            vocab,
            stride,
            size,
        )
        each = chunks(rows, vocab, self._multiprocessors)
        of_row = parts(vocab, each)
        self._kernels.launch_early(
            "sample_draw",
            (min(rows * of_row, BLOCKS * self._multiprocessors),),
            (THREADS,),
            logits,
            temperature,
            top_k,
            top_p,
            min_p,
            seeds,
            positions,
            tokens,
            status,
            self._peaks,
            self._handed_out,
            self._counts,
            self._masses,
            self._arrived,
            self._sums,
            self._ties,
            rows,
            vocab,
            stride,
            peaks,
            of_row,
            each,
        )
