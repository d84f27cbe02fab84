"""The CUDA source of sample, and how rows are divided among blocks."""

from __future__ import annotations

from pathlib import Path

from gpu.source import COMMON, Source

MOST_VOCAB = 1 << 18  # so many weights of 2**44 sum up to less than 2**63
PEAK_THREADS, PEAK_BLOCKS = 256, 8  # of the kernel that looks for the greatest logits; on a multiprocessor
MOST_PEAK_PARTS = 256
THREADS, BLOCKS = 512, 2  # of the kernel that draws; on a multiprocessor
MOST_CHUNKS = 3  # of 4 * THREADS logits that a block of it holds
BINS = 1409 + 8 * 256  # of the histograms of a row: one coarse and the finer ones

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("sample_peaks", "sample_draw"),
    variants=({},),
    shared=COMMON,
)


def peak_parts(rows: int, vocab: int, multiprocessors: int) -> int:
    """Blocks that look for the greatest logit of each row: as many as are resident at once, if need be."""
    most = -(-vocab // (4 * PEAK_THREADS))
    return min(most, max(PEAK_BLOCKS * multiprocessors // rows, 1), MOST_PEAK_PARTS)


def chunks(rows: int, vocab: int, multiprocessors: int) -> int:
    """That a block holds: one where that still leaves each block one part of one row.

    The blocks of a row wait for each other, so they must not be more than there are multiprocessors.
    """
    finest = parts(vocab, 1)
    fits = finest <= multiprocessors and rows * finest <= BLOCKS * multiprocessors
    return 1 if fits else MOST_CHUNKS


def parts(vocab: int, chunks: int) -> int:
    """Blocks that draw from one row together, each from so many chunks."""
    return -(-vocab // (4 * THREADS * chunks))
