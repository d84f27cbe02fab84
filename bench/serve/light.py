"""The speed of light of one stream: memory bandwidth / bytes of weights that a token reads."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bench.client import BenchError
from bench.serve.recording import Light

READ_BYTES = 1 << 29  # of one measurement: well beyond all caches
TRIES = 5
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_light(given: str) -> tuple[float, float | None]:
    """`BYTES[:BANDWIDTH]`, each with K, M, G or T behind if wanted: bytes and bytes/s."""
    size, colon, speed = given.partition(":")
    return parse_bytes(size), parse_bytes(speed) if colon else None


def parse_bytes(given: str) -> float:
    """`1.19G` as 1.19e9. Raises BenchError."""
    match = re.fullmatch(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)([KMGT]?)", given.strip())
    try:
        value = float(match[1]) * UNITS[match[2]] if match else 0.0
    except ValueError:
        value = 0.0
    if value <= 0:
        raise BenchError(f"--light: {given!r} is not a number of bytes like 1.19e9 or 1.19G")
    return value


def resolve(size: float, bandwidth: float | None) -> Light:
    """With the bandwidth that was stated, or else with that of this machine, measured now."""
    if bandwidth is not None:
        return Light(size, bandwidth, measured=False)
    return Light(size, read_bandwidth(os.cpu_count() or 1), measured=True)


def read_bandwidth(threads: int) -> float:
    """Bytes/s that numpy sums with so many threads: the best of some tries."""
    parts = [np.ones(READ_BYTES // 8 // threads) for _ in range(threads)]
    read = sum(part.nbytes for part in parts)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(TRIES):
            began = time.perf_counter()
            list(pool.map(np.add.reduce, parts))
            best = min(best, time.perf_counter() - began)
    return read / best
