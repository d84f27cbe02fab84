"""Speed of the CPU decoder on random weights, next to the memory bandwidth of the same minute.

    python -m bench.cpu_kernels --shape m135 --threads 2

Every round measures, in turn, a plain read of as many bytes as the weights, then each workload; the table
gives medians over rounds with the least and the largest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from tokenspeed.model.batch import Batch
from tokenspeed.model.cpu.decoder import CpuDecoder
from tokenspeed.model.cpu.jit import njit
from tokenspeed.model.cpu.memory import Arena
from tokenspeed.model.cpu.simd import load, splat, total
from tokenspeed.model.spec import ModelSpec, RopeSpec
from tokenspeed.model.weights import LayerWeights, Weights

BLOCK_SIZE = 32
CONTEXT = 128  # tokens that each decoding stream has behind it
DECODE_STEPS = 24  # of one measurement
DECODE_BLOCKS = 8  # of one stream


def spec_of(name: str) -> ModelSpec:
    """SmolLM2-135M and Qwen3-0.6B in shape."""
    small = name == "m135"
    head_dim = 64 if small else 128
    theta = 1e5 if small else 1e6
    layers = 30 if small else 28
    return ModelSpec(
        family=name,
        vocab_size=49152 if small else 151936,
        hidden_size=576 if small else 1024,
        layers=layers,
        heads=9 if small else 16,
        kv_heads=3 if small else 8,
        head_dim=head_dim,
        intermediate_size=1536 if small else 3072,
        norm_eps=1e-6,
        rope=RopeSpec(tuple(theta ** (-2 * i / head_dim) for i in range(head_dim // 2))),
        windows=(None,) * layers,
        max_context=4096,
        dtype="bfloat16",
        tied_embeddings=True,
        qk_norm=not small,
    )


def random_weights(spec: ModelSpec) -> Weights:
    """Weights of the right sizes; one layer's tensors stand for all, packing copies them anyway."""

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape) * 0.02).bfloat16()

    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    norm = torch.ones(spec.head_dim) if spec.qk_norm else None
    layer = LayerWeights(
        input_norm=torch.ones(hidden),
        query=random(queries, hidden),
        key=random(keys, hidden),
        value=random(keys, hidden),
        output=random(hidden, queries),
        mlp_norm=torch.ones(hidden),
        gate=random(inner, hidden),
        up=random(inner, hidden),
        down=random(hidden, inner),
        query_norm=norm,
        key_norm=norm,
    )
    embedding = random(spec.vocab_size, hidden)
    return Weights(embedding, (layer,) * spec.layers, torch.ones(hidden), embedding)


def matrix_elements(spec: ModelSpec) -> int:
    """Elements of the layers' matrices: each is two floating-point operations a token."""
    qkv = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    per_width = qkv + spec.heads * spec.head_dim + 3 * spec.intermediate_size
    return spec.layers * per_width * spec.hidden_size


def batch_of(starts: list[int], counts: list[int], width: int) -> Batch:
    """Row r computes `counts[r]` tokens after `starts[r]`; its blocks lie in its own run of the pool."""
    tables = np.arange(len(starts) * width, dtype=np.int32).reshape(-1, width)
    positions = [np.arange(s, s + n, dtype=np.int32) for s, n in zip(starts, counts, strict=True)]
    slots = [p + row * width * BLOCK_SIZE for row, p in enumerate(positions)]
    ends = np.cumsum([0, *counts]).astype(np.int32)
    return Batch(
        tokens=np.random.default_rng(0).integers(0, 1000, ends[-1]).astype(np.int32),
        positions=np.concatenate(positions),
        slots=np.concatenate(slots).astype(np.int32),
        row_starts=ends,
        contexts=np.array([s + n for s, n in zip(starts, counts, strict=True)], np.int32),
        block_tables=tables,
        logit_rows=(ends[1:] - 1).astype(np.int32),
    )


@njit
def read(address: int, size: int) -> float:
    a = b = c = d = splat(0.0)
    for at in range(address, address + size, 256):
        a, b, c, d = a + load(at), b + load(at + 64), c + load(at + 128), d + load(at + 192)
    value: float = total((a + b) + (c + d))
    return value


class Reader:
    """A plain read of `size` bytes by all threads."""

    def __init__(self, size: int, threads: int) -> None:
        self.size, self.threads = size // threads // 4096 * 4096 * threads, threads
        self.arena = Arena(size)
        self.address = self.arena.take(size)
        self.arena.view(self.address, size)[:] = 0
        self.pool = ThreadPoolExecutor(threads)

    def seconds(self) -> float:
        share = self.size // self.threads
        began = time.perf_counter()
        list(self.pool.map(lambda i: read(self.address + i * share, share), range(self.threads)))
        return time.perf_counter() - began


class Measured(NamedTuple):
    name: str
    tokens: int
    steps: int
    run: Callable[[], None]


def workloads(decoder: CpuDecoder, streams: list[int], prompts: list[int]) -> list[Measured]:
    width = 4096 // BLOCK_SIZE

    def decode(count: int) -> Callable[[], None]:
        batches = [batch_of([CONTEXT + i] * count, [1] * count, DECODE_BLOCKS) for i in range(DECODE_STEPS)]

        def run() -> None:
            for batch in batches:
                decoder.forward(batch)

        return run

    def prefill(count: int) -> Callable[[], None]:
        batch = batch_of([0], [count], width)

        def run() -> None:
            decoder.forward(batch)

        return run

    decoding = [Measured(f"decode {n}", n * DECODE_STEPS, DECODE_STEPS, decode(n)) for n in streams]
    return decoding + [Measured(f"prefill {n}", n, 1, prefill(n)) for n in prompts]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):8.1f} ({min(values):.1f}..{max(values):.1f})"


def resident_megabytes() -> int:
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["VmRSS"].split()[0]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=["m135", "m600"], default="m135")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--instructions", choices=["avx512bf16", "generic"], default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = spec_of(options.shape)
    weights = random_weights(spec)
    began = time.perf_counter()
    decoder = CpuDecoder(
        spec,
        weights,
        dtype=options.dtype,
        block_size=BLOCK_SIZE,
        threads=options.threads,
        instructions=options.instructions,
    )
    packed = time.perf_counter()
    decoder.allocate(max(options.streams or [1]) * DECODE_BLOCKS + 4096 // BLOCK_SIZE)
    decoder.warm_up()
    print(f"packed in {packed - began:.2f} s, ready {time.perf_counter() - packed:.2f} s later", end=", ")
    del weights
    report(spec, decoder, options)
    decoder.close()


def report(spec: ModelSpec, decoder: CpuDecoder, options: argparse.Namespace) -> None:
    size = 4 if options.dtype == "float32" else 2
    elements = matrix_elements(spec) + spec.vocab_size * spec.hidden_size
    measured = workloads(decoder, options.streams, options.prompts)
    for one in measured:
        one.run()
    print(f"RSS {resident_megabytes()} MB")
    reader = Reader(min(elements * size, 1 << 29), options.threads)
    reader.seconds()
    bandwidth: list[float] = []
    rates: dict[str, list[float]] = {one.name: [] for one in measured}
    light: dict[str, list[float]] = {one.name: [] for one in measured}
    for _ in range(options.rounds):
        for one in measured:
            gigabytes = reader.size / min(reader.seconds() for _ in range(3)) / 1e9
            began = time.perf_counter()
            one.run()
            seconds = time.perf_counter() - began
            bandwidth.append(gigabytes)
            rates[one.name].append(one.tokens / seconds)
            light[one.name].append(one.steps * elements * size / 1e9 / gigabytes / seconds)
    print(f"memory read, GB/s: {spread(bandwidth)}; a step reads {elements * size / 1e6:.0f} MB")
    for one in measured:
        if one.name.startswith("decode"):
            share = f"{statistics.median(light[one.name]):.0%} of the time is a plain read of the weights"
        else:
            flops = 2 * matrix_elements(spec) * statistics.median(rates[one.name]) / 1e9
            share = f"{flops:.0f} GFLOP/s in projections alone"
        print(f"{one.name:>14}, tokens/s: {spread(rates[one.name])}; {share}")


if __name__ == "__main__":
    main()
